"""The worker processes: spawn, reap, watch, replace.

A worker that dies is replaced at once on the same sockets.  One that could not even start, for its
own reasons or because the host has no descriptor or process left, is started again with growing
pauses, for ever: the watch compares what should run with what runs.  A socket that nobody reads
leaves the steering meanwhile, and the other workers serve its sessions.  A worker whose packet loop
is silent too long gets SIGABRT (its traceback goes to stderr), then SIGKILL; but not where the
watch itself was away as long, because then the whole host or container was paused.

In a hot upgrade two pools share the worker numbers for a while: the new one starts a worker parked
(`park`), the old one ends its own (`release`), the new one lets its worker begin (`begin`).  Until
then a parked worker writes nothing, so each row keeps a single writer.
"""

import asyncio
import contextlib
import random
import signal
from collections import Counter
from collections.abc import Sequence
from typing import Final

import structlog

from wavry_peer.protocol.errors import LocalError
from wavry_peer.service.clock import Clock
from wavry_relay.shm.control import WorkerRow, WorkerState
from wavry_relay.shm.segment import Segment
from wavry_relay.udp.sockets import ReuseportGroup
from wavry_relay.worker.placement import Placement
from wavry_relay.worker.process import (
    BOOT_FAILURE,
    GO,
    LEAVE,
    LEFT,
    OPEN,
    OPENED,
    PARKED,
    READY,
    STOP,
)

from .worker_process import WorkerProcess, how_it_ended

__all__ = ["WorkerBootError", "WorkerPool"]

BOOT_TIMEOUT_S: Final = 20.0
"""A start takes a fraction of a second; an overloaded host may need many of them."""
_ABORT_GRACE_NS: Final = 1_000_000_000
"""Between SIGABRT and SIGKILL: time for a traceback, and no more."""
LEAVE_GRACE_S: Final = 1.0
"""A worker leaves within one round (50 ms); one that does not is killed, which loses as little."""
_BACKOFF_FIRST_S: Final = 0.5
_BACKOFF_MAX_S: Final = 30.0
_SHORTAGE_MAX_S: Final = 5.0
"""Longest pause where the host lacked something: it may be there again at any moment, and a try
costs little."""
_WATCH_S: Final = 0.25
_UNREAD_NS: Final = 500_000_000
"""How long a socket may be without a reader before the steering leaves it out.  A replacement needs
less; what is queued meanwhile is not lost."""
_AWAY_NS: Final = 1_000_000_000
"""A watch that was late by this much was paused itself."""
_ANYWHERE: Final = Placement()

_log = structlog.get_logger(__name__)


class WorkerBootError(LocalError):
    """A worker cannot start, so neither can the relay."""


class WorkerPool:
    """Keeps one process alive for each worker number.

    Args:
        segment: shared memory; its descriptor goes to every worker.
        groups: sockets, one of each group for each worker.
        hang_timeout_s: longest silence of a packet loop.
        clock: time.
        placement: CPUs and busy polling of the workers.
    """

    def __init__(
        self,
        segment: Segment,
        groups: Sequence[ReuseportGroup],
        hang_timeout_s: float,
        clock: Clock,
        placement: Placement = _ANYWHERE,
    ) -> None:
        self._segment = segment
        self._groups = groups
        self._placement = placement
        self.set_hang_timeout(hang_timeout_s)
        self._clock = clock
        self._processes: dict[int, WorkerProcess] = {}
        self._failures: Counter[int] = Counter()
        self._retry_ns: dict[int, int] = {}
        """When to try again to start a worker that could not start."""
        self._unread: set[int] = set()
        """Workers whose sockets the steering leaves out."""
        self._released: set[int] = set()
        """Workers that are not this pool's to run: in a hot upgrade the other pool has them."""
        self._resumed_ns = 0
        """When the watch came back from a pause of the whole process group."""
        self._watcher: asyncio.Task[None] | None = None
        self._all_ready = asyncio.Event()
        self._boot_error: str | None = None
        self._booted = False
        self._stopping = False
        self.restarts: Counter[str] = Counter()
        """Replacements by cause: ``died``, ``hung``, ``boot_failed``."""

    def set_hang_timeout(self, hang_timeout_s: float) -> None:
        """Change the longest silence of a packet loop."""
        self._hang_ns = int(hang_timeout_s * 1e9)

    # -- What others ask -------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Number of workers wanted."""
        return self._segment.geometry.workers

    def pids(self) -> list[int]:
        """Return the process ids, in worker order."""
        return [process.popen.pid for _, process in sorted(self._processes.items())]

    def running(self) -> int:
        """Return the number of workers that are ready."""
        return sum(process.ready for process in self._processes.values())

    def heartbeat_ages_s(self) -> list[float]:
        """Return the seconds since each worker's last heartbeat."""
        now_ns = self._clock.now().mono_ns
        return [
            max(0, now_ns - WorkerRow(self._segment, number).heartbeat_ns) / 1e9
            for number in range(self.count)
        ]

    def cpu_seconds(self) -> dict[int, float]:
        """Return the CPU time of each worker that lives, by its number."""
        times: dict[int, float] = {}
        for number, process in self._processes.items():
            with contextlib.suppress(OSError):
                times[number] = process.cpu_s()
        return times

    def cookie_gates(self) -> int:
        """Return the number of workers that want cookies now."""
        rows = (WorkerRow(self._segment, number) for number in range(self.count))
        return sum(row.cookie_gate for row in rows)

    # -- Life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start all workers and wait until they serve.

        Raises:
            WorkerBootError: one of them cannot start.
        """
        try:
            for number in range(self.count):
                self._spawn(number)
        except OSError as error:
            self._boot_error = f"no worker can be started: {error.strerror}"
            self._all_ready.set()
        try:
            async with asyncio.timeout(BOOT_TIMEOUT_S):
                await self._all_ready.wait()
        except TimeoutError:
            self._boot_error = f"not all workers were ready within {BOOT_TIMEOUT_S:g} s"
        if self._boot_error:
            await self.stop(grace_s=0)
            raise WorkerBootError(self._boot_error)
        self._booted = True
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self, *, grace_s: float, quiet: bool = False) -> None:
        """Tell all workers to end; kill what is left after `grace_s` seconds.

        Args:
            grace_s: for all of them.
            quiet: say nothing to the peers.
        """
        self._stopping = True
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        processes = list(self._processes.values())
        for process in processes:
            process.tell_or_kill(LEAVE if quiet else STOP)
        try:
            async with asyncio.timeout(grace_s):
                for process in processes:
                    await process.gone.wait()
        except TimeoutError:
            for process in processes:
                process.signal(signal.SIGKILL)
        for process in processes:
            await process.gone.wait()

    # -- Hot upgrade -----------------------------------------------------------------------------

    def inherit(self) -> None:
        """Begin with no worker; each comes by `park` and `begin`."""
        self._booted = True
        self._released = set(range(self.count))
        self._watcher = asyncio.create_task(self._watch())

    async def park(self, number: int) -> None:
        """Start a worker that has everything ready and waits.

        Raises:
            WorkerBootError: it cannot start.
        """
        try:
            self._spawn(number, parked=True)
        except OSError as error:
            raise WorkerBootError(f"no worker can be started: {error.strerror}") from error
        process = self._processes[number]
        with contextlib.suppress(OSError):  # It ended meanwhile; then it says nothing more.
            if await process.says(PARKED, BOOT_TIMEOUT_S):
                process.control.send(OPEN)
                if await process.says(OPENED, BOOT_TIMEOUT_S):
                    return
        raise WorkerBootError(f"worker {number} of the new relay cannot start; see its log")

    async def begin(self, number: int) -> None:
        """Let a parked worker begin; the one before it must have ended.

        Raises:
            WorkerBootError: it does not.
        """
        process = self._processes[number]
        self._reset_row(number)
        process.parked = False
        process.spawned_ns = self._clock.now().mono_ns
        try:
            process.control.send(GO)
        except OSError as error:
            raise WorkerBootError(f"worker {number} of the new relay has ended") from error
        if not await process.says(READY, BOOT_TIMEOUT_S):
            raise WorkerBootError(f"worker {number} of the new relay does not begin")
        self._released.discard(number)

    async def release(self, number: int) -> None:
        """End a worker without a word to the peers, and do not replace it.

        Returns when it will touch nothing any more.
        """
        self._released.add(number)
        process = self._processes.get(number)
        if process is None or process.gone.is_set():
            return
        process.tell_or_kill(LEAVE)
        if not await process.says(LEFT, LEAVE_GRACE_S):
            process.signal(signal.SIGKILL)
            await process.gone.wait()

    async def reclaim(self) -> None:
        """Start the released workers again, after everybody who took their places is gone.

        A worker whose number was opened by another process meanwhile is replaced too: its lock
        words look like a dead one's as soon as the number is opened once more.
        """
        for number, process in list(self._processes.items()):
            opened = WorkerRow(self._segment, number).generation != process.generation
            if opened and process.ready and number not in self._released:
                await self.release(number)
        for number in sorted(self._released):
            process = self._processes[number]
            if not process.gone.is_set():
                await process.gone.wait()
            self._released.discard(number)
            self._start(number)

    def _reset_row(self, number: int) -> None:
        row = WorkerRow(self._segment, number)
        row.state, row.heartbeat_ns = WorkerState.BOOTING, self._clock.now().mono_ns

    # -- Processes -------------------------------------------------------------------------------

    def _spawn(self, number: int, *, parked: bool = False) -> None:
        now_ns = self._clock.now().mono_ns
        if not parked:
            self._reset_row(number)
        process = WorkerProcess.spawn(
            number,
            self._segment.fd,
            [group.socket_of(number).fileno() for group in self._groups],
            self._placement.arguments(number),
            now_ns=now_ns,
            parked=parked,
        )
        self._processes[number] = process
        loop = asyncio.get_running_loop()
        loop.add_reader(process.control, self._on_message, process)
        loop.add_reader(process.pidfd, self._on_exit, process)

    def _on_message(self, process: WorkerProcess) -> None:
        message = process.hear()
        if message is None:
            return
        if not message:
            # The exit is reported by the pidfd; an end that is readable for ever would spin.
            asyncio.get_running_loop().remove_reader(process.control)
        if READY in message:
            process.ready = True
            process.generation = WorkerRow(self._segment, process.number).generation
            self._failures.pop(process.number, None)
            took_ms = (self._clock.now().mono_ns - process.spawned_ns) // 1_000_000
            _log.info(
                "worker_ready", worker=process.number, pid=process.popen.pid, start_ms=took_ms
            )
            # In any case: the other relay of a hot upgrade may have steered around this socket.
            self._attach(self._unread - {process.number})
            if self.running() == self.count:
                self._all_ready.set()

    def _on_exit(self, process: WorkerProcess) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(process.pidfd)
        loop.remove_reader(process.control)
        was_ready = process.ready
        code = process.reap(self._clock.now().mono_ns)
        if self._stopping or process.parked or process.number in self._released:
            return
        if not self._booted:
            self._boot_error = f"worker {process.number} ended at its start ({how_it_ended(code)})"
            self._all_ready.set()
            return
        if was_ready and code != BOOT_FAILURE:
            self._replace_at_once(process, code)
        else:
            self._replace_later(process, code)

    def _replace_at_once(self, process: WorkerProcess, code: int) -> None:
        cause = "hung" if process.aborted_ns else "died"
        self.restarts[cause] += 1
        self._start(process.number)
        _log.error(
            "worker_replaced",
            worker=process.number,
            pid=process.popen.pid,
            cause=f"{cause}: {how_it_ended(code)}",
            next_step="sessions go on in the replacement; look above for a traceback",
        )

    def _replace_later(self, process: WorkerProcess, code: int) -> None:
        self.restarts["boot_failed"] += 1
        delay_s = self._put_off(process.number, _BACKOFF_MAX_S)
        _log.error(
            "worker_boot_failed",
            worker=process.number,
            cause=how_it_ended(code),
            retry_in_s=round(delay_s, 1),
            next_step="see the message above; the other workers serve on",
        )

    def _start(self, number: int) -> None:
        """Start a worker now, or leave it to the watch where the host cannot."""
        try:
            self._spawn(number)
        except OSError as error:
            delay_s = self._put_off(number, _SHORTAGE_MAX_S)
            _log.error(
                "worker_not_started",
                worker=number,
                cause=error.strerror or "unknown error",
                retry_in_s=round(delay_s, 1),
                next_step="the other workers serve its sessions; look at the limits of descriptors "
                "and processes of this service and at the memory of the host",
            )

    def _put_off(self, number: int, longest_s: float) -> float:
        """Choose when to start a worker again; the pauses grow.  Returns seconds."""
        self._failures[number] += 1
        doublings = min(self._failures[number] - 1, 16)
        delay_s = min(_BACKOFF_FIRST_S * (1 << doublings), longest_s) * random.uniform(0.8, 1.2)
        self._retry_ns[number] = self._clock.now().mono_ns + int(delay_s * 1e9)
        return delay_s

    # -- The watch -------------------------------------------------------------------------------

    async def _watch(self) -> None:
        pause_s = min(_WATCH_S, self._hang_ns / 5e9)
        last_ns = self._clock.now().mono_ns
        while True:
            await asyncio.sleep(pause_s)
            now_ns = self._clock.now().mono_ns
            if now_ns - last_ns > pause_s * 1e9 + _AWAY_NS:
                self._resumed_ns = now_ns
                _log.warning(
                    "watch_was_away",
                    away_ms=(now_ns - last_ns) // 1_000_000,
                    cause="this process was paused or got no CPU",
                    next_step="none, if the host or container was paused; else give it more CPU",
                )
            last_ns = now_ns
            try:
                self._look(now_ns)
            except Exception as error:  # noqa: BLE001 - the watch is the last thing to fall
                _log.error(
                    "watch_failed", exc_info=error, next_step="report this; the watch goes on"
                )

    def _look(self, now_ns: int) -> None:
        for process in list(self._processes.values()):
            if not process.gone.is_set():
                self._check(process, now_ns)
        for number in range(self.count):
            current = self._processes.get(number)
            missing = current is None or current.gone.is_set()
            wanted = number not in self._released and now_ns >= self._retry_ns.get(number, 0)
            if missing and wanted:
                self._start(number)
        self._steer({number for number in range(self.count) if self._is_unread(number, now_ns)})

    def _is_unread(self, number: int, now_ns: int) -> bool:
        process = self._processes.get(number)
        if process is None or number in self._released or process.parked:
            return False  # A successor has it, or a hot upgrade is on its way: it steers.
        return not process.ready and now_ns - (process.gone_ns or process.spawned_ns) > _UNREAD_NS

    def _steer(self, unread: set[int]) -> None:
        if unread == self._unread:
            return
        self._attach(unread)
        _log.warning("steering_changed", without_workers=sorted(unread))

    def _attach(self, unread: set[int]) -> None:
        self._unread = unread
        for group in self._groups:
            read = {w % len(group.sockets) for w in range(self.count) if w not in unread}
            group.steer_to(read)

    def _check(self, process: WorkerProcess, now_ns: int) -> None:
        if process.parked:
            return  # The one who parked it counts its time.
        if not process.ready:
            if now_ns - process.spawned_ns > BOOT_TIMEOUT_S * 1e9:
                process.signal(signal.SIGKILL)
            return
        if process.aborted_ns:
            if not process.killed and now_ns - process.aborted_ns > _ABORT_GRACE_NS:
                process.killed = True
                process.signal(signal.SIGKILL)
            return
        heartbeat_ns = WorkerRow(self._segment, process.number).heartbeat_ns
        silent_ns = now_ns - max(heartbeat_ns, self._resumed_ns)
        if silent_ns > self._hang_ns:
            _log.error(
                "worker_hung",
                worker=process.number,
                pid=process.popen.pid,
                silent_ms=silent_ns // 1_000_000,
                next_step="it is aborted and replaced; its traceback follows on stderr",
            )
            process.aborted_ns = now_ns
            process.signal(signal.SIGABRT)
