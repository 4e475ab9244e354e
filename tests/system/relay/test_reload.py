"""Reload: each live setting of a running relay changes under traffic, in both engines."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.paths import REPOSITORY
from support.relay.fake_master import FakeMaster
from support.relay.host import Traffic, control_command
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.relay.udp_peer import UdpPeer, active_session
from support.waiting import is_alive, wait_until

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets, stun
from wavry_peer.service.settings import describe
from wavry_relay.config import RelayConfig

MINT = Mint()
WIDE = {
    "IP_PER_S": "100000",
    "IP_BURST": "100000",
    "IDENTITY_PER_S": "100000",
    "IDENTITY_BURST": "100000",
    "SOCKET_BUFFER_BYTES": "200000",
}
DROPS = "wavry_relay_packets_dropped_total"


class FileRelay(RelayProcess):
    """A relay whose limits are in a settings file."""

    def __init__(self, directory: Path, **options: Any) -> None:
        directory.mkdir(exist_ok=True)
        self.file = directory / "relay.conf"
        environ = {f"WAVRY_RELAY_{name}": "" for name in WIDE}
        super().__init__(
            directory, MINT, **environ, WAVRY_RELAY_SETTINGS_FILE=str(self.file), **options
        )
        self.write()

    def write(self, **changes: str) -> None:
        """The wide settings with changes, e.g. ``MAX_PPS="1"``; LOG_LEVEL is WAVRY_LOG_LEVEL."""
        lines = [
            ("WAVRY_LOG_LEVEL" if name == "LOG_LEVEL" else f"WAVRY_RELAY_{name}") + f"={text}"
            for name, text in {**WIDE, **changes}.items()
        ]
        self.file.write_text("# of a test\n" + "\n".join(lines) + "\n")

    def reload(self, **changes: str) -> dict[str, Any]:
        """Write and reload over the control socket; the answer."""
        self.write(**changes)
        return control_command(self, "reload")


@pytest.fixture(scope="module")
def relay(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileRelay]:
    with FileRelay(tmp_path_factory.mktemp(engine), WAVRY_RELAY_ENGINE=engine) as relay:
        yield relay
        assert relay.stop() == 0
        assert "Traceback" not in relay.log()


@pytest.fixture
def traffic(relay: FileRelay) -> Iterator[Traffic]:
    assert relay.reload()["outcome"] in ("applied", "unchanged")
    with active_session(relay, MINT) as (client, server), Traffic(client, server) as traffic:
        traffic.wait_for_more(10)
        yield traffic
        relay.reload()
        traffic.wait_for_more(10)


# -- Each live limit -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"MAX_BITRATE_KBPS": "50"}, "global_rate"),
        ({"MAX_PPS": "10"}, "global_rate"),
        ({"SESSION_KBPS": "50"}, "session_rate"),
    ],
)
def test_rate_of_the_packet_path_changes(
    relay: FileRelay, traffic: Traffic, changes: dict[str, str], reason: str
) -> None:
    before = relay.metric(DROPS, reason=reason)
    answer = relay.reload(**changes)
    assert answer["outcome"] == "applied"
    assert answer["changed"] == [f"WAVRY_RELAY_{name}" for name in changes]
    wait_until(lambda: relay.metric(DROPS, reason=reason) > before + 20, what="drops")
    relay.reload()
    traffic.wait_for_more()


def stun_answers(relay: FileRelay, count: int) -> int:
    """How many of `count` STUN requests sent at once are answered."""
    host, port = relay.udp[0].rsplit(":", 1)
    answered = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((host, int(port)))
        for number in range(count):
            sock.send(stun.build_binding_request(number.to_bytes(12, "big")))
        sock.settimeout(1)
        try:
            while answered < count:
                sock.recv(2048)
                answered += 1
        except TimeoutError:
            pass
    return answered


@pytest.mark.usefixtures("traffic")
def test_address_rate_and_burst_change(relay: FileRelay) -> None:
    assert stun_answers(relay, 20) == 20
    assert relay.reload(IP_PER_S="1", IP_BURST="3")["outcome"] == "applied"
    assert stun_answers(relay, 20) < 10
    relay.reload(IP_PER_S="1", IP_BURST="1000")
    assert stun_answers(relay, 20) == 20
    relay.reload(IP_PER_S="1", IP_BURST="3")
    assert stun_answers(relay, 20) < 10
    relay.reload()  # A debt of before is cut to what the new limit allows: it is gone in moments.
    wait_until(lambda: stun_answers(relay, 20) == 20, what="the wide limit")


@pytest.mark.usefixtures("traffic")
def test_identity_rate_and_burst_change(relay: FileRelay) -> None:
    def asked(count: int) -> list[object]:
        answers = []
        for _ in range(count):
            with UdpPeer(
                MINT, relay.relay_id, relay.udp[0], uuid.uuid4(), c.Role.CLIENT, sub="busy"
            ) as peer:
                answers.append(type(peer.ask(peer.present_datagram()).body))
        return answers

    accepted, refused = packets.LeaseAck, packets.LeaseReject
    assert asked(3) == [accepted] * 3
    relay.reload(IDENTITY_PER_S="1", IDENTITY_BURST="1")
    assert refused in asked(4)
    relay.reload()
    assert asked(3) == [accepted] * 3


@pytest.mark.usefixtures("traffic")
def test_clock_skew_changes(relay: FileRelay) -> None:
    def ask() -> object:
        ahead = {"now_s": int(time.time()) + 120}
        with UdpPeer(
            MINT, relay.relay_id, relay.udp[0], uuid.uuid4(), c.Role.CLIENT, **ahead
        ) as peer:
            return peer.ask(peer.present_datagram()).body

    assert ask() == packets.LeaseReject(c.RejectReason.NOT_YET_VALID)
    relay.reload(NBF_SKEW_S="300")
    assert isinstance(ask(), packets.LeaseAck)
    relay.reload()
    assert ask() == packets.LeaseReject(c.RejectReason.NOT_YET_VALID)


@pytest.mark.usefixtures("traffic")
def test_socket_buffers_change(relay: FileRelay) -> None:
    relay.reload(SOCKET_BUFFER_BYTES="100000")
    for direction in ("receive", "send"):
        where = {"direction": direction, "listen": relay.udp[0]}
        assert relay.metric("wavry_relay_socket_buffer_bytes", **where) == 100_000


@pytest.mark.usefixtures("traffic")
def test_hang_timeout_changes(relay: FileRelay) -> None:
    relay.reload(HANG_TIMEOUT_S="0.5")
    (victim, *_) = relay.worker_pids()
    relay.reload(HANG_TIMEOUT_S="600")
    os.kill(victim, signal.SIGSTOP)
    time.sleep(1.5)
    assert is_alive(victim)
    relay.reload(HANG_TIMEOUT_S="0.5")
    wait_until(lambda: not is_alive(victim), what="hung worker gone")
    wait_until(lambda: relay.health()["workers"]["running"] == 2, what="replacement")


def test_log_level_changes(relay: FileRelay) -> None:
    def told() -> int:
        return len(relay.events("reloaded"))

    begun = datetime.now(UTC).isoformat()
    relay.reload()
    wait_until(
        lambda: any(line["timestamp"] > begun for line in relay.events("reloaded")), what="its line"
    )
    before = told()
    relay.reload(LOG_LEVEL="error")
    relay.reload(LOG_LEVEL="error")
    relay.reload(LOG_LEVEL="info")
    wait_until(lambda: told() > before, what="the line of the last one")
    assert told() == before + 1, "lines leave in order: the two before it were not told"


def test_drain_timeout_changes_even_in_the_drain(tmp_path: Path) -> None:
    with (
        FileRelay(tmp_path, WAVRY_RELAY_DRAIN_TIMEOUT_S="") as relay,  # The file shall say it.
        active_session(relay, MINT) as (client, server),
    ):
        relay.reload(DRAIN_TIMEOUT_S="600")
        relay.send_signal(signal.SIGTERM)
        wait_until(lambda: relay.health()["draining"] == ["shutdown"], what="drain")
        time.sleep(0.5)
        client.forward()
        assert server.receive() == (1, b"hello")
        relay.write(DRAIN_TIMEOUT_S="0")
        relay.send_signal(signal.SIGHUP)
        assert relay.wait() == 0


def test_master_is_told_a_new_capacity(tmp_path: Path) -> None:
    with (
        FakeMaster(MINT) as master,
        FileRelay(tmp_path, WAVRY_RELAY_MASTER_URL=master.url) as relay,
    ):
        wait_until(lambda: master.heartbeats, what="heartbeat")
        relay.reload(MAX_BITRATE_KBPS="777")
        wait_until(
            lambda: master.registered[-1]["max_bitrate_kbps"] == 777, what="new registration"
        )
        registrations = len(master.registered)
        beats = len(master.heartbeats)
        wait_until(lambda: len(master.heartbeats) > beats + 3, what="heartbeats")
        assert len(master.registered) == registrations


LIVE_HERE = {
    "MAX_BITRATE_KBPS", "MAX_PPS", "SESSION_KBPS", "IP_PER_S", "IP_BURST", "IDENTITY_PER_S",
    "IDENTITY_BURST", "NBF_SKEW_S", "SOCKET_BUFFER_BYTES", "HANG_TIMEOUT_S", "DRAIN_TIMEOUT_S",
}  # fmt: skip
LIVE_LOAD = {
    "NETWORK_PER_S": "7", "NETWORK_BURST": "8", "PEER_BURST_MS": "9", "SESSION_BURST_MS": "10",
    "GLOBAL_BURST_MS": "11", "SHED_AT_PCT": "12", "COOKIE_AT_VERIFIES_PER_S": "13",
    "BLOCK_AFTER": "14", "BLOCK_S": "15",
}  # fmt: skip
"""What they do while a relay runs is in test_load.py and test_load_process.py."""


def test_limits_of_load_change_at_a_reload(relay: FileRelay) -> None:
    for name in LIVE_LOAD:
        relay.environ.pop(f"WAVRY_RELAY_{name}", None)
    answer = relay.reload(**{k: v for k, v in LIVE_LOAD.items() if k.endswith(("_S", "_MS"))})
    assert answer["outcome"] == "applied"
    assert "WAVRY_RELAY_PEER_BURST_MS" in answer["changed"]


def test_each_live_setting_has_a_test_here() -> None:
    live = {row.variable for row in describe(RelayConfig) if row.live}
    assert live == {f"WAVRY_RELAY_{name}" for name in LIVE_HERE | set(LIVE_LOAD)} | {
        "WAVRY_LOG_LEVEL"
    }


# -- Outcomes --------------------------------------------------------------------------------------


def reloads(relay: RelayProcess, outcome: str) -> float:
    return relay.metric("wavry_relay_reloads_total", outcome=outcome)


def test_environment_wins_over_the_file_at_a_reload_too(relay: FileRelay) -> None:
    relay.reload()
    assert "WAVRY_RELAY_MAX_SESSIONS" in relay.environ
    answer = relay.reload(MAX_SESSIONS="50", MAX_PPS="5000")
    assert (answer["outcome"], answer["changed"]) == ("applied", ["WAVRY_RELAY_MAX_PPS"])


def test_setting_that_needs_a_restart(tmp_path: Path) -> None:
    with FileRelay(tmp_path, WAVRY_RELAY_MAX_SESSIONS="") as relay:
        for number in (1, 2):
            answer = relay.reload(MAX_SESSIONS="50", REGION="eu", MAX_PPS="5000")
            assert answer["outcome"] == "partial"
            assert answer["needs_restart"] == [
                "WAVRY_RELAY_REGION", "WAVRY_RELAY_MAX_SESSIONS",
            ]  # fmt: skip
            assert answer["changed"] == (["WAVRY_RELAY_MAX_PPS"] if number == 1 else [])
            warning = relay.events("settings_need_restart")[number - 1]
            assert warning["settings"] == answer["needs_restart"]
            assert "needs a restart or an upgrade" in warning["next_step"]
        assert relay.health()["sessions"]["max"] == 10_000
        assert reloads(relay, "partial") == 2


def test_bad_file_changes_nothing_and_says_why(relay: FileRelay) -> None:
    relay.reload()
    failed, applied = reloads(relay, "failed"), reloads(relay, "applied")
    answer = relay.reload(MAX_PPS="1", SESSION_KBPS="hunter2")
    assert answer["outcome"] == "failed"
    assert answer["error"] == "WAVRY_RELAY_SESSION_KBPS must be a whole number"
    assert "hunter2" not in relay.log()
    assert reloads(relay, "failed") == failed + 1
    assert reloads(relay, "applied") == applied
    error = relay.events("reload_failed")[-1]
    assert error["cause"] == answer["error"]
    with active_session(relay, MINT) as (client, server):
        for _ in range(50):  # MAX_PPS=1 is not in force
            number = client.forward()
            assert server.receive()[0] == number
    assert relay.reload()["outcome"] == "unchanged"


def test_file_that_is_gone_changes_nothing(relay: FileRelay) -> None:
    relay.reload()
    relay.file.unlink()
    answer = control_command(relay, "reload")
    assert answer["outcome"] == "failed"
    assert "is not there" in answer["error"]
    assert relay.reload()["outcome"] == "unchanged"


def test_hangup_reloads(relay: FileRelay) -> None:
    relay.reload()
    before = reloads(relay, "applied")
    relay.write(MAX_PPS="90000")
    relay.send_signal(signal.SIGHUP)
    wait_until(lambda: reloads(relay, "applied") == before + 1, what="reload")


def test_hangup_of_a_worker_ends_nothing(relay: FileRelay) -> None:
    """``systemctl kill -s HUP`` reaches the workers too."""
    pids = relay.worker_pids()
    for pid in pids:
        os.kill(pid, signal.SIGHUP)
    with active_session(relay, MINT) as (client, server):
        client.forward()
        assert server.receive() == (1, b"hello")
    time.sleep(0.3)
    assert relay.worker_pids() == pids


def test_without_a_file_a_reload_finds_nothing(tmp_path: Path) -> None:
    with RelayProcess(tmp_path, MINT) as relay:
        assert control_command(relay, "reload")["outcome"] == "unchanged"


def wavry_relay(relay: RelayProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wavry_relay", *arguments, "--state-dir", str(relay.state_dir)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


def test_reload_command_shows_the_outcome(relay: FileRelay) -> None:
    relay.write(MAX_PPS="70000")
    shown = wavry_relay(relay, "reload")
    assert shown.returncode == 0
    assert json.loads(shown.stdout)["changed"] == ["WAVRY_RELAY_MAX_PPS"]
    relay.write(MAX_PPS="many")
    shown = wavry_relay(relay, "reload")
    assert shown.returncode == 1
    assert json.loads(shown.stdout)["outcome"] == "failed"


def test_bad_settings_file_ends_the_start(tmp_path: Path) -> None:
    relay = FileRelay(tmp_path)
    relay.file.write_text("WAVRY_RELAY_WORKERZ=2\n")
    relay.launch()
    assert relay.wait(20) == 2
    assert "relay.conf, line 1: WAVRY_RELAY_WORKERZ is not a setting" in relay.log()
