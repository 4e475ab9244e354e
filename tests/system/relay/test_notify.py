"""sd_notify: what a service manager hears from real relays, or that nobody listens."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from support.relay.host import HostedRelay, ServiceManager, environment_of
from support.relay.mint import Mint
from support.relay.udp_peer import active_session
from support.relay.world import FakeClock, open_world
from support.waiting import wait_until

from wavry_peer.service.systemd import Notifier
from wavry_relay.shm.control import WorkerRow, WorkerState
from wavry_relay.supervisor.host import DrainReport, any_worker_serves

MINT = Mint()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServiceManager]:
    path = str(tmp_path / "notify.sock")
    where = path if request.param == "path" else f"@wavry-test-{os.getpid()}-{tmp_path.name}"
    with ServiceManager(where) as manager:
        yield manager


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[ServiceManager]:
    with ServiceManager(str(tmp_path / "notify.sock")) as manager:
        yield manager


# -- Real relays -----------------------------------------------------------------------------------


def test_ready_and_stopping(tmp_path: Path, manager: ServiceManager) -> None:
    with HostedRelay(tmp_path, MINT, manager=manager) as relay:
        ready = manager.wait_for(READY="1")
        assert ready["MAINPID"] == str(relay.facts["pid"])
        assert ready["STATUS"] == f"Serving {relay.udp[0]} with 2 workers"
        assert relay.stop() == 0
        stopping = manager.wait_for(STOPPING="1")
        assert stopping["STATUS"] == "Stopping, 0 sessions left"


def test_reload_is_announced_with_its_time(tmp_path: Path, listener: ServiceManager) -> None:
    with HostedRelay(tmp_path, MINT, manager=listener) as relay:
        listener.wait_for(READY="1")
        relay.send_signal(signal.SIGHUP)
        reloading = listener.wait_for(RELOADING="1")
        assert int(reloading["MONOTONIC_USEC"]) > 0
        wait_until(lambda: listener.collect()[-1].get("READY") == "1", what="ready again")
        assert listener.messages[-1]["STATUS"].endswith("last reload: unchanged")


def test_drain_tells_the_sessions_left_and_asks_for_time(
    tmp_path: Path, listener: ServiceManager
) -> None:
    relay = HostedRelay(tmp_path, MINT, manager=listener, WAVRY_RELAY_DRAIN_TIMEOUT_S="60")
    with relay, active_session(relay, MINT):
        listener.wait_for(READY="1")
        relay.send_signal(signal.SIGTERM)
        listener.wait_for(STOPPING="1")
        draining = listener.wait_for(STATUS="Draining: 1 sessions left")
        assert int(draining["EXTEND_TIMEOUT_USEC"]) > 2_000_000
        listener.wait_for(STATUS="Draining: 1 sessions left")  # and again
        relay.send_signal(signal.SIGTERM)
        assert relay.wait() == 0


def test_watchdog_is_fed_while_one_of_two_workers_serves(
    tmp_path: Path, listener: ServiceManager
) -> None:
    relay = HostedRelay(
        tmp_path,
        MINT,
        manager=listener,
        WATCHDOG_USEC="200000",
        WAVRY_RELAY_HANG_TIMEOUT_S="600",
    )
    with relay:
        for _ in range(3):
            listener.wait_for(WATCHDOG="1")
        workers = relay.worker_pids()
        os.kill(workers[0], signal.SIGSTOP)
        listener.wait_for(WATCHDOG="1")  # one of two is enough
        for pid in workers:
            os.kill(pid, signal.SIGCONT)


def test_watchdog_starves_with_the_supervisor(tmp_path: Path, listener: ServiceManager) -> None:
    with HostedRelay(tmp_path, MINT, manager=listener, WATCHDOG_USEC="100000") as relay:
        listener.wait_for(WATCHDOG="1")
        relay.send_signal(signal.SIGSTOP)
        listener.collect(0.3)
        before = len(listener.messages)
        assert len(listener.collect(0.5)) == before
        relay.send_signal(signal.SIGCONT)
        listener.wait_for(WATCHDOG="1")


def test_watchdog_is_fed_until_the_stop_is_done(tmp_path: Path, listener: ServiceManager) -> None:
    """Workers that do not end by themselves take the stop's whole grace: 2 s, as the watchdog's."""
    relay = HostedRelay(
        tmp_path, MINT, manager=listener, WATCHDOG_USEC="100000", WAVRY_RELAY_HANG_TIMEOUT_S="600"
    )
    with relay:
        listener.wait_for(READY="1")
        for pid in relay.worker_pids():
            os.kill(pid, signal.SIGSTOP)
        relay.send_signal(signal.SIGTERM)
        listener.wait_for(STOPPING="1")
        for _ in range(5):
            listener.wait_for(WATCHDOG="1")
        assert relay.wait() == 0


def test_workers_cannot_speak_for_the_relay(tmp_path: Path, listener: ServiceManager) -> None:
    with HostedRelay(tmp_path, MINT, manager=listener, WATCHDOG_USEC="1000000") as relay:
        for pid in relay.worker_pids():
            environment = environment_of(pid)
            assert "NOTIFY_SOCKET" not in environment
            assert "WATCHDOG_USEC" not in environment


def test_manager_that_is_gone_is_logged_once_and_harms_nothing(tmp_path: Path) -> None:
    relay = HostedRelay(tmp_path, MINT, WATCHDOG_USEC="20000", NOTIFY_SOCKET=str(tmp_path / "none"))
    with relay, active_session(relay, MINT) as (client, server):
        client.forward()
        assert server.receive() == (1, b"hello")
        wait_until(lambda: relay.events("service_manager_unreachable"), what="warning")
        assert relay.stop() == 0
    assert len(relay.events("service_manager_unreachable")) == 1


# -- Pieces ----------------------------------------------------------------------------------------


def test_without_a_manager_nothing_is_sent_and_nothing_logged() -> None:
    with structlog.testing.capture_logs() as logs:
        Notifier.from_environ({}, 1).ready("Serving")
    assert not logs


def test_successor_takes_the_place(listener: ServiceManager) -> None:
    """What a hot upgrade does: the old process names the new one, which finds the manager."""
    environ = {"NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": "5", "WATCHDOG_PID": "7"}
    old = Notifier.from_environ(environ, 7)
    assert not environ
    old.main_pid(8)
    assert listener.wait_for(MAINPID="8") == {"MAINPID": "8"}
    new = Notifier.from_environ(dict(old.environment), 8)
    assert new.watchdog_us == 5
    new.ready("Serving")
    listener.wait_for(READY="1", STATUS="Serving")


def test_watchdog_of_another_process_is_not_ours() -> None:
    environ = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "5", "WATCHDOG_PID": "7"}
    assert Notifier.from_environ(environ, 8).watchdog_us == 0


async def test_watchdog_starves_when_the_service_does_not_serve(listener: ServiceManager) -> None:
    notifier, well = Notifier(listener.address, watchdog_us=20_000), False
    task = asyncio.create_task(notifier.keep_watchdog(lambda: well))
    await asyncio.sleep(0.2)
    assert listener.collect() == []
    well = True
    async with asyncio.timeout(10):
        while {"WATCHDOG": "1"} not in listener.collect():  # noqa: ASYNC110 - a socket's state
            await asyncio.sleep(0.01)
    task.cancel()


def test_text_cannot_smuggle_a_state(listener: ServiceManager) -> None:
    Notifier(listener.address).status("fine\nWATCHDOG=1")
    assert listener.wait_for() == {"STATUS": "fine WATCHDOG=1"}


def test_drain_report_is_not_sent_more_than_once_a_second(listener: ServiceManager) -> None:
    clock, report = FakeClock(), DrainReport(Notifier(listener.address))
    for _ in range(30):
        report.tell(3, clock.now().mono_ns)
        clock.advance(0.1)
    assert len(listener.collect(0.1)) == 3


@pytest.mark.parametrize(
    ("states", "ages_s", "serves"),
    [
        ((WorkerState.RUNNING, WorkerState.RUNNING), (9, 1), True),
        ((WorkerState.RUNNING, WorkerState.RUNNING), (9, 9), False),
        ((WorkerState.BOOTING, WorkerState.RUNNING), (1, 9), False),
        ((WorkerState.BOOTING, WorkerState.BOOTING), (0, 0), False),
    ],
)
def test_fresh_heartbeat_of_one_worker_is_enough(
    states: tuple[WorkerState, ...], ages_s: tuple[int, ...], serves: bool
) -> None:
    with open_world(workers=2) as world:
        now_ns = world.now.mono_ns
        for number, (state, age_s) in enumerate(zip(states, ages_s, strict=True)):
            row = WorkerRow(world.segment, number)
            row.state, row.heartbeat_ns = state, now_ns - age_s * 1_000_000_000
        assert any_worker_serves(world.segment, now_ns, 5.0) is serves
