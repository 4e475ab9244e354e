"""Real relay processes, real sockets, two workers."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from click.testing import Result
from support.paths import REPOSITORY
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.relay.udp_peer import UdpPeer, active_session
from support.waiting import is_alive, wait_until
from typer.testing import CliRunner

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets, stun
from wavry_peer.service.metrics import RELAY
from wavry_relay.cli import app

MINT = Mint()
Start = Callable[..., RelayProcess]


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    """One relay for the tests that leave it as it was."""
    with RelayProcess(
        tmp_path_factory.mktemp("relay"), MINT, WAVRY_RELAY_LISTEN="127.0.0.1:0,[::1]:0"
    ) as relay:
        yield relay
        assert relay.stop() == 0
        assert "Traceback" not in relay.log()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start relays of its own for a test."""
    started: list[RelayProcess] = []

    def make(name: str = "relay", **options: object) -> RelayProcess:
        made = RelayProcess(tmp_path / name, MINT, **options)
        started.append(made)
        return made.start()

    yield make
    for one in started:
        one.close()


class Stream:
    """A peer that sends to the other all the time, until stopped."""

    def __init__(self, sender: UdpPeer, receiver: UdpPeer, *, every_s: float = 0.002) -> None:
        self.sender, self.receiver, self.every_s = sender, receiver, every_s
        self.received: list[tuple[float, int]] = []
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._send), threading.Thread(target=self._receive),
        ]  # fmt: skip

    def __enter__(self) -> Self:
        self.receiver.sock.settimeout(0.1)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self.receiver.sock.settimeout(self.receiver.timeout_s)

    def _send(self) -> None:
        while not self._stopped.wait(self.every_s):
            self.sender.forward(os.urandom(200))

    def _receive(self) -> None:
        while not self._stopped.is_set():
            try:
                sequence, _ = self.receiver.receive()
            except TimeoutError:
                continue
            self.received.append((time.monotonic(), sequence))

    def wait_for_more(self, count: int = 50) -> None:
        goal = len(self.received) + count
        wait_until(lambda: len(self.received) >= goal, what="forwarded packets")


# -- Forwarding --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_two_peers_talk_through_the_relay(relay: RelayProcess, family: int) -> None:
    with active_session(relay, MINT, udp=relay.udp[family]) as (client, server):
        payloads = [os.urandom(size) for size in (0, 1, 700, 1400)]
        for payload in payloads:
            client.forward(payload)
            server.forward(payload[::-1])
        assert [server.receive() for _ in payloads] == list(enumerate(payloads, 1))
        assert [client.receive()[1] for _ in payloads] == [data[::-1] for data in payloads]


def test_peers_of_different_families(relay: RelayProcess) -> None:
    sid = uuid.uuid4()
    with (
        UdpPeer(MINT, relay.relay_id, relay.udp[0], sid, c.Role.CLIENT) as client,
        UdpPeer(MINT, relay.relay_id, relay.udp[1], sid, c.Role.SERVER) as server,
    ):
        assert client.present().reflexive == (
            socket.inet_aton("127.0.0.1"), client.sock.getsockname()[1],
        )  # fmt: skip
        reflexive = server.present().reflexive
        assert reflexive is not None
        assert reflexive[0] == socket.inet_pton(socket.AF_INET6, "::1")
        client.forward(b"from v4")
        assert server.receive() == (1, b"from v4")
        server.forward(b"from v6")
        assert client.receive() == (1, b"from v6")


def test_many_sessions_use_all_workers(relay: RelayProcess) -> None:
    for _ in range(12):
        with active_session(relay, MINT) as (client, server):
            client.forward()
            assert server.receive() == (1, b"hello")
    assert relay.metric("wavry_relay_sessions_activated_total") >= 12


def test_roaming_peer(relay: RelayProcess) -> None:
    with active_session(relay, MINT) as (client, server):
        client.move()
        client.sequence += 1
        frame = packets.build_forward(client.sid.bytes, bytes(7) + b"\1")
        packet = client.ask(frame)
        assert isinstance(packet.body, packets.PathChallenge)
        client.present(cookie=packet.body.cookie)
        server.forward(b"to the new port")
        assert client.receive() == (1, b"to the new port")


def test_stun_over_the_relay_port(relay: RelayProcess) -> None:
    host, port = relay.udp[0].rsplit(":", 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        sock.connect((host, int(port)))
        sock.send(stun.build_binding_request(b"0123456789ab"))
        mapped = stun.parse_mapped_address(sock.recv(2048), b"0123456789ab")
        assert mapped == (socket.inet_aton("127.0.0.1"), sock.getsockname()[1])


def test_garbage_is_dropped_counted_and_harmless(relay: RelayProcess) -> None:
    host, port = relay.udp[0].rsplit(":", 1)
    name = "wavry_relay_packets_dropped_total"
    before = {r: relay.metric(name, reason=r) for r in ("bad_magic", "too_short", "too_long")}
    pids = relay.worker_pids()
    with (
        active_session(relay, MINT) as (client, server),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.connect((host, int(port)))
        for number in range(300):
            sock.send(b"\xff" + os.urandom(number * 5 + 20)[:1400])
            sock.send(bytes((0x57, 1, number % 256, number % 3)) + os.urandom(16 + number))
        sock.send(b"")
        sock.send(b"x")
        sock.send(bytes(9000))
        client.forward(b"still here")
        assert server.receive() == (1, b"still here")
    wait_until(
        lambda: relay.metric(name, reason="bad_magic") >= before["bad_magic"] + 300,
        what="300 packets counted",
    )
    wait_until(
        lambda: relay.metric(name, reason="too_short") >= before["too_short"] + 2,
        what="short packets counted",
    )
    assert relay.metric(name, reason="too_long") >= before["too_long"] + 1
    assert relay.worker_pids() == pids
    assert relay.metric("wavry_relay_internal_errors_total") == 0


# -- Ops ---------------------------------------------------------------------------------------


def test_health_says_which_engine_runs(relay: RelayProcess) -> None:
    health = relay.health()
    assert health["engine"]["name"] in ("reference", "native")
    assert health["engine"]["pure_python"] == (health["engine"]["name"] == "reference")
    assert health["workers"]["running"] == 2
    assert relay.metric("wavry_relay_engine_info", engine=health["engine"]["name"]) == 1
    assert relay.get("/ready") == (200, b'{"ready":true}')


def test_metrics_expose_the_whole_catalogue(relay: RelayProcess) -> None:
    text = relay.get("/metrics")[1].decode()
    for spec in RELAY:
        assert f"# TYPE {spec.name} {spec.kind}" in text


def test_unknown_route_and_method(relay: RelayProcess) -> None:
    status, body = relay.get("/nope")
    assert (status, json.loads(body)["error"]) == (404, "not_found")


def test_rejects_are_counted_by_reason(relay: RelayProcess) -> None:
    sid = uuid.uuid4()
    with UdpPeer(Mint(), relay.relay_id, relay.udp[0], sid, c.Role.CLIENT) as stranger:
        packet = stranger.ask(stranger.present_datagram())
        assert packet.body == packets.LeaseReject(c.RejectReason.UNKNOWN_KEY)
    assert relay.metric("wavry_relay_lease_rejects_total", reason="unknown_key") >= 1


def test_pitfall_log_has_no_full_peer_address(relay: RelayProcess) -> None:
    with active_session(relay, MINT) as (client, _):
        port = client.sock.getsockname()[1]
    assert f":{port}" not in relay.log()
    assert f'"{port}"' not in relay.log()


def wavry_relay(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_drain_by_the_control_socket(relay: RelayProcess) -> None:
    state = str(relay.state_dir)
    with active_session(relay, MINT) as (client, server):
        drained = wavry_relay("drain", "--state-dir", state)
        assert json.loads(drained.stdout)["draining"] == ["local"]
        assert relay.get("/ready")[0] == 503
        with UdpPeer(MINT, relay.relay_id, relay.udp[0], uuid.uuid4(), c.Role.CLIENT) as late:
            packet = late.ask(late.present_datagram())
            assert packet.body == packets.LeaseReject(c.RejectReason.DRAINING)
        client.forward(b"goes on")
        assert server.receive() == (1, b"goes on")
        undrained = wavry_relay("undrain", "--state-dir", state)
        assert json.loads(undrained.stdout)["draining"] == []
    assert relay.get("/ready")[0] == 200


# -- Deaths ------------------------------------------------------------------------------------


def test_kill_of_a_worker_under_traffic_loses_no_session(start: Start) -> None:
    relay = start()
    with active_session(relay, MINT) as (client, server), Stream(client, server) as stream:
        stream.wait_for_more()
        victims = relay.worker_pids()
        forwarded = relay.metric("wavry_relay_packets_forwarded_total")
        for pid in victims:  # one of them has the session
            os.kill(pid, signal.SIGKILL)
            stream.wait_for_more()
            wait_until(
                lambda gone=pid: len(relay.worker_pids()) == 2 and gone not in relay.worker_pids(),
                what="replacement",
            )
        stream.wait_for_more()
        wait_until(lambda: relay.health()["workers"]["running"] == 2, what="both workers")
    assert relay.metric("wavry_relay_worker_restarts_total", cause="died") == 2
    assert relay.metric("wavry_relay_packets_forwarded_total") > forwarded
    assert relay.metric("wavry_relay_sessions_created_total") == 1
    assert relay.metric("wavry_relay_sessions", state="active") == 1
    assert relay.stop() == 0


def test_hung_worker_is_aborted_and_replaced(start: Start) -> None:
    relay = start(WAVRY_RELAY_HANG_TIMEOUT_S="0.5")
    with active_session(relay, MINT) as (client, server), Stream(client, server) as stream:
        stream.wait_for_more()
        victims = relay.worker_pids()
        for pid in victims:
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: not any(map(is_alive, victims)), what="hung workers gone")
        stream.wait_for_more()
    assert relay.metric("wavry_relay_worker_restarts_total", cause="hung") == 2
    assert relay.metric("wavry_relay_sessions", state="active") == 1


def test_kill_of_the_supervisor_ends_workers_and_the_next_start_cleans_up(start: Start) -> None:
    relay = start()
    workers = relay.worker_pids()
    with active_session(relay, MINT):
        relay.send_signal(signal.SIGKILL)
        relay.wait()
    wait_until(lambda: not any(map(is_alive, workers)), what="workers gone")
    assert relay.shm_path.exists()
    inode = relay.shm_path.stat().st_ino
    relay.start()
    assert relay.shm_path.stat().st_ino != inode
    assert relay.metric("wavry_relay_sessions", state="active") == 0
    with active_session(relay, MINT) as (client, server):
        client.forward()
        assert server.receive() == (1, b"hello")
    assert relay.stop() == 0
    assert not relay.shm_path.exists()


def test_supervisor_killed_while_a_worker_is_stopped(start: Start) -> None:
    """Even a worker that cannot read its control socket ends with the supervisor."""
    relay = start()
    workers = relay.worker_pids()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    relay.send_signal(signal.SIGKILL)
    relay.wait()
    wait_until(lambda: not any(map(is_alive, workers)), what="workers gone")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_pitfall_signal_stops_cleanly(start: Start, number: signal.Signals) -> None:
    relay = start()
    workers = relay.worker_pids()
    with active_session(relay, MINT) as (client, _):
        relay.send_signal(number)
        packet = packets.parse_packet(client.sock.recv(2048))
        assert packet.body == packets.Notice(c.NoticeCode.SHUTDOWN)
        assert relay.wait() == 0
    assert not any(map(is_alive, workers))
    assert not relay.shm_path.exists()
    assert not (relay.state_dir / "control.sock").exists()
    assert "Traceback" not in relay.log()


def test_pitfall_sigterm_drains_when_told_to(start: Start) -> None:
    relay = start(WAVRY_RELAY_DRAIN_TIMEOUT_S="60")
    sid = uuid.uuid4()
    with (
        UdpPeer(MINT, relay.relay_id, relay.udp[0], sid, c.Role.CLIENT) as client,
        UdpPeer(MINT, relay.relay_id, relay.udp[0], sid, c.Role.SERVER) as server,
        UdpPeer(MINT, relay.relay_id, relay.udp[0], uuid.uuid4(), c.Role.CLIENT) as late,
    ):
        client.present()
        relay.send_signal(signal.SIGTERM)
        wait_until(lambda: relay.health()["draining"] == ["shutdown"], what="drain")
        packet = late.ask(late.present_datagram())
        assert packet.body == packets.LeaseReject(c.RejectReason.DRAINING)
        server.present()
        client.forward()
        assert server.receive() == (1, b"hello")
        relay.send_signal(signal.SIGTERM)  # a second one ends the wait
        assert relay.wait() == 0


def notice_codes(peer: UdpPeer, seconds: float) -> list[int]:
    """Codes of the NOTICEs that come within a time."""
    codes = []
    deadline_s = time.monotonic() + seconds
    while (left_s := deadline_s - time.monotonic()) > 0:
        peer.sock.settimeout(left_s)
        try:
            packet = packets.parse_packet(peer.sock.recv(2048))
        except TimeoutError:
            break
        if isinstance(packet.body, packets.Notice):
            codes.append(packet.body.code)
    peer.sock.settimeout(peer.timeout_s)
    return codes


def test_sigterm_tells_the_peers_and_ends_when_they_gave_their_slots_back(start: Start) -> None:
    relay = start(WAVRY_RELAY_DRAIN_TIMEOUT_S="60")
    with active_session(relay, MINT) as (client, server):
        relay.send_signal(signal.SIGTERM)
        assert c.NoticeCode.DRAINING in notice_codes(client, 2)
        client.forward(b"goes on")
        assert server.receive() == (1, b"goes on")
        began_s = time.monotonic()
        for peer in (client, server):
            peer.sock.send(peer.present_datagram(cookie=c.RELEASE_COOKIE))
        assert relay.wait() == 0
        assert time.monotonic() - began_s < 20
    assert "drain_incomplete" not in relay.log()


def test_sigterm_ends_at_its_deadline_whoever_is_left(start: Start) -> None:
    relay = start(WAVRY_RELAY_DRAIN_TIMEOUT_S="2")
    with active_session(relay, MINT):
        began_s = time.monotonic()
        relay.send_signal(signal.SIGTERM)
        assert relay.wait() == 0
        assert 1.5 < time.monotonic() - began_s < 20
    assert "drain_incomplete" in relay.log()


def test_sigterm_without_sessions_ends_at_once(start: Start) -> None:
    relay = start(WAVRY_RELAY_DRAIN_TIMEOUT_S="600")
    began_s = time.monotonic()
    relay.send_signal(signal.SIGTERM)
    assert relay.wait() == 0
    assert time.monotonic() - began_s < 20


# -- Instances ---------------------------------------------------------------------------------


def test_two_relays_on_one_host(start: Start) -> None:
    first, second = start("one"), start("two")
    assert first.relay_id != second.relay_id
    assert first.shm_path != second.shm_path
    for relay in (first, second):
        with active_session(relay, MINT) as (client, server):
            client.forward()
            assert server.receive() == (1, b"hello")
    assert first.stop() == 0
    assert second.shm_path.exists()


def test_second_relay_with_the_same_state_directory_refuses(start: Start) -> None:
    relay = start()
    second = RelayProcess(relay.directory, MINT)
    second.log_path = relay.directory / "second.log"
    second.ready_file = relay.directory / "second.json"
    second.launch()
    assert second.wait() == 1
    assert "another relay is running with the state directory" in second.log()
    assert relay.health()["workers"]["running"] == 2


def test_second_relay_with_a_copied_identity_refuses(start: Start, tmp_path: Path) -> None:
    relay = start("one")
    copy = RelayProcess(tmp_path / "two", MINT)
    source = relay.state_dir / "identity.key"
    (copy.state_dir / "identity.key").write_bytes(source.read_bytes())
    (copy.state_dir / "identity.key").chmod(0o600)
    copy.launch()
    assert copy.wait() == 1
    assert "another relay with this identity is running on this host" in copy.log()
    with active_session(relay, MINT) as (client, server):
        client.forward()
        assert server.receive() == (1, b"hello")


def test_pitfall_identity_survives_restarts(start: Start) -> None:
    relay = start()
    first = relay.relay_id
    assert (relay.state_dir / "identity.key").stat().st_mode & 0o777 == 0o600
    relay.stop()
    assert relay.start().relay_id == first


def test_pitfall_taken_port_ends_the_start(start: Start, tmp_path: Path) -> None:
    relay = start("one")
    second = RelayProcess(tmp_path / "two", MINT, WAVRY_RELAY_LISTEN=relay.udp[0])
    second.launch()
    assert second.wait() == 1
    assert "is taken by another process" in second.log()
    assert not second.ready_file.exists()


def test_identity_command(relay: RelayProcess) -> None:
    shown = json.loads(wavry_relay("identity", "--state-dir", str(relay.state_dir)).stdout)
    assert shown["relay_id"] == relay.relay_id


def test_python_m_wavry_relay_is_the_command(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "wavry_relay", "run", "--state-dir", str(tmp_path)],
        cwd=REPOSITORY,
        env={k: v for k, v in os.environ.items() if not k.startswith("WAVRY_")},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert shown.returncode == 2
    assert "WAVRY_RELAY_ALLOW_INSECURE_DEV=1" in shown.stderr
    assert "Traceback" not in shown.stderr
