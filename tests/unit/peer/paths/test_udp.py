"""The UDP shell: buffers, truncation, address choice, garbage from the relay's address."""

import asyncio
import random
import socket
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from support.peer.peer_world import PeerWorld, eventually

from wavry_peer.errors import SessionFailedError
from wavry_peer.paths.relay_events import PathLimits
from wavry_peer.paths.udp import UdpSocket, connect_udp, usable_addresses
from wavry_peer.protocol import packets


@pytest.fixture
def server():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


def test_socket_buffers_are_sized(server) -> None:
    sock, _ = connect_udp([server.getsockname()])
    with sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as usual:
        for option, limit in ((socket.SO_RCVBUF, "rmem_max"), (socket.SO_SNDBUF, "wmem_max")):
            most = int(Path(f"/proc/sys/net/core/{limit}").read_text())
            want = 2 * min(most, 4 << 20)
            assert sock.getsockopt(socket.SOL_SOCKET, option) >= want
            assert want >= usual.getsockopt(socket.SOL_SOCKET, option)


async def test_an_oversized_datagram_is_seen_as_such_and_not_cut_to_a_good_one(
    world: PeerWorld,
) -> None:
    async with world.pair() as (alice, bob):
        session_id = bytes.fromhex(alice.session_id.replace("-", ""))
        for size in (1481, 1700, 60_000):
            datagram = packets.build_forward(session_id, b"") + bytes(size)
            world.relay.tell_all(lambda _id, d=datagram: d)
        await eventually(lambda: sum(bob.statistics().relay_drops.values()) == 3)
        assert bob.statistics().rejected_packets == 0, "the channel never saw them"


async def test_only_the_relays_address_is_heard(server) -> None:
    got: list[bytes] = []

    def on_datagrams(datagrams: Sequence[bytes]) -> None:
        got.extend(datagrams)

    sock, _ = connect_udp([server.getsockname()])
    udp = UdpSocket(sock, on_datagrams)
    own = sock.getsockname()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"from a stranger", own)
        server.sendto(b"from the relay", own)
        await eventually(lambda: got)
    assert got == [b"from the relay"]
    udp.close()
    udp.close()
    udp.send(b"after the end")


async def test_a_relay_that_is_gone_is_no_exception() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        address = gone.getsockname()
    sock, _ = connect_udp([address])
    udp = UdpSocket(sock, lambda _datagrams: None)
    for _ in range(5):
        udp.send(b"x")
        await asyncio.sleep(0.005)
    udp.send(bytes(70_000))
    counts = udp.statistics
    assert counts.send_drops + counts.receive_errors >= 2
    udp.close()


def test_addresses_that_a_relay_cannot_have_are_left_out() -> None:
    given = ["1.2.3.4:5", "[2001:db8::1]:7", "1.2.3.4:5", "0.0.0.0:5", "[::]:5", "1.2.3.4:0",
             "224.0.0.1:5", "name.example:5", "1.2.3.4", "", "1.2.3.4:x", "[::1:5"]  # fmt: skip
    assert usable_addresses(given) == [("1.2.3.4", 5), ("2001:db8::1", 7)]


def test_an_address_family_without_a_route_is_passed_over(server, monkeypatch) -> None:
    true_connect = socket.socket.connect

    def connect(self: socket.socket, address: tuple[str, int]) -> None:
        if self.family == socket.AF_INET6:
            raise OSError(101, "Network is unreachable")
        true_connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    sock, index = connect_udp([("2001:db8::1", 5), server.getsockname()])
    with sock:
        assert index == 1
        assert sock.family == socket.AF_INET
    with pytest.raises(SessionFailedError, match="IPv4 and IPv6"):
        connect_udp([("2001:db8::1", 5)])
    with pytest.raises(SessionFailedError):
        connect_udp([])


async def test_the_other_address_is_tried_when_the_first_is_silent(
    world: PeerWorld, monkeypatch
) -> None:
    quick = PathLimits(deadline_ns=300_000_000)
    monkeypatch.setattr("wavry_peer.connection.PathLimits", lambda: quick)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
        mute.bind(("127.0.0.1", 0))
        host, port = mute.getsockname()
        original = world.gateway._credentials

        def credentials(*arguments):
            own = original(*arguments)
            first = f"{host}:{port}"
            return msgspec.structs.replace(own, addr=first, addrs=(first, own.addr))

        monkeypatch.setattr(world.gateway, "_credentials", credentials)
        async with world.pair() as (alice, bob):
            await alice.send(b"x")
            assert await bob.receive() == b"x"
            assert alice.statistics().path == "relay rly-test-1"


async def test_garbage_from_the_relays_address_does_no_harm(world: PeerWorld) -> None:
    dice = random.Random(5)
    async with world.pair() as (alice, bob):
        session_id = bytes.fromhex(alice.session_id.replace("-", ""))
        for _ in range(400):
            noise = dice.randbytes(dice.randrange(1500))
            header = bytes((0x57, 1, dice.choice([1, 2, 3, 4, 5, 6, 16]), dice.randrange(2)))
            for datagram in (noise, header + session_id + noise[: dice.randrange(200)]):
                world.relay.tell_all(lambda _id, d=datagram[:1600]: d)
            await asyncio.sleep(0)
        await eventually(lambda: bob.statistics().packets_received > 10)
        await alice.send(b"still here")
        async with asyncio.timeout(3):
            assert await bob.receive() == b"still here"
        assert bob.statistics().handshakes == 1


async def test_no_file_descriptor_is_left(world: PeerWorld) -> None:
    async with world.pair():
        pass
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        async with world.pair():
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
