"""Both engines over equal tables: random datagrams leave equal decisions, counters and records."""

import socket
import struct
import uuid
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.engine.conformance import rift_handshake, rift_transport
from support.engine.native import twins
from support.relay.world import Peer, World, open_world, v4, v6

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets, stun
from wavry_relay.engine.base import Forward
from wavry_relay.engine.cookie import PathCookies
from wavry_relay.shm.address import Address
from wavry_relay.shm.control import EngineKind, Limits

UDP_SEGMENT = 103


pytestmark = pytest.mark.usefixtures("native")


def plain(sequence: int, payload: bytes) -> bytes:
    return sequence.to_bytes(8, "big") + payload


FRAMES: list[Callable[[int, bytes], bytes]] = [plain, rift_handshake, rift_transport]
LIMITS = st.builds(
    Limits,
    global_kbps=st.sampled_from([0, 0, 2000]),
    global_pps=st.sampled_from([0, 0, 300]),
    session_kbps=st.sampled_from([0, 0, 3000]),
    ip_per_s=st.sampled_from([1000, 1000, 1, 7]),
    ip_burst=st.sampled_from([1000, 1000, 1, 3]),
    network_per_s=st.sampled_from([0, 0, 1, 20]),
    network_burst=st.sampled_from([0, 0, 1, 4]),
    identity_per_s=st.just(1000),
    identity_burst=st.just(1000),
)
SEQUENCES = st.one_of(
    st.integers(0, 40),
    st.integers(900, 1200),
    st.sampled_from([1 << 20, (1 << 20) + 41, 1 << 63, (1 << 64) - 2, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
)


def populate(world: World) -> list[Peer]:
    """Peers of sessions of every state, and one that never presented."""
    peers: list[Peer] = []
    for number, options in enumerate(
        (
            {},
            {"hard_kbps": 300, "soft_kbps": 50},
            {"soft_kbps": 0},
            {"ttl_s": 60},
            {"client": v6(1), "server": v4(1, 5000, listen=1)},
            {"client": v6(2, scope=3), "server": v6(2, scope=4)},
        )
    ):
        where = {"client": v4(20 + 2 * number), "server": v4(21 + 2 * number)}
        peers.extend(world.session(**{**where, **options}))
    waiting = world.peer(address=v4(60))
    waiting.accept()
    return [*peers, waiting, world.peer(address=v4(61))]


class Traffic:
    """Draws datagrams for the peers of a world."""

    def __init__(self, data: st.DataObject, world: World, peers: list[Peer]) -> None:
        self.data = data
        self.world = world
        self.peers = peers
        self.sent: list[tuple[bytes, Address]] = []

    def proof(self, peer: Peer, source: Address) -> bytes:
        """Role, token and proof of a lease, with a cookie that is good, or nearly."""
        draw, cookies = self.data.draw, PathCookies(self.world.control.cookie_key)
        other = draw(st.sampled_from(self.peers))
        ago_ns = draw(st.sampled_from([0, 0, 0, 30, 60, 90])) * 1_000_000_000
        now_ns = max(0, self.world.now.mono_ns - ago_ns)
        cookie = draw(
            st.sampled_from(
                [
                    *[cookies.make(peer.sid.bytes, source, now_ns)] * 4,
                    cookies.make(peer.sid.bytes, other.address, now_ns),
                    cookies.make(other.sid.bytes, source, now_ns),
                    c.NO_COOKIE,
                    c.RELEASE_COOKIE,
                ]
            )
        )
        token = bytes(draw(st.sampled_from([0, 1, 300])))
        whole = bytes(11) + token + cookie + bytes(c.SIGNATURE_BYTES)
        return whole[draw(st.sampled_from([0, 0, 0, 11, 12])) :]

    def next(self) -> tuple[bytes, Address]:
        draw = self.data.draw
        kinds = [
            "forward",
            "forward",
            "forward",
            "again",
            "mutated",
            "lease",
            "stun",
            "raw",
            "other",
        ]
        kind = draw(st.sampled_from(kinds))
        peer = draw(st.sampled_from(self.peers))
        source = peer.address
        if draw(st.integers(0, 9)) == 0:
            source = draw(
                st.sampled_from([v4(99), v6(99), *(other.address for other in self.peers)])
            )
        if kind == "again" and self.sent:
            return draw(st.sampled_from(self.sent))
        if kind == "lease":
            flags = draw(st.integers(0, 3))
            head = bytes((0x57, 1, draw(st.sampled_from([1, 4])), flags)) + peer.sid.bytes
            return head + draw(st.sampled_from([b"", self.proof(peer, source)])), source
        if kind == "stun":
            request = bytearray(stun.build_binding_request(bytes(12)))
            request[draw(st.integers(0, 7))] ^= draw(st.sampled_from([0, 0, 1, 4]))
            return bytes(request), source
        if kind == "raw":
            return draw(st.binary(max_size=64)), source
        if kind == "other":
            head = bytes((0x57, 1, draw(st.integers(0, 255)), draw(st.integers(0, 255))))
            return head + draw(st.sampled_from([peer.sid.bytes, bytes(16)])) + bytes(8), source
        frame = draw(st.sampled_from(FRAMES))
        size = draw(st.sampled_from([0, 1, 100, 1200, 1400, 1401, 1449, 1450]))
        datagram = bytearray(
            packets.build_forward(peer.sid.bytes, frame(draw(SEQUENCES), bytes(size))[:1480])
        )
        if kind == "mutated":
            datagram[draw(st.integers(0, min(60, len(datagram) - 1)))] ^= 1 << draw(
                st.integers(0, 7)
            )
            del datagram[len(datagram) - draw(st.sampled_from([0, 0, 1, len(datagram) - 19])) :]
        self.sent.append((bytes(datagram), source))
        return self.sent[-1]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(limits=LIMITS, data=st.data())
def test_equal_decisions_counters_and_records(limits: Limits, data: st.DataObject) -> None:
    with open_world() as world:
        peers = populate(world)
        world.control.limits = limits
        if data.draw(st.booleans()):
            world.advance(59.99)
        traffic = Traffic(data, world, peers)
        with twins(world) as (reference, native):
            for _ in range(data.draw(st.integers(1, 60))):
                datagram, source = traffic.next()
                wanted = reference.decide(datagram, source, world.now)
                assert native.decide(datagram, source, world.now) == wanted
                world.advance(data.draw(st.sampled_from([0.0, 0.0, 0.0003, 0.004, 0.3])))
            assert native.counters() == reference.counters()
            assert native.tables() == reference.tables()


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({}, "peer_rate"),
        ({"session_kbps": 400}, "session_rate"),
        ({"global_kbps": 1500}, "global_rate"),
        ({"global_pps": 300}, "global_rate"),
        ({"global_pps": 400, "global_kbps": 2500}, "global_rate"),
    ],
    ids=str,
)
def test_long_equal_streams_through_every_limit(limits: dict[str, int], reason: str) -> None:
    """Thousands of packets, faster than the limits, with windows that wrap often."""
    generous = Limits(ip_per_s=1000, ip_burst=1000, identity_per_s=1000, **limits)
    random = Random(7)
    with open_world(limits=generous) as world:
        peers = populate(world)
        seen: set[str] = set()
        with twins(world) as (reference, native):
            for number in range(4000):
                peer = random.choice(peers)
                sequence = max(0, number * 3 + random.choice([0, 1, 5, -40, -4000, 900]))
                datagram = peer.frame(sequence, bytes(random.choice([0, 100, 1200, 1400, 1401])))
                wanted = reference.decide(datagram, peer.address, world.now)
                assert native.decide(datagram, peer.address, world.now) == wanted
                seen.add(getattr(wanted, "reason", type(wanted).__name__))
                world.advance(random.choice([0.0, 0.0005, 0.002]))
            assert native.counters() == reference.counters()
            assert native.tables() == reference.tables()
        assert {"Forward", "duplicate", "too_old", "bad_body", "not_active", reason} <= seen


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_equal_bytes_through_sockets_from_trains_that_mix_sessions(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    def opened() -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.bind((host, 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        sock.setblocking(False)
        return sock

    relays = {EngineKind.REFERENCE: opened(), EngineKind.NATIVE: opened()}
    ends = [opened() for _ in range(4)]
    places = [Address.from_sockaddr(end.getsockname()) for end in ends]
    try:
        with open_world() as world:
            # One client socket carries both sessions, so one train can mix them.
            first = world.session(client=places[0], server=places[1])
            second = world.session(client=places[0], server=places[2])
            limited = world.session(client=places[0], server=places[3], hard_kbps=200)
            sockets = {kind: [relay] for kind, relay in relays.items()}
            with twins(world, sockets) as made:
                reference, native = made
                number = 0
                for size in (60, 1228, 300, 48):
                    for length in (1, 2, 5, 17, 40):
                        train = b""
                        for at in range(length):
                            peer = (first, second, limited)[(number * 5 + at) % 3][0]
                            # Every sixth comes twice, every ninth belongs to nobody.
                            if at % 6:
                                number += 1
                            frame = peer.frame(number, bytes((number % 256,)) * (size - 28))
                            if at % 9 == 8:
                                frame = (
                                    frame[:4] + uuid.uuid5(first[0].sid, str(at)).bytes + frame[20:]
                                )
                            train += frame
                        train += peer.frame(number + 1, b"")[: size - 1] if length % 2 else b""
                        for relay in relays.values():
                            send_train(ends[0], train, size, relay.getsockname())
                for twin in made:
                    for _ in range(20):
                        assert not twin.engine.run(0)
                got = [received_from(end, relays) for end in ends[1:]]
                assert native.counters() == reference.counters()
                assert native.tables() == reference.tables()
                assert native.counters()["forwarded_packets"] > 100
                assert native.counters()["drop_duplicate"] > 10
                assert native.counters()["drop_peer_rate"] > 0
                assert native.engine.statistics["gso_messages"] > 5  # type: ignore[attr-defined]
                for by_relay in got:
                    assert by_relay[EngineKind.NATIVE] == by_relay[EngineKind.REFERENCE]
                    assert by_relay[EngineKind.NATIVE]
    finally:
        for sock in (*ends, *relays.values()):
            sock.close()


def send_train(sock: socket.socket, train: bytes, size: int, to: object) -> None:
    control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", size))]
    assert sock.sendmsg([train], control, 0, to) == len(train)


def received_from(
    end: socket.socket, relays: dict[EngineKind, socket.socket]
) -> dict[EngineKind, list[bytes]]:
    by_port = {relay.getsockname()[1]: kind for kind, relay in relays.items()}
    got: dict[EngineKind, list[bytes]] = {kind: [] for kind in relays}
    while True:
        try:
            datagram, source = end.recvfrom(c.RECEIVE_BUFFER_BYTES)
        except BlockingIOError:
            return got
        got[by_port[source[1]]].append(datagram)


def test_forward_decisions_name_the_same_address_type() -> None:
    with open_world() as world:
        client, server = world.session()
        with twins(world) as (_, native):
            decision = native.decide(client.frame(1), client.address, world.now)
            assert decision == Forward(server.address)
            assert isinstance(decision, Forward)
            assert isinstance(decision.to, Address)
