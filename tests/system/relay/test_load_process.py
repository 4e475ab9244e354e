"""Cookie gate, shedding and blocks of a real relay, on both engines."""

import contextlib
import json
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.relay.udp_peer import UdpPeer, active_session
from support.waiting import wait_until
from typer.testing import CliRunner

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets
from wavry_peer.protocol.constants import RejectReason as R
from wavry_relay.cli import app

CLI = CliRunner()


@contextmanager
def flood_of_bad_signatures(udp: str, sources: int) -> Iterator[None]:
    """Well-formed leases that nobody signed, from many addresses of 127.0.0.0/8, until the end."""
    host, port = udp.rsplit(":", 1)
    going = threading.Event()
    going.set()
    socks = []
    for number in range(sources):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((f"127.{1 + number // 250}.{number % 250}.9", 0))
        sock.connect((host, int(port)))
        sock.setblocking(False)
        socks.append(sock)

    def send() -> None:
        body = b"v4.public." + b"A" * 300
        while going.wait(0):
            for sock in socks:
                datagram = packets.build_present(
                    uuid.uuid4().bytes, c.Role.CLIENT, body, counter=1,
                    sign=lambda _message: bytes(64),
                )  # fmt: skip
                try:
                    sock.send(datagram)
                    sock.recv(64)
                except BlockingIOError:
                    pass

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        going.clear()
        thread.join()
        for sock in socks:
            sock.close()


def get_in(peer: UdpPeer, *, renew: bool = False) -> packets.LeaseAck:
    """Present as peers do: sign again with the cookie, and again where a datagram was lost."""
    cookie = c.NO_COOKIE
    peer.sock.settimeout(1)
    for _ in range(20):
        try:
            body = peer.ask(peer.present_datagram(cookie=cookie, renew=renew)).body
        except TimeoutError:
            continue
        if isinstance(body, packets.PathChallenge):
            cookie = body.cookie
            continue
        assert isinstance(body, packets.LeaseAck), body
        return body
    raise AssertionError("the good peer did not get in")


def assert_forwards(client: UdpPeer, server: UdpPeer) -> None:
    """One of some datagrams arrives: a flood makes the socket's queue overflow."""
    server.sock.settimeout(1)
    for _ in range(20):
        sent = client.forward()
        with contextlib.suppress(TimeoutError):
            assert server.receive()[0] <= sent
            return
    raise AssertionError("nothing was forwarded")


def test_cookie_gate_lets_good_peers_in_under_a_flood_of_bad_signatures(
    tmp_path: Path, engine: str
) -> None:
    mint = Mint()
    with (
        RelayProcess(
            tmp_path,
            mint,
            workers=1,
            WAVRY_RELAY_ENGINE=engine,
            WAVRY_RELAY_COOKIE_AT_VERIFIES_PER_S="50",
        ) as relay,
        active_session(relay, mint) as (client, server),
    ):
        with flood_of_bad_signatures(relay.udp[0], sources=100):
            wait_until(
                lambda: relay.metric("wavry_relay_cookie_gate_workers"), timeout_s=30, what="gate"
            )
            sid = uuid.uuid4()
            for role in c.Role:
                with UdpPeer(mint, relay.relay_id, relay.udp[0], sid, role) as good:
                    get_in(good)
            client.token = client.new_token()
            assert get_in(client, renew=True)
            assert_forwards(client, server)
            assert relay.metric("wavry_relay_cookie_gate_on_total") == 1
            assert relay.metric("wavry_relay_cookie_demanded_total") > 0
        wait_until(
            lambda: not relay.metric("wavry_relay_cookie_gate_workers"),
            timeout_s=30,
            what="gate open again",
        )
        with UdpPeer(mint, relay.relay_id, relay.udp[0], uuid.uuid4(), c.Role.CLIENT) as late:
            late.present()


def test_subnet_block_is_listed_and_cleared_at_the_relay(tmp_path: Path, engine: str) -> None:
    mint = Mint()
    with (
        RelayProcess(
            tmp_path,
            mint,
            workers=1,
            WAVRY_RELAY_ENGINE=engine,
            WAVRY_RELAY_COOKIE_AT_VERIFIES_PER_S="0",
            WAVRY_RELAY_BLOCK_AFTER="5",
        ) as relay,
        UdpPeer(mint, relay.relay_id, relay.udp[0], uuid.uuid4(), c.Role.CLIENT) as bad,
    ):
        body = bad.ask(bad.present_datagram()).body
        assert isinstance(body, packets.PathChallenge)
        good_token, bad.token = bad.token, b"v4.public." + b"A" * 300
        for _ in range(12):
            answer = bad.ask(bad.present_datagram(cookie=body.cookie)).body
            assert isinstance(answer, packets.LeaseReject)
        assert answer.reason == R.BANNED
        where = ["--state-dir", str(relay.state_dir)]
        listed = CLI.invoke(app, ["blocks", "list", *where])
        assert listed.exit_code == 0, listed.output
        (block,) = json.loads(listed.stdout)["blocks"]
        assert block["subnet"] == "127.0.0.1/32"
        assert block["reason"] == "invalid_signature"
        assert relay.metric("wavry_relay_blocked_hosts") == 1
        assert relay.metric("wavry_relay_hosts_blocked_total") == 1
        assert CLI.invoke(app, ["blocks", "clear", *where]).exit_code == 2
        wrong = CLI.invoke(app, ["blocks", "clear", "nonsense", *where])
        assert wrong.exit_code == 1
        assert "no subnet" in wrong.output
        cleared = CLI.invoke(app, ["blocks", "clear", "127.0.0.1", *where])
        assert json.loads(cleared.stdout) == {"cleared": 1}
        bad.token = good_token
        get_in(bad)
    gone = CLI.invoke(app, ["blocks", "list", "--state-dir", str(tmp_path / "nowhere")])
    assert gone.exit_code == 1
    assert "no relay answers" in gone.output


def test_load_shedding_of_a_real_relay_changes_at_a_reload(tmp_path: Path, engine: str) -> None:
    mint = Mint()
    settings = tmp_path / "relay.env"
    settings.write_text("WAVRY_RELAY_SHED_AT_PCT=20\n")
    with RelayProcess(
        tmp_path,
        mint,
        workers=1,
        WAVRY_RELAY_ENGINE=engine,
        WAVRY_RELAY_MAX_SESSIONS="10",
        WAVRY_RELAY_SHED_AT_PCT="",
        WAVRY_RELAY_SETTINGS_FILE=str(settings),
    ) as relay:
        with active_session(relay, mint) as (client, _), active_session(relay, mint):
            wait_until(
                lambda: relay.metric("wavry_relay_shedding", cause="sessions"), what="shedding"
            )
            assert relay.health()["shedding"] == ["sessions"]
            peer = UdpPeer(mint, relay.relay_id, relay.udp[0], uuid.uuid4(), c.Role.CLIENT)
            with peer as new:
                body = new.ask(new.present_datagram()).body
                assert isinstance(body, packets.LeaseReject)
                assert body.reason == R.SESSION_FULL
                client.token = client.new_token()
                client.present(renew=True)
                settings.write_text("WAVRY_RELAY_SHED_AT_PCT=100\n")
                assert (
                    CLI.invoke(app, ["reload", "--state-dir", str(relay.state_dir)]).exit_code == 0
                )
                wait_until(
                    lambda: not relay.metric("wavry_relay_shedding", cause="sessions"), what="end"
                )
                new.present()
        assert relay.events("shedding_began")
        assert relay.events("shedding_ended")
