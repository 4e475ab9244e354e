"""What a stranger sends in somebody's name costs that one nothing that he has proved.

The stranger shares the victim's loopback address, and his port: what the relay sees is what it
would see of a spoofer anywhere.
"""

import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.relay.udp_peer import UdpPeer, active_session
from support.waiting import wait_until

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets, stun

MINT = Mint()
RENEWALS = 18
PER_S = 500


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Iterator[RelayProcess]:
    limits = {"WAVRY_RELAY_IP_PER_S": "50", "WAVRY_RELAY_IP_BURST": "100"}  # the defaults
    directory = tmp_path_factory.mktemp("relay")
    with RelayProcess(directory, MINT, WAVRY_RELAY_ENGINE=engine, **limits) as started:
        yield started


def spoofed() -> list[bytes]:
    """What anybody can make: requests of STUN, a keepalive, a lease with a cookie."""
    sid = uuid.uuid4().bytes
    lease = packets.build_present(
        sid, c.Role.CLIENT, b"v4.public." + b"A" * 300,
        counter=1, cookie=b"made up!", sign=lambda _: bytes(64),
    )  # fmt: skip
    keepalive = bytes((c.MAGIC, c.VERSION, c.PacketType.LEASE_RENEW, 0)) + sid
    return [*[stun.build_binding_request(bytes(12))] * 4, keepalive, lease]


@contextmanager
def flood(relay: RelayProcess, victim: UdpPeer, *, own_port: bool) -> Iterator[None]:
    """Packets in the victim's name, some six hundred a second, until the end of the block."""
    host, port = victim.sock.getsockname()
    victim.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    stop = threading.Event()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port if own_port else 0))

    def send() -> None:
        while not stop.wait(0.01):
            for datagram in spoofed():
                sock.sendto(datagram, victim.sock.getpeername())

    before = relay.metric("wavry_relay_limited_total", layer="host")
    thread = threading.Thread(target=send)
    thread.start()
    try:
        wait_until(
            lambda: relay.metric("wavry_relay_limited_total", layer="host") > before + 50,
            what="that what can be spoofed is used up",
        )
        yield
    finally:
        stop.set()
        thread.join()
        sock.close()


def renewal(peer: UdpPeer) -> packets.Packet:
    """Answer to a renewal, among answers to what others sent."""
    peer.token = peer.new_token()
    for _ in range(5):  # A busy relay may drop one.
        peer.sock.send(peer.present_datagram(renew=True))
        with suppress(TimeoutError):
            while True:
                raw = peer.sock.recv(2048)
                if raw[c.SESSION_ID_OFFSET : c.HEADER_BYTES] == peer.sid.bytes:
                    return packets.parse_packet(raw)
    raise AssertionError("no answer to five renewals")


@pytest.mark.parametrize("own_port", [False, True], ids=["other-port", "own-port"])
def test_who_is_spoofed_renews_all_the_same(relay: RelayProcess, own_port: bool) -> None:
    """17 of 18 renewals were RATE_LIMITED once."""
    with active_session(relay, MINT) as (victim, other):
        refused = relay.metric("wavry_relay_lease_rejects_total", reason="rate_limited")
        with flood(relay, victim, own_port=own_port):
            for _ in range(RENEWALS):
                answer = renewal(victim)
                assert isinstance(answer.body, packets.LeaseAck), answer
            victim.forward(b"media")
            assert other.receive()[1] == b"media"
        assert relay.metric("wavry_relay_lease_rejects_total", reason="rate_limited") == refused
