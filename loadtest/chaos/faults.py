"""What happens to a host: each fault is a context, in force inside the block.

What a fault does shall hurt: a log that cannot be written is written to, because a worker dies at
the same time, and a relay without descriptors or processes has to replace one.
"""

import asyncio
import contextlib
import os
import random
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final
from urllib.parse import urlsplit

from .log_sinks import DiskSink, PipeSink
from .schedule import Card
from .system import ChaosSystem, ServiceUnderTest

__all__ = ["FAULTS", "FaultError", "fault_cards", "lacking_faults"]

Fault = Callable[[ChaosSystem, ServiceUnderTest, random.Random], AbstractAsyncContextManager[str]]

_UPGRADE_S: Final = 40.0
_UPGRADE_TRIES: Final = 3
"""A successor that gets no core for 30 s is given up, and the relay goes on as it was."""
_IDLE_CONNECTIONS: Final = 80
"""More than a service keeps for itself, fewer than a host has to give."""
_SPARE_DESCRIPTORS: Final = 24
_RELAY_STEPS_S: Final = (-3600, -20, 20)
"""A lease is renewed 36 s before its end here: a step that ends it is another fault."""
_CONTROL_STEPS_S: Final = (-20, 20)
"""Further than the 30 s of `nbf` that relays forgive, a master's leases are good for nobody."""


class FaultError(Exception):
    """A fault did not end as it must; the message says how."""


def _kill_worker(service: ServiceUnderTest, dice: random.Random) -> str:
    """Kill a worker, where it is a relay's; what to add to the note."""
    pids = service.worker_pids() if service.is_relay else []
    if not pids:
        return ""
    with contextlib.suppress(ProcessLookupError):
        os.kill(dice.choice(pids), signal.SIGKILL)
    return ", a worker killed"


@contextlib.asynccontextmanager
async def _log_full(
    _system: ChaosSystem, service: ServiceUnderTest, dice: random.Random
) -> AsyncIterator[str]:
    if not isinstance(service.sink, DiskSink):
        raise FaultError(f"the log of {service.name} is on no disk")
    with service.sink.full():
        yield f"no byte left for its log{_kill_worker(service, dice)}"
    service.sink.trim()


@contextlib.asynccontextmanager
async def _log_closed(
    _system: ChaosSystem, service: ServiceUnderTest, dice: random.Random
) -> AsyncIterator[str]:
    if not isinstance(service.sink, PipeSink):
        raise FaultError(f"the log of {service.name} is no pipe")
    service.sink.close_reader()
    try:
        yield f"nobody has the other end of its log{_kill_worker(service, dice)}"
    finally:
        service.sink.open_reader()


@contextlib.asynccontextmanager
async def _log_stalled(
    _system: ChaosSystem, service: ServiceUnderTest, dice: random.Random
) -> AsyncIterator[str]:
    if not isinstance(service.sink, PipeSink):
        raise FaultError(f"the log of {service.name} is no pipe")
    service.sink.stall()
    try:
        yield f"nobody reads its log{_kill_worker(service, dice)}"
    finally:
        service.sink.resume()


@contextlib.asynccontextmanager
async def _no_descriptors(
    _system: ChaosSystem, service: ServiceUnderTest, dice: random.Random
) -> AsyncIterator[str]:
    used = service.descriptors()
    with service.limited(resource.RLIMIT_NOFILE, used + 1):
        yield f"{used + 1} descriptors{_kill_worker(service, dice)}"


@contextlib.asynccontextmanager
async def _idle_connections(
    _system: ChaosSystem, service: ServiceUnderTest, _dice: random.Random
) -> AsyncIterator[str]:
    used = service.descriptors()
    where = urlsplit(service.url)
    opened: list[socket.socket] = []
    with service.limited(resource.RLIMIT_NOFILE, used + _SPARE_DESCRIPTORS):
        try:
            for _ in range(_IDLE_CONNECTIONS):
                idle = socket.socket()
                idle.settimeout(0)
                idle.connect_ex((where.hostname, where.port))
                opened.append(idle)
            yield f"{len(opened)} idle connections, {_SPARE_DESCRIPTORS} descriptors left"
        finally:
            for idle in opened:
                idle.close()


@contextlib.asynccontextmanager
async def _process_limit(
    _system: ChaosSystem, service: ServiceUnderTest, dice: random.Random
) -> AsyncIterator[str]:
    with service.limited(resource.RLIMIT_NPROC, 1):
        yield f"no process more{_kill_worker(service, dice)}"


@contextlib.asynccontextmanager
async def _freeze(
    _system: ChaosSystem, service: ServiceUnderTest, _dice: random.Random
) -> AsyncIterator[str]:
    service.signal_group(signal.SIGSTOP)
    try:
        yield "all of its processes stopped"
    finally:
        service.signal_group(signal.SIGCONT)


@contextlib.asynccontextmanager
async def _worker_killed(
    _system: ChaosSystem, service: ServiceUnderTest, dice: random.Random
) -> AsyncIterator[str]:
    _kill_worker(service, dice)
    yield "kill -9 of one worker"


@contextlib.asynccontextmanager
async def _workers_killed(
    _system: ChaosSystem, service: ServiceUnderTest, _dice: random.Random
) -> AsyncIterator[str]:
    pids = service.worker_pids()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    yield f"kill -9 of all {len(pids)} workers"


@contextlib.asynccontextmanager
async def _hot_upgrade(
    _system: ChaosSystem, service: ServiceUnderTest, _dice: random.Random
) -> AsyncIterator[str]:
    before = service.pid
    for _ in range(_UPGRADE_TRIES):
        os.kill(before, signal.SIGUSR2)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_UPGRADE_S):
                while service.pid in (0, before):  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.05)
            break
    else:
        raise FaultError(f"{service.name} was not upgraded in {_UPGRADE_TRIES} tries")
    yield f"from process {before} to {service.pid}"


@contextlib.asynccontextmanager
async def _clock_step(
    _system: ChaosSystem, service: ServiceUnderTest, dice: random.Random
) -> AsyncIterator[str]:
    offset_s = dice.choice(_RELAY_STEPS_S if service.is_relay else _CONTROL_STEPS_S)
    service.clock.step(offset_s)
    try:
        yield f"its wall clock {offset_s:+} s"
    finally:
        service.clock.step(0)


@contextlib.asynccontextmanager
async def _service_killed(
    system: ChaosSystem, service: ServiceUnderTest, _dice: random.Random
) -> AsyncIterator[str]:
    service.signal_group(signal.SIGKILL)
    yield "kill -9 of all of its processes"
    await system.start_again(service)


FAULTS: Final[dict[str, Fault]] = {
    "log_full": _log_full,
    "log_closed": _log_closed,
    "log_stalled": _log_stalled,
    "no_descriptors": _no_descriptors,
    "idle_connections": _idle_connections,
    "process_limit": _process_limit,
    "freeze": _freeze,
    "worker_killed": _worker_killed,
    "workers_killed": _workers_killed,
    "hot_upgrade": _hot_upgrade,
    "clock_step": _clock_step,
    "service_killed": _service_killed,
}


def lacking_faults(system: ChaosSystem) -> dict[str, str]:
    """Return the faults that cannot happen on this machine, and why."""
    lacking = {"log_full": system.no_disk, "process_limit": system.no_user}
    return {kind: reason for kind, reason in lacking.items() if reason is not None}


def fault_cards(system: ChaosSystem, *, pace: float) -> list[Card]:
    """Return a card of each fault that can happen here.

    Args:
        system: that it happens to.
        pace: 1 for times as in real life; a short run takes less.
    """
    services = system.services.values()
    everything = tuple(system.services)
    relays = tuple(service.name for service in services if service.is_relay)
    pipes = tuple(service.name for service in services if isinstance(service.sink, PipeSink))
    disks = tuple(service.name for service in services if isinstance(service.sink, DiskSink))
    rows = (
        Card("log_full", disks, 3 * pace, 20 * pace),
        Card("log_closed", pipes, 3 * pace, 20 * pace),
        Card("log_stalled", pipes, 3 * pace, 20 * pace),
        Card("no_descriptors", everything, 3 * pace, 15 * pace),
        Card("idle_connections", everything, 3 * pace, 15 * pace),
        Card("process_limit", relays, 3 * pace, 15 * pace),
        Card("freeze", everything, 3 * pace, 12 * pace),
        Card("worker_killed", relays),
        Card("workers_killed", relays),
        Card("hot_upgrade", relays),
        Card("clock_step", everything, 5 * pace, 20 * pace),
        Card("service_killed", everything, 0, 5 * pace),
    )
    lacking = lacking_faults(system)
    return [card for card in rows if card.kind not in lacking]
