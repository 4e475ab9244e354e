"""Workers that cannot start."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest
from support.paths import REPOSITORY
from support.relay.world import RELAY_ID

from wavry_peer.service.clock import SystemClock
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
    yield WorkerPool(segment, [group], 5.0, SystemClock())
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


async def test_worker_that_is_terminated_by_hand_is_replaced(pool: WorkerPool) -> None:
    await pool.start()
    try:
        before = pool.pids()
        os.kill(before[1], signal.SIGTERM)
        await until(lambda: pool.restarts["died"] == 1 and pool.running() == 2, "replacement")
        assert pool.pids()[0] == before[0]
        assert pool.pids()[1] != before[1]
    finally:
        await pool.stop(grace_s=2)


async def test_interrupt_of_the_terminal_is_not_the_workers_business(pool: WorkerPool) -> None:
    await pool.start()
    try:
        for pid in pool.pids():
            os.kill(pid, signal.SIGINT)
        await asyncio.sleep(0.2)
        assert pool.running() == 2
        assert not pool.restarts
    finally:
        await pool.stop(grace_s=2)
