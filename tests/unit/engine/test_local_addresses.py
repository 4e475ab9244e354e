"""Wildcard sockets: what goes to a peer leaves from the address that it wrote to.

The peers' sockets are connected, so they hear nothing that comes from another address.
"""

import errno
import itertools
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from support.needs import need_engine
from support.relay.world import World, open_world

from wavry_peer.protocol import stun
from wavry_relay.engine.base import ControlPacket
from wavry_relay.engine.local_addresses import LocalAddresses, tell_destinations
from wavry_relay.shm.address import FIRST_LOCAL, Address
from wavry_relay.shm.control import EngineKind
from wavry_relay.shm.layout import LOCAL_ADDRESSES, Geometry
from wavry_relay.shm.locks import FileLocks
from wavry_relay.shm.segment import Segment

ASKED = ("127.0.0.1", "127.0.0.2", "127.9.9.9")


class Loopback:
    """A world with one wildcard socket."""

    def __init__(self, stack: ExitStack, kind: EngineKind, host: str) -> None:
        self.stack = stack
        family = socket.AF_INET6 if host == "::" else socket.AF_INET
        relay = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        if family == socket.AF_INET6:
            relay.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        relay.setblocking(False)
        relay.bind((host, 0))
        tell_destinations(relay)
        self.port = relay.getsockname()[1]
        self.world: World = stack.enter_context(open_world(kind=kind, sockets=[relay]))

    def run(self) -> list[ControlPacket]:
        return list(self.world.engine.run(0))

    def peer(self, asked: str) -> tuple[socket.socket, Address]:
        """A peer that wrote to an address of the relay, and where the relay has it."""
        family = socket.AF_INET6 if ":" in asked else socket.AF_INET
        sock = self.stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        sock.setblocking(False)
        sock.connect((asked, self.port))
        sock.send(stun.build_binding_request(bytes(12)))
        (packet,) = self.run()
        return sock, packet.source


@pytest.fixture(params=list(EngineKind), ids=lambda kind: kind.name.lower())
def kind(request: pytest.FixtureRequest) -> EngineKind:
    return need_engine(request.param)


@pytest.fixture(params=["0.0.0.0", "::"])
def loopback(request: pytest.FixtureRequest, kind: EngineKind) -> Iterator[Loopback]:
    with ExitStack() as stack:
        yield Loopback(stack, kind, request.param)


def test_pitfall_wildcard_answers_from_the_address_that_was_asked(loopback: Loopback) -> None:
    for asked in ASKED:
        sock, source = loopback.peer(asked)
        assert source.family == 4
        assert source.listen >= FIRST_LOCAL
        assert loopback.world.engine.send(b"answer", source)
        assert sock.recv(100) == b"answer"


def test_what_is_forwarded_leaves_from_the_receivers_address(loopback: Loopback) -> None:
    for client_asked, server_asked in itertools.product(ASKED, ASKED):
        alice, client_at = loopback.peer(client_asked)
        bob, server_at = loopback.peer(server_asked)
        client, server = loopback.world.session(client=client_at, server=server_at)
        for number in range(1, 31):
            alice.send(client.frame(number, bytes(100)))
            bob.send(server.frame(number, bytes(100)))
        assert not loopback.run()
        assert [bob.recv(2000) for _ in range(30)] == [
            client.frame(number, bytes(100)) for number in range(1, 31)
        ]
        assert [alice.recv(2000) for _ in range(30)] == [
            server.frame(number, bytes(100)) for number in range(1, 31)
        ]


@pytest.mark.parametrize("code", [errno.EMSGSIZE, errno.EIO, errno.EINVAL])
def test_a_refused_train_is_sent_apart_from_the_same_address(code: int) -> None:
    need_engine(EngineKind.NATIVE)
    with ExitStack() as stack:
        loopback = Loopback(stack, EngineKind.NATIVE, "0.0.0.0")
        alice, client_at = loopback.peer(ASKED[0])
        bob, server_at = loopback.peer(ASKED[1])
        client, _ = loopback.world.session(client=client_at, server=server_at)
        loopback.world.engine.inject_fault(code, 1, only_gso=True)
        for number in range(1, 31):
            alice.send(client.frame(number, bytes(100)))
        loopback.run()
        assert len([bob.recv(2000) for _ in range(30)]) == 30
        assert loopback.world.engine.statistics["retried_messages"] == 0


def test_a_mapped_peer_is_limited_as_the_ipv4_peer_that_it_is(kind: EngineKind) -> None:
    with ExitStack() as stack:
        _, mapped = Loopback(stack, kind, "::").peer("127.0.0.1")
        _, plain = Loopback(stack, kind, "0.0.0.0").peer("127.0.0.1")
        assert mapped.network_key == plain.network_key
        assert mapped.packed == plain.packed == bytes((127, 0, 0, 1))


def test_a_broadcast_or_multicast_address_is_no_address_to_answer_from() -> None:
    segment = Segment.anonymous(Geometry(1, 1), now_ns=0)
    addresses = LocalAddresses(segment, FileLocks(segment.fd))
    mapped = bytes(10) + b"\xff\xff"
    for packed in (
        bytes(16),
        b"\xff\x02" + bytes(14),
        mapped + b"\xe0\0\0\1",
        mapped + b"\xff" * 4,
    ):
        assert addresses.number(3, packed, 0) == 3
    assert addresses.entry(3) is None
    assert addresses.entry(FIRST_LOCAL) is None
    segment.close()


def test_a_full_table_leaves_the_choice_to_the_kernel_and_keeps_what_it_has() -> None:
    segment = Segment.anonymous(Geometry(1, 1), now_ns=0)
    locks = FileLocks(segment.fd)
    texts = [b"\x20\x01" + number.to_bytes(14, "big") for number in range(LOCAL_ADDRESSES + 2)]
    first = LocalAddresses(segment, locks)
    numbers = [first.number(1, packed, 0) for packed in texts]
    assert numbers == [*range(FIRST_LOCAL, FIRST_LOCAL + LOCAL_ADDRESSES), 1, 1]
    again = LocalAddresses(segment, locks)  # another process sees the same ones
    assert again.number(1, texts[700], 0) == numbers[700]
    entry = again.entry(numbers[700])
    assert entry is not None
    assert entry[:3] == (1, texts[700], 0)
    segment.close()
