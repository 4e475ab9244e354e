"""Workers that cannot start."""

import asyncio
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from support.paths import REPOSITORY
from support.relay.world import RELAY_ID

from wavry_peer.protocol.constants import STUN_COOKIE
from wavry_peer.service.clock import Clock
from wavry_relay.shm.control import ControlBlock, EngineKind, Limits
from wavry_relay.shm.layout import HEAD, Geometry
from wavry_relay.shm.segment import Segment
from wavry_relay.supervisor import pool as worker_pool
from wavry_relay.supervisor.pool import WorkerBootError, WorkerPool
from wavry_relay.udp.sockets import open_group

VERSION_AT = HEAD["version"].offset // 4


@pytest.fixture
def segment() -> Iterator[Segment]:
    segment = Segment.anonymous(Geometry(2, 10), now_ns=0)
    ControlBlock(segment).initialise(RELAY_ID, Limits(), EngineKind.REFERENCE)
    yield segment
    segment.close()


@pytest.fixture
def pool(segment: Segment, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerPool]:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(worker_pool, "_BACKOFF_FIRST_S", 0.05)
    group = open_group("127.0.0.1", 0, 2, 65_536)
    yield WorkerPool(segment, [group], 5.0, Clock())
    group.close()


async def until(condition, what: str) -> None:
    async with asyncio.timeout(15):
        while not condition():  # noqa: ASYNC110 - the condition is a process's, not ours
            await asyncio.sleep(0.01)


async def test_worker_that_cannot_start_ends_the_start(segment: Segment, pool: WorkerPool) -> None:
    segment.u32[VERSION_AT] += 1
    with pytest.raises(WorkerBootError, match="exit code 3"):
        await pool.start()


async def test_replacement_that_cannot_start_is_tried_again_with_growing_delays(
    segment: Segment, pool: WorkerPool
) -> None:
    await pool.start()
    try:
        segment.u32[VERSION_AT] += 1
        os.kill(pool.pids()[0], signal.SIGKILL)
        await until(lambda: pool.restarts["boot_failed"] >= 3, "three failed starts")
        assert pool.running() == 1
        segment.u32[VERSION_AT] -= 1
        await until(lambda: pool.running() == 2, "recovery")
        assert pool.restarts["died"] == 1
    finally:
        await pool.stop(grace_s=2)


async def test_a_worker_for_which_there_was_no_descriptor_is_started_later(
    pool: WorkerPool,
) -> None:
    await pool.start()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            for pid in pool.pids():
                os.kill(pid, signal.SIGKILL)
            await until(lambda: pool.running() == 0, "the end of both")
            await asyncio.sleep(0.5)  # Several tries fail.
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await until(lambda: pool.running() == 2, "recovery")
    finally:
        await pool.stop(grace_s=2)


async def test_no_descriptor_at_the_start_is_said(pool: WorkerPool) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    asyncio.get_running_loop()
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(WorkerBootError, match="Too many open files"):
            await pool.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_pause_of_the_whole_group_aborts_nobody(
    pool: WorkerPool,
) -> None:
    pool.set_hang_timeout(1.0)
    await pool.start()
    try:
        before = pool.pids()
        for pid in before:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2.5)  # noqa: ASYNC251 - the watch is paused as well: that is the test
        for pid in before:
            os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(0.8)
        assert pool.pids() == before
        assert not pool.restarts
        os.kill(before[0], signal.SIGSTOP)
        await until(lambda: pool.restarts["hung"] == 1, "a worker that hangs alone is replaced")
    finally:
        await pool.stop(grace_s=2)


def answers(port: int, number: int) -> bool:
    """Whether a relay answers a STUN request that the steering gives to worker `number` of 2."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.settimeout(0.1)
        peer.sendto(
            struct.pack("!HHI", 1, 0, STUN_COOKIE) + bytes(8) + struct.pack("!I", number),
            ("127.0.0.1", port),
        )
        try:
            return bool(peer.recv(200))
        except TimeoutError:
            return False


async def test_sessions_of_a_missing_worker_go_to_another_and_come_back(
    segment: Segment, pool: WorkerPool
) -> None:
    await pool.start()
    port = pool._groups[0].port
    try:
        segment.u32[VERSION_AT] += 1
        os.kill(pool.pids()[0], signal.SIGKILL)
        await until(lambda: answers(port, 0), "answers in the place of the missing worker")
        assert pool.running() == 1
        assert answers(port, 1)
        segment.u32[VERSION_AT] -= 1
        await until(lambda: pool.running() == 2, "the worker")
        os.kill(pool.pids()[1], signal.SIGSTOP)  # Each has its own sessions again.
        assert answers(port, 0)
        assert not answers(port, 1)
        os.kill(pool.pids()[1], signal.SIGCONT)
    finally:
        await pool.stop(grace_s=2)


async def test_a_worker_that_begins_is_steered_to_whatever_another_relay_had_attached(
    pool: WorkerPool,
) -> None:
    """In a hot upgrade both relays steer the same sockets."""
    await pool.start()
    port = pool._groups[0].port
    try:
        pool._groups[0].steer_to({1})  # The other relay left worker 0 out.
        os.kill(pool.pids()[0], signal.SIGKILL)
        await until(lambda: pool.restarts["died"] == 1 and pool.running() == 2, "replacement")
        os.kill(pool.pids()[1], signal.SIGSTOP)
        await until(lambda: answers(port, 0), "answers of worker 0")
        os.kill(pool.pids()[1], signal.SIGCONT)
    finally:
        await pool.stop(grace_s=2)


async def test_signals_to_the_whole_group_are_not_the_workers_business(pool: WorkerPool) -> None:
    await pool.start()
    try:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            for pid in pool.pids():
                os.kill(pid, number)
        await asyncio.sleep(0.2)
        assert pool.running() == 2
        assert not pool.restarts
    finally:
        await pool.stop(grace_s=2)
