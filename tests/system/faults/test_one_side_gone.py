"""One side of a session vanishes: the relay tells the other, and its application ends.

That takes a minute by the clock, so everything vanishes when this file begins; what else is to be
seen of addresses that prove themselves is seen meanwhile.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from support.needs import need_engine
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.relay.tap import Passed, Tap
from support.relay.udp_peer import UdpPeer, active_session
from support.system.real_peers import new_user
from support.system.services import Services
from support.system.system import clean_environment, get_text
from support.waiting import wait_until

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets
from wavry_relay.shm.control import EngineKind

MINT = Mint()
ENGINES = [kind.name.lower() for kind in EngineKind]


class Left:
    """A peer whose other side is silent; what came to it, and when."""

    def __init__(self, peer: UdpPeer) -> None:
        self.peer = peer
        self.notices: list[tuple[float, int]] = []
        self.received_bytes = 0
        peer.sock.setblocking(False)

    def keep_alive(self) -> None:
        header = bytes((c.MAGIC, c.VERSION, c.PacketType.LEASE_RENEW, 0))
        self.peer.sock.send(header + self.peer.sid.bytes)

    def listen(self) -> None:
        with suppress(BlockingIOError):
            while True:
                raw = self.peer.sock.recv(2048)
                self.received_bytes += len(raw)
                body = packets.parse_packet(raw).body
                if isinstance(body, packets.Notice):
                    self.notices.append((time.monotonic(), body.code))


class AtRelay:
    """Two sessions of a relay whose clients were heard last when this was made.

    Attributes:
        left: the server of one.
        victim: the server of the other, which has never proved its address; it was sent all that
            it may be sent before it was heard for the last time.
        victim_sent_bytes: that were sent in its name.
    """

    def __init__(self, stack: ExitStack, relay: RelayProcess) -> None:
        self.relay = relay
        sid = uuid.uuid4()
        victim, sender = (
            stack.enter_context(UdpPeer(MINT, relay.relay_id, relay.udp[0], sid, role))
            for role in (c.Role.SERVER, c.Role.CLIENT)
        )
        self.victim = Left(victim)
        spoofed = victim.present_datagram()
        victim.sock.send(spoofed)
        wait_until(lambda: relay.metric("wavry_relay_leases_accepted_total"), what="its slot")
        sender.present()
        received = relay.metric("wavry_relay_packets_received_total")
        for size in (1000, 100, 0):  # Until not even the smallest gets through.
            for _ in range(40):
                sender.forward(bytes(size))
        wait_until(
            lambda: relay.metric("wavry_relay_packets_received_total") >= received + 120,
            what="the flood",
        )
        assert relay.metric("wavry_relay_packets_dropped_total", reason="unproved_path") > 100
        self.victim.keep_alive()
        self.victim_sent_bytes = len(spoofed) + c.HEADER_BYTES
        self.gone_s = time.monotonic()
        _, server = stack.enter_context(active_session(relay, MINT))
        self.left = Left(server)


class Command:
    """One ``wavry-peer``, with its standard input open."""

    def __init__(self, services: Services, user: dict[str, Any], *arguments: str) -> None:
        username, password = user["credentials"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wavry_peer", *arguments, "--as", username, "--json"],
            env=clean_environment(
                WAVRY_PEER_HOME=str(user["home"]),
                WAVRY_PASSWORD=password,
                WAVRY_GATEWAY_URL=services.gateway_url,
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def wait_for(self, event: str) -> dict[str, Any]:
        """The next line of this event; every other is passed over."""
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            line: dict[str, Any] = json.loads(raw)
            if line["event"] == event:
                return line
        raise AssertionError(f"it ended without {event}")

    def type(self, text: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class World:
    """Services behind a tap, a relay of each engine, and what has vanished."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self._stack, self._directory = stack, directory
        self.tap = stack.enter_context(Tap())
        self.services = Services(directory / "services")
        self.services.settings["relay"]["WAVRY_RELAY_ADVERTISE"] = self.tap.address
        # The tap leads nowhere until the relay has said where it listens.
        self.services.settings["master"]["WAVRY_MASTER_PROBE_INTERVAL_MS"] = "0"
        stack.enter_context(self.services)
        host, port = self.services.ready["relay"]["udp"][0].rsplit(":", 1)
        self.tap.relay = (host, int(port))
        relays = {
            name: stack.enter_context(RelayProcess(directory / name, MINT, WAVRY_RELAY_ENGINE=name))
            for name in ENGINES
        }
        self.commands = {name: self._left_command(name) for name in ("connect", "host")}
        self.at_relays = {name: AtRelay(stack, relay) for name, relay in relays.items()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive)
        self._thread.start()
        stack.callback(self._thread.join)
        stack.callback(self._stop.set)

    def _keep_alive(self) -> None:
        next_s = 0.0
        while not self._stop.wait(0.1):
            for each in self.at_relays.values():
                each.left.listen()
                each.victim.listen()
                if time.monotonic() >= next_s:
                    each.left.keep_alive()
            if time.monotonic() >= next_s:
                next_s = time.monotonic() + 5

    def call(self) -> tuple[Command, Command]:
        """Two users with a session: who calls and who is called."""
        alice, bob = (
            new_user(self.services.gateway_url, self._directory, name) for name in ("alice", "bob")
        )
        called = Command(self.services, bob, "host", "--from-all")
        self._stack.callback(called.close)
        called.wait_for("listening")
        caller = Command(self.services, alice, "connect", bob["credentials"][0])
        self._stack.callback(caller.close)
        return caller, called

    def active_sessions(self) -> float:
        """As the gateway has them."""
        text = get_text(self.services.gateway_url + "/metrics")
        found = re.search(r'^wavry_gateway_sessions\{state="active"\} (\S+)', text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    def _left_command(self, name: str) -> Command:
        """The one that is left of two, after a datagram each way."""
        caller, called = self.call()
        caller.type(b"one way\n")
        called.wait_for("datagram")
        called.type(b"the other\n")
        caller.wait_for("datagram")
        assert self.active_sessions() > 0
        left, gone = (caller, called) if name == "connect" else (called, caller)
        gone.process.kill()
        return left


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    for kind in EngineKind:
        need_engine(kind)
    with ExitStack() as stack:
        yield World(stack, tmp_path_factory.mktemp("world"))


def test_first_datagram_needs_one_answer_of_the_relay_and_one_of_the_peer(world: World) -> None:
    """A proof of the address is under way beside it: here it comes after the first datagram."""
    tap = world.tap
    known = set(tap.flows)
    tap.holds_proofs = True
    caller, called = world.call()
    caller.type(b"the first\n")
    assert called.wait_for("datagram")["text"] == "the first\n"
    flows = [flow for peer, flow in tap.flows.items() if peer not in known]
    assert len(flows) == 2
    for flow in flows:
        before = flow[: next(at for at, each in enumerate(flow) if each.kind == "DATA")]
        assert {each.kind for each in before if each.is_outgoing} == {"PRESENT", "HANDSHAKE"}
        assert {each.kind for each in before if not each.is_outgoing} == {
            "ACK", "CHALLENGE", "HANDSHAKE",
        }  # fmt: skip
        first_ack = before.index(Passed(is_outgoing=False, kind="ACK"))
        after_ack = [each.kind for each in before[first_ack:] if each.is_outgoing]
        assert after_ack[0] == "HANDSHAKE", "nothing else is waited for"
        wait_until(
            lambda flow=flow: Passed(is_outgoing=True, kind="PROOF") in flow, what="the proof"
        )
    metrics = get_text(world.services.ops_url + "/metrics")
    assert 'dropped_total{reason="unproved_path"} 0.0' in metrics


@pytest.mark.parametrize("engine", ENGINES)
def test_what_was_proved_stays_proved_at_the_next_worker(world: World, engine: str) -> None:
    relay = world.at_relays[engine].relay
    sid = uuid.uuid4()
    with ExitStack() as stack:
        client, server, waiting = (
            stack.enter_context(UdpPeer(MINT, relay.relay_id, relay.udp[0], which, role))
            for which, role in (
                (sid, c.Role.CLIENT), (sid, c.Role.SERVER), (uuid.uuid4(), c.Role.CLIENT),
            )
        )  # fmt: skip
        client.present()
        server.present()
        waiting.ask(waiting.present_datagram())
        cookie = waiting.challenge
        assert cookie is not None
        first = relay.worker_pids()
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: len(set(relay.worker_pids()) - set(first)) == len(first), what="new workers"
        )
        for number in range(100):  # Far more than three times what the client has sent.
            server.forward(bytes(1000))
            assert client.receive()[0] == number + 1
        waiting.present(cookie=cookie)  # A challenge of the worker before is as good.
        client.token = client.new_token()
        client.present(renew=True)
        assert client.challenge is None, "and no other comes"


@pytest.mark.parametrize("engine", ENGINES)
def test_relay_tells_who_is_left_and_ends_the_session_with_him(world: World, engine: str) -> None:
    at_relay = world.at_relays[engine]
    left = at_relay.left
    wait_until(lambda: left.notices, timeout_s=120, what="PEER_GONE")
    when_s, code = left.notices[0]
    assert code == c.NoticeCode.PEER_GONE
    assert when_s - at_relay.gone_s > c.GONE_AFTER_S - 0.1
    before = at_relay.relay.metric("wavry_relay_sessions_closed_total", reason="released")
    left.peer.sock.send(left.peer.present_datagram(renew=True, cookie=c.RELEASE_COOKIE))
    wait_until(
        lambda: (
            at_relay.relay.metric("wavry_relay_sessions_closed_total", reason="released") > before
        ),
        what="the end of the session",
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_who_never_asked_is_not_told_more_than_he_may_be_sent(world: World, engine: str) -> None:
    at_relay = world.at_relays[engine]
    victim, relay = at_relay.victim, at_relay.relay
    wait_until(
        lambda: relay.metric("wavry_relay_sessions_closed_total", reason="idle"),
        timeout_s=120,
        what="the end of the session",
    )
    wait_until(lambda: victim.notices, what="what he may be sent")
    assert victim.received_bytes <= 3 * at_relay.victim_sent_bytes


@pytest.mark.parametrize("name", ["connect", "host"])
def test_application_that_is_left_is_told_and_the_gateway_too(world: World, name: str) -> None:
    left = world.commands[name]
    told = left.wait_for("error")
    assert told["error"] == "session_closed"
    assert "is gone" in told["message"]
    assert left.process.wait(20) == 1
    wait_until(lambda: world.active_sessions() <= 1, what="the end of both at the gateway")
