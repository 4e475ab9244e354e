"""Several processes over one segment: locks, windows and rates hold between real processes."""

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.engine import stress as native_stress_support
from support.paths import REPOSITORY
from support.relay.world import Peer, World, open_world

from wavry_peer.service.clock import Clock
from wavry_relay.engine import open_engine
from wavry_relay.engine.base import Drop, Forward
from wavry_relay.shm.control import EngineKind, Limits
from wavry_relay.shm.counters import CounterRow
from wavry_relay.shm.layout import RATE_BUCKET, SESSION, SHARED
from wavry_relay.shm.locks import LockBusyError

PROCESSES = 3


pytestmark = pytest.mark.usefixtures("native")


def start(world: World, job: str, worker: int, *arguments: object) -> "subprocess.Popen[bytes]":
    script = Path(native_stress_support.__file__)
    command = [sys.executable, script, job, world.segment.fd, worker, *arguments]
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        pass_fds=(world.segment.fd,),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def run_together(
    world: World, job: str, *arguments: object, each: list[Peer] | None = None
) -> list[list[int]]:
    """Run a job in all processes at the same time, `each` for its peer; what each reports."""
    of_worker = [words(peer) for peer in each] if each else [()] * PROCESSES
    with ExitStack() as stack:
        processes = [
            stack.enter_context(start(world, job, worker, *of_worker[worker], *arguments))
            for worker in range(PROCESSES)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"%d\n" % time.monotonic_ns())
            process.stdin.flush()
        reports = []
        for process in processes:
            raw, _ = process.communicate(timeout=60)
            assert process.returncode == 0
            reports.append(list(struct.unpack(f"<{len(raw) // 8}Q", raw)))
        return reports


@contextmanager
def shared_world(**limits: int) -> Iterator[World]:
    generous = Limits(ip_per_s=1000, ip_burst=1000, identity_per_s=1000, **limits)
    with open_world(kind=EngineKind.NATIVE, workers=PROCESSES + 1, limits=generous) as world:
        yield world


def real_time(*peers: Peer) -> None:
    """The processes use the host's clocks; the fake world's leases must outlast them."""
    for peer in peers:
        peer.slot.expires_ms = 1 << 62


def words(peer: Peer) -> tuple[str, str]:
    return peer.sid.bytes.hex(), ",".join(map(str, peer.address))


def test_no_sequence_is_accepted_twice() -> None:
    with shared_world() as world:
        client, server = world.session(hard_kbps=100_000_000, soft_kbps=100_000_000)
        real_time(client, server)
        reports = run_together(world, "same_sequences", *words(client), 60)
        everything = [sequence for report in reports for sequence in report]
        assert len(everything) == len(set(everything))
        assert len(everything) > 200, "0.3 s of several processes, on a machine that others use too"
        assert sum(bool(report) for report in reports) > 1
        assert world.count("drop_lock_busy") == 0


def test_a_peers_limit_holds_over_all_processes() -> None:
    with shared_world() as world:
        client, server = world.session(hard_kbps=8000)  # 1000 datagrams of 1000 bytes a second
        real_time(client, server)
        reports = run_together(world, "flood", *words(client), 1)
        passed = sum(report[0] for report in reports)
        span_s = (max(r[2] for r in reports) - min(r[1] for r in reports)) / 1e9
        assert passed <= 1000 * (span_s + 0.25) + 2
        assert passed > 500


@pytest.mark.parametrize("limit", [{"global_pps": 2000}, {"global_kbps": 16_000}], ids=str)
def test_a_global_limit_is_never_exceeded(limit: dict[str, int]) -> None:
    with shared_world(**limit) as world:
        # A session for each process: the lock of a shared one would keep them apart.
        sessions = [world.session(hard_kbps=100_000_000) for _ in range(PROCESSES)]
        for pair in sessions:
            real_time(*pair)
        reports = run_together(world, "flood", 1, each=[client for client, _ in sessions])
        passed = sum(report[0] for report in reports)
        span_s = (max(r[2] for r in reports) - min(r[1] for r in reports)) / 1e9
        assert passed <= 2000 * (span_s + 0.1) + 2
        assert passed > 1000


def test_locks_exclude_each_other_between_processes() -> None:
    with shared_world() as world:
        word = world.segment.geometry.regions["used_leases"].offset // 8
        reports = run_together(world, "count_under_locks", word, 6000)
        assert reports == [[6000]] * PROCESSES
        assert list(world.segment.u64[word : word + 3]) == [2000 * PROCESSES] * 3


@contextmanager
def holder(world: World, kind: str, number: int) -> Iterator["subprocess.Popen[bytes]"]:
    with start(world, "hold", 1, kind, number) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"locked\n"
            yield process
        finally:
            process.kill()


def test_lock_of_a_stopped_process_costs_packets_not_the_worker() -> None:
    with shared_world() as world:
        client, server = world.session()
        other, other_server = world.session()
        number = world.record(client.sid).number
        with holder(world, "session", number) as process:
            process.send_signal(signal.SIGSTOP)
            assert client.forward(1) == Drop("lock_busy")
            began_s = time.monotonic()
            for _ in range(200):  # later ones do not wait 50 ms each
                assert client.forward(1) == Drop("lock_busy")
            assert time.monotonic() - began_s < 1
            assert other.forward(1) == Forward(other_server.address)
            with pytest.raises(LockBusyError), world.engine.locks.session(number):
                pass
            process.kill()
            process.wait()
            assert client.forward(1) == Forward(server.address)


@pytest.mark.parametrize("kind", ["table", "session", "rate"])
@pytest.mark.parametrize("how", ["waiter", "replacement", "supervisor"])
def test_locks_of_a_killed_process_are_freed(kind: str, how: str) -> None:
    with shared_world() as world:
        segment = world.segment
        number = segment.geometry.regions["ip_rates"].offset if kind == "rate" else 0
        word = {
            "table": segment.geometry.regions["shared"].offset + SHARED["table_lock"].offset,
            "session": segment.geometry.regions["sessions"].offset + SESSION["lock"].offset,
            "rate": number + RATE_BUCKET["lock"].offset,
        }[kind]
        with holder(world, kind, number) as process:
            assert segment.u8[word]
            process.kill()
            process.wait()
        assert segment.u8[word]
        locks = world.engine.locks
        if how == "waiter":
            with locks.table() if kind == "table" else getattr(locks, kind)(number):
                assert segment.u8[word] == 1  # ours: worker 0
        elif how == "replacement":
            engine = open_engine(
                EngineKind.NATIVE, segment, (), CounterRow(segment, 1), world.clock
            )
            engine.close()
        else:
            assert locks.free_locks_of(1) == 1  # type: ignore[attr-defined]
            assert locks.free_locks_of(1) == 0  # type: ignore[attr-defined]
        assert segment.u8[word] == segment.u8[word + 1] == 0


def test_freeing_spares_the_locks_of_the_living() -> None:
    with shared_world() as world, world.engine.locks.session(3):
        for worker in range(PROCESSES + 1):
            assert world.engine.locks.free_locks_of(worker) == 0  # type: ignore[attr-defined]
        lock = world.segment.geometry.regions["sessions"].offset + 3 * SESSION.size
        assert world.segment.u8[lock] == 1


def test_locks_that_do_not_exist_are_refused() -> None:
    with shared_world() as world:
        for lock in (
            world.engine.locks.session(64),
            world.engine.locks.rate(8),
            world.engine.locks.rate(world.segment.geometry.total_bytes),
        ):
            with pytest.raises(ValueError, match="no such lock"), lock:
                pass


def test_kill_storm_leaves_the_tables_usable() -> None:
    """Workers die in the middle of anything; the next one goes on at once."""
    with shared_world() as world:
        client, server = world.session(hard_kbps=100_000_000)
        real_time(client, server)
        for number in range(12):
            process = start(world, "flood", 1 + number % PROCESSES, *words(client), 60)
            with process:
                assert process.stdout is not None
                assert process.stdin is not None
                assert process.stdout.readline() == b"ready\n"
                process.stdin.write(b"0\n")
                process.stdin.flush()
                time.sleep(0.02 + 0.003 * number)
                process.kill()
            # The flood charged the buckets at the host's time, which may be ahead of the fake one.
            world.clock.instant = Clock().now()
            head = client.slot.window_head
            assert client.forward(head) == Forward(server.address)
            assert client.forward(head) == Drop("duplicate")


def test_a_process_that_just_ends_says_nothing() -> None:
    with shared_world() as world:
        code = (
            "from support.engine import stress as n\n"
            f"segment, engine = n.attach({world.segment.fd}, 1)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"},
            pass_fds=(world.segment.fd,),
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
