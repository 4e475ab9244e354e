"""Hot upgrade: real relays, real successors, traffic all the time.

A "new version" is the program that the relay was started with, changed on the disk meanwhile.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from support.needs import need_native
from support.paths import REPOSITORY
from support.relay.fake_master import FakeMaster
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.relay.udp_peer import NumberedStream, UdpPeer, active_session
from support.waiting import is_alive, wait_until
from typer.testing import CliRunner

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets
from wavry_relay.cli import app

MINT = Mint()
Start = Callable[..., RelayProcess]
SAME_VERSION = "from wavry_relay.cli import main\nmain()\n"
NEW_VERSION_WITH = """\
import asyncio, os, signal, sys, time
{patch}
from wavry_relay.cli import main
main()
"""
AT_WORKER_1 = """\
from wavry_relay.upgrade import successor
from wavry_relay.upgrade.messages import Release
ask = successor.Predecessor._ask
async def ask_or_not(self, question, expected, pool):
    if question == Release(1):
        {action}
    return await ask(self, question, expected, pool)
successor.Predecessor._ask = ask_or_not
"""


def wavry_relay(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


class Versions:
    """The installed program of a relay."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.write_text(SAME_VERSION)

    def install(self, patch: str) -> None:
        """Replace it by one that differs in `patch`."""
        self.path.write_text(NEW_VERSION_WITH.format(patch=textwrap.dedent(patch)))


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(tmp_path / "installed.py")


@pytest.fixture
def start(tmp_path: Path, versions: Versions) -> Iterator[Start]:
    """Start relays of the installed version; none may leave anything behind."""
    started: list[RelayProcess] = []

    def make(name: str = "relay", **options: Any) -> RelayProcess:
        made = RelayProcess(tmp_path / name, MINT, launcher=versions.path, **options)
        started.append(made)
        return made.start()

    yield make
    for one in started:
        one.close()
    for one in started:
        assert "Traceback" not in one.log()
        assert not processes_naming(str(one.state_dir))
        assert not one.shm_path.exists()
        assert not (one.state_dir / "control.sock").exists()
        assert not (one.state_dir / ".ctl.new").exists()


def processes_naming(text: str) -> list[str]:
    """Living processes with `text` in their environment: everything that a relay has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if text.encode() in (entry / "environ").read_bytes():
                    found.append(entry.name)
    return found


def upgrade(relay: RelayProcess) -> dict[str, Any]:
    """Upgrade by the command; the outcome.  Afterwards `relay` is the new process."""
    done = wavry_relay("upgrade", "--state-dir", str(relay.state_dir))
    assert done.exit_code == 0, done.output + relay.log()
    outcome: dict[str, Any] = json.loads(done.stdout)
    relay.follow()
    assert outcome["pid"] == relay.facts["pid"]
    return outcome


def failed_upgrade(relay: RelayProcess) -> str:
    """Upgrade, which must fail and leave the old process; what the command says."""
    done = wavry_relay("upgrade", "--state-dir", str(relay.state_dir))
    assert done.exit_code == 1, done.output
    assert not relay.exited
    return done.output


def traffic(relay: RelayProcess, stack: ExitStack, sessions: int = 4) -> list[NumberedStream]:
    """Streams of some sessions, so that every worker has some."""
    return [
        stack.enter_context(NumberedStream(stack.enter_context(active_session(relay, MINT))))
        for _ in range(sessions)
    ]


OF_A_PROCESS = {"process_cpu_seconds_total", "wavry_relay_worker_cpu_seconds_total"}
"""Counters of a process begin again with it, as Prometheus expects."""


def counters(relay: RelayProcess) -> dict[str, float]:
    """Every counter of the relay with its labels."""
    lines = relay.get("/metrics")[1].decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {
        series: float(value)
        for series, value in pairs
        if (name := series.partition("{")[0]).endswith("_total") and name not in OF_A_PROCESS
    }


IN_HAND = 64
"""Datagrams that a worker takes at a time."""


def assert_old_relay_goes_on(
    relay: RelayProcess, streams: list[NumberedStream], *, lost_at_most: int = 0
) -> None:
    wait_until(lambda: relay.health()["workers"]["running"] == 2, what="both workers")
    for stream in streams:
        stream.wait_for_more()
        stream.finish(lost_at_most=lost_at_most)
    assert relay.health()["pid"] == relay.facts["pid"]
    with active_session(relay, MINT) as (client, server):
        client.forward()
        assert server.receive() == (1, b"hello")


# -- It works ----------------------------------------------------------------------------------


def test_upgrade_under_traffic_loses_and_repeats_nothing(start: Start, engine: str) -> None:
    relay = start(WAVRY_RELAY_ENGINE=engine)
    with ExitStack() as stack:
        streams = traffic(relay, stack)
        for stream in streams:
            stream.wait_for_more()
        before, workers = counters(relay), relay.worker_pids()
        inode = relay.shm_path.stat().st_ino
        outcome = upgrade(relay)
        assert outcome["workers"] == 2
        for stream in streams:
            stream.wait_for_more()
            stream.finish()
    after, health = counters(relay), relay.health()
    assert {name for name in before if after[name] < before[name]} == set()
    assert (
        after["wavry_relay_packets_forwarded_total"]
        > (before["wavry_relay_packets_forwarded_total"])
    )
    assert relay.metric("wavry_relay_sessions_created_total") == 4
    assert relay.metric("wavry_relay_sessions", state="active") == 4
    assert relay.metric("wavry_relay_upgrades_total", result="done") == 1
    assert relay.metric("wavry_relay_worker_restarts_total", cause="died") == 0
    assert health["pid"] == relay.facts["pid"]
    assert health["upgrades"] == {"done": 1, "failed": 0}
    assert health["engine"]["name"] == engine
    assert not set(workers) & set(relay.worker_pids())
    assert not any(map(is_alive, workers))
    assert relay.shm_path.stat().st_ino == inode


def test_upgrade_twice_in_a_row(start: Start) -> None:
    relay = start()
    with active_session(relay, MINT) as peers, NumberedStream(peers) as stream:
        for _ in range(2):
            stream.wait_for_more()
            upgrade(relay)
        stream.wait_for_more()
        stream.finish()
    assert relay.metric("wavry_relay_upgrades_total", result="done") == 2


def test_sigusr2_upgrades(start: Start) -> None:
    relay = start()
    with active_session(relay, MINT) as peers, NumberedStream(peers) as stream:
        stream.wait_for_more()
        relay.send_signal(signal.SIGUSR2)
        relay.follow()
        stream.wait_for_more()
        stream.finish()
    assert relay.events("handed_over")
    assert relay.events("taken_over")


def test_upgrade_by_hand(start: Start, tmp_path: Path) -> None:
    relay = start()
    with active_session(relay, MINT) as peers, NumberedStream(peers) as stream:
        stream.wait_for_more()
        with (tmp_path / "by_hand.log").open("wb") as log:
            successor = subprocess.Popen(
                relay.command("--take-over", "--ready-file", str(relay.ready_file)),
                cwd=REPOSITORY, env=relay.environ, stdout=log, stderr=log,
            )  # fmt: skip
        relay.follow()
        assert relay.facts["pid"] == successor.pid
        stream.wait_for_more()
        stream.finish()
        relay.process = successor
    assert relay.stop() == 0


def test_drain_survives_an_upgrade(start: Start) -> None:
    relay = start()
    wavry_relay("drain", "--state-dir", str(relay.state_dir))
    upgrade(relay)
    assert relay.health()["draining"] == ["local"]
    with UdpPeer(MINT, relay.relay_id, relay.udp[0], uuid.uuid4(), c.Role.CLIENT) as late:
        packet = late.ask(late.present_datagram())
        assert packet.body == packets.LeaseReject(c.RejectReason.DRAINING)


def test_used_lease_is_replayed_after_an_upgrade(start: Start) -> None:
    relay = start()
    with active_session(relay, MINT) as (client, _):
        presented = client.present_datagram()
        assert isinstance(client.ask(presented).body, packets.LeaseAck)
        upgrade(relay)
        assert client.ask(presented).body == packets.LeaseReject(c.RejectReason.REPLAYED)


def test_cookies_survive_an_upgrade(start: Start) -> None:
    """A challenge of the old relay is answered to the new one."""
    relay = start()
    with active_session(relay, MINT) as (client, server):
        client.move()
        client.sequence += 1
        packet = client.ask(packets.build_forward(client.sid.bytes, bytes(7) + b"\1"))
        assert isinstance(packet.body, packets.PathChallenge)
        upgrade(relay)
        client.present(cookie=packet.body.cookie)
        server.forward(b"to the new port")
        assert client.receive() == (1, b"to the new port")


def test_proof_of_an_address_survives_an_upgrade(start: Start) -> None:
    """The new relay sends there all that comes, with no new cookie."""
    relay = start()
    with active_session(relay, MINT) as (client, server):
        upgrade(relay)
        for _ in range(10):
            sequence = client.forward(bytes(1000))
            assert server.receive() == (sequence, bytes(1000))
        assert not relay.metric("wavry_relay_packets_dropped_total", reason="unproved_path")


def test_new_limits_hold_and_the_tables_keep_their_size(start: Start, versions: Versions) -> None:
    relay = start()
    versions.install(
        """
        os.environ["WAVRY_RELAY_MAX_PPS"] = "1"
        os.environ["WAVRY_RELAY_WORKERS"] = "3"
        os.environ["WAVRY_RELAY_MAX_SESSIONS"] = "200"
        """
    )
    upgrade(relay)
    health = relay.health()
    assert (health["workers"]["wanted"], health["sessions"]["max"]) == (2, 100)
    assert {event["setting"] for event in relay.events("setting_kept")} == {
        "WAVRY_RELAY_WORKERS", "WAVRY_RELAY_MAX_SESSIONS",
    }  # fmt: skip
    with active_session(relay, MINT) as (client, _):
        for _ in range(50):
            client.forward()
        wait_until(
            lambda: relay.metric("wavry_relay_packets_dropped_total", reason="global_rate") > 0,
            what="the new limit",
        )


def test_master_sees_a_new_registration_and_no_farewell(start: Start) -> None:
    with FakeMaster(MINT) as master:
        relay = start(WAVRY_RELAY_MASTER_URL=master.url)
        wait_until(lambda: master.heartbeats, what="first heartbeat")
        upgrade(relay)
        wait_until(lambda: relay.get("/ready")[0] == 200, what="registered again")
        assert len(master.registered) == 2
        assert master.registered[0]["relay_id"] == master.registered[1]["relay_id"]
        assert master.deregistered == []
        assert relay.metric("wavry_relay_master_registrations_total", result="ok") == 2
        relay.stop()
        wait_until(lambda: master.deregistered == [relay.relay_id], what="farewell at the end")


def test_kill_of_the_successor_later_is_cleaned_up_by_the_next_start(start: Start) -> None:
    relay = start()
    upgrade(relay)
    workers = relay.worker_pids()
    relay.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, workers)), what="workers gone")
    inode = relay.shm_path.stat().st_ino
    relay.start()
    assert relay.shm_path.stat().st_ino != inode
    with active_session(relay, MINT) as (client, server):
        client.forward()
        assert server.receive() == (1, b"hello")


def test_dead_worker_is_replaced_after_an_upgrade(start: Start) -> None:
    relay = start()
    upgrade(relay)
    victim = relay.worker_pids()[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(
        lambda: relay.metric("wavry_relay_worker_restarts_total", cause="died") == 1,
        what="replacement",
    )
    wait_until(lambda: relay.health()["workers"]["running"] == 2, what="both workers")


def test_peers_hear_of_the_shutdown_of_the_successor(start: Start) -> None:
    relay = start()
    with active_session(relay, MINT) as (client, _):
        upgrade(relay)
        relay.send_signal(signal.SIGTERM)
        packet = packets.parse_packet(client.sock.recv(2048))
        assert packet.body == packets.Notice(c.NoticeCode.SHUTDOWN)


# -- It fails, and the old relay goes on -------------------------------------------------------


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ("sys.exit(7)", "exit code 7"),
        (
            """
            from wavry_relay.shm import layout
            layout.LAYOUT_VERSION += 1
            """,
            "another layout",
        ),
        ('os.environ["WAVRY_RELAY_ENGINE"] = "reference"', "engine"),
        ('os.environ["WAVRY_RELAY_LISTEN"] = "127.0.0.1:0,[::1]:0"', "listen addresses"),
        ('os.environ["WAVRY_RELAY_OPS_LISTEN"] = "[::1]:0"', "ops address"),
        ('os.environ["WAVRY_RELAY_ROOT_KEY"] = "A" * 43', "root key"),
        ("sys.executable = '/bin/false'", "worker 0 of the new relay cannot start"),
        (AT_WORKER_1.format(action="os.kill(os.getpid(), signal.SIGKILL)"), "connection"),
        (AT_WORKER_1.format(action="raise RuntimeError('defect')"), "connection"),
    ],
    ids=[
        "cannot start", "other layout", "other engine", "other addresses", "other ops address",
        "other root", "workers cannot start", "killed mid-way", "defect mid-way",
    ],
)  # fmt: skip
def test_old_relay_goes_on_where_the_new_one(
    start: Start, versions: Versions, patch: str, said: str, request: pytest.FixtureRequest
) -> None:
    if "other engine" in request.node.name:
        need_native()
    # A native engine refuses to load under a layout that it was not built for: before any question.
    relay = start(WAVRY_RELAY_ENGINE="reference" if "layout" in request.node.name else "auto")
    if "defect" in request.node.name:
        patch += "\nsys.stderr = open(os.devnull, 'w')  # its traceback is expected\n"
    with ExitStack() as stack:
        streams = traffic(relay, stack)
        for stream in streams:
            stream.wait_for_more()
        inode = relay.shm_path.stat().st_ino
        versions.install(patch)
        output = failed_upgrade(relay)
        assert said in output
        assert "goes on" in output
        killed = "killed" in request.node.name
        assert_old_relay_goes_on(relay, streams, lost_at_most=IN_HAND if killed else 0)
    assert relay.shm_path.stat().st_ino == inode
    assert relay.metric("wavry_relay_upgrades_total", result="failed") == 1
    assert relay.events("upgrade_failed")[0]["next_step"]
    versions.path.write_text(SAME_VERSION)
    upgrade(relay)
    assert relay.health()["upgrades"] == {"done": 1, "failed": 1}


def test_number_that_a_dead_successor_opened_is_opened_anew(
    start: Start, versions: Versions
) -> None:
    """Its worker lived on: one opening later its locks would look like a dead one's."""
    need_native()
    relay = start(WAVRY_RELAY_ENGINE="native")
    workers = relay.worker_pids()
    versions.install(AT_WORKER_1.format(action="os.kill(os.getpid(), signal.SIGKILL)"))
    failed_upgrade(relay)
    wait_until(lambda: relay.health()["workers"]["running"] == 2, what="both workers")
    wait_until(lambda: not set(workers) & set(relay.worker_pids()), what="both are new ones")


def test_successor_that_hangs_is_ended(start: Start, versions: Versions) -> None:
    versions.install("from wavry_relay.upgrade import handover\nhandover.STEP_TIMEOUT_S = 1.0")
    relay = start()
    with ExitStack() as stack:
        streams = traffic(relay, stack)
        versions.install(AT_WORKER_1.format(action="time.sleep(1000)"))
        assert "did not go on in time" in failed_upgrade(relay)
        assert_old_relay_goes_on(relay, streams, lost_at_most=IN_HAND)


def test_successor_that_fails_after_the_commit_is_undone(start: Start, versions: Versions) -> None:
    with FakeMaster(MINT) as master:
        relay = start(WAVRY_RELAY_MASTER_URL=master.url)
        wait_until(lambda: relay.get("/ready")[0] == 200, what="registration")
        with ExitStack() as stack:
            streams = traffic(relay, stack)
            versions.install(
                """
                from wavry_relay.supervisor import supervisor
                supervisor.announce = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
                """
            )
            failed_upgrade(relay)
            assert_old_relay_goes_on(relay, streams, lost_at_most=IN_HAND)
        wait_until(lambda: relay.get("/ready")[0] == 200, what="registered again")
        assert master.deregistered == []
    status = wavry_relay("status", "--state-dir", str(relay.state_dir))
    assert json.loads(status.stdout)["pid"] == relay.facts["pid"]


def test_limits_of_a_failed_upgrade_are_taken_back(start: Start, versions: Versions) -> None:
    relay = start()
    versions.install(
        'os.environ["WAVRY_RELAY_MAX_PPS"] = "1"\n'
        + AT_WORKER_1.format(action="os.kill(os.getpid(), signal.SIGKILL)")
    )
    failed_upgrade(relay)
    with active_session(relay, MINT) as peers, NumberedStream(peers) as stream:
        stream.wait_for_more(200)
        stream.finish()


def test_kill_of_the_old_relay_mid_way_leaves_the_new_one(start: Start, versions: Versions) -> None:
    relay = start()
    with ExitStack() as stack:
        streams = traffic(relay, stack)
        for stream in streams:
            stream.wait_for_more()
        versions.install(AT_WORKER_1.format(action="os.kill(self.facts.pid, signal.SIGKILL)"))
        relay.ready_file.unlink()
        relay.send_signal(signal.SIGUSR2)
        assert relay.wait(30) == -signal.SIGKILL
        wait_until(relay.ready_file.exists, timeout_s=30, what="the successor serves")
        relay.adopt()
        for stream in streams:
            stream.wait_for_more()
            stream.finish(lost_at_most=IN_HAND)
    assert relay.metric("wavry_relay_sessions", state="active") == 4
    assert relay.events("predecessor_died")


def test_sigterm_in_the_middle_of_an_upgrade_stops_both(start: Start, versions: Versions) -> None:
    relay = start()
    versions.install(AT_WORKER_1.format(action="await asyncio.sleep(1000)"))
    relay.send_signal(signal.SIGUSR2)
    wait_until(lambda: relay.events("handing_over"), timeout_s=20, what="upgrade begun")
    relay.send_signal(signal.SIGTERM)
    assert relay.wait(30) == 0


def test_one_upgrade_at_a_time(start: Start, versions: Versions) -> None:
    relay = start()
    versions.install("time.sleep(3)")
    relay.send_signal(signal.SIGUSR2)
    wait_until(lambda: relay.events("upgrade_started"), what="first upgrade")
    assert "an upgrade is under way" in failed_upgrade(relay)
    relay.follow()


# -- The control socket ------------------------------------------------------------------------


async def converse(relay: RelayProcess, *lines: bytes) -> list[dict[str, Any]]:
    reader, writer = await asyncio.open_unix_connection(relay.state_dir / "control.sock")
    answers = []
    try:
        for line in lines:
            writer.write(line + b"\n")
            answers.append(json.loads(await asyncio.wait_for(reader.readline(), 10)))
    finally:
        writer.close()
        await writer.wait_closed()
    return answers


@pytest.mark.parametrize(
    "line",
    [
        b'{"command": "take-over"}',
        b'{"command": "take-over", "pid": "x"}',
        (
            b'{"command": "take-over", "version": "1", "layout": "1", "engine": "native",'
            b' "relay_id": "x", "listen": [], "ops_listen": "x", "root_key": "", "pid": 1}'
        ),
    ],
    ids=["empty", "wrong type", "another pid"],
)
async def test_take_over_that_does_not_fit_is_refused(start: Start, line: bytes) -> None:
    relay = await asyncio.to_thread(start)
    (answer,) = await converse(relay, line)
    assert answer["type"] == "refused"
    assert answer["reason"]
    assert (await asyncio.to_thread(relay.health))["workers"]["running"] == 2


async def test_line_that_is_nested_too_deeply_gets_an_answer(start: Start) -> None:
    relay = await asyncio.to_thread(start)
    deep = b'{"command": "take-over", "x": ' + b"[" * 2000 + b"]" * 2000 + b"}"
    (answer,) = await converse(relay, deep)
    assert answer["error"] == "invalid_json"


async def test_upgrade_goes_on_where_its_client_goes_away(start: Start) -> None:
    relay = await asyncio.to_thread(start)
    (first,) = await converse(relay, b'{"command": "upgrade"}')
    assert "progress" in first
    await asyncio.to_thread(relay.follow)


def test_take_over_without_a_relay(tmp_path: Path) -> None:
    relay = RelayProcess(tmp_path / "relay", MINT)
    done = subprocess.run(
        relay.command("--take-over"),
        cwd=REPOSITORY, env=relay.environ, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no relay to take over" in done.stderr
    assert "without --take-over" in done.stderr
    assert "Traceback" not in done.stderr


def test_successor_command_is_the_own_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from wavry_relay.upgrade.handover import successor_command

    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "wavry_relay", "run", "--workers", "2"])
    wanted = [sys.executable, "-m", "wavry_relay", "run", "--workers", "2", "--take-over"]
    assert successor_command() == wanted
    monkeypatch.setattr(sys, "orig_argv", wanted)
    assert successor_command() == wanted, "said once, also after the second upgrade"
