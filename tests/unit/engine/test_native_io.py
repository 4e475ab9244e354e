"""Batch I/O of the native engine through real sockets: trains, families, and every refusal."""

import errno
import json
import os
import socket
import struct
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from support.relay.world import Peer, World, open_world

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets
from wavry_peer.service.clock import Clock
from wavry_relay.engine import open_engine
from wavry_relay.engine.base import ControlKind, ControlPacket, SenderClass
from wavry_relay.shm.address import Address
from wavry_relay.shm.control import EngineKind

UDP_SEGMENT = 103
UDP_GRO = 104
SO_NO_CHECK = 11
BUFFER_BYTES = 4 << 20


pytestmark = pytest.mark.usefixtures("native")


class Bench:
    """A world with real sockets; peers are sockets too."""

    def __init__(self, stack: ExitStack, hosts: tuple[str, ...], **options: object) -> None:
        self.stack = stack
        self.relays = [self.open(host) for host in hosts]
        self.options = options

    def open(self, host: str, *, dual: bool = False) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = self.stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        if dual:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, 0))
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        sock.setblocking(False)
        return sock

    def start(self) -> World:
        self.world = self.stack.enter_context(
            open_world(kind=EngineKind.NATIVE, sockets=self.relays, **self.options)
        )
        return self.world

    def session(
        self, client: socket.socket, server: socket.socket, listens: tuple[int, int] = (0, 0)
    ) -> tuple[Peer, Peer]:
        return self.world.session(
            client=Address.from_sockaddr(client.getsockname(), listen=listens[0]),
            server=Address.from_sockaddr(server.getsockname(), listen=listens[1]),
        )


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def bench(stack: ExitStack) -> Bench:
    return Bench(stack, ("127.0.0.1",))


def frames(peer: Peer, first: int, count: int, payload: int) -> list[bytes]:
    return [peer.frame(first + at, bytes((at % 256,)) * payload) for at in range(count)]


def send_train(sock: socket.socket, datagrams: list[bytes], to: socket.socket) -> None:
    train = b"".join(datagrams)
    control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", len(datagrams[0])))]
    assert sock.sendmsg([train], control, 0, to.getsockname()) == len(train)


def drain(sock: socket.socket) -> list[bytes]:
    got = []
    while True:
        try:
            got.append(sock.recv(70_000))
        except BlockingIOError:
            return got


def test_a_train_goes_out_as_one_message(bench: Bench) -> None:
    world = bench.start()
    alice, bob = bench.open("127.0.0.1"), bench.open("127.0.0.1")
    client, _ = bench.session(alice, bob)
    bob.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    sent = [*frames(client, 0, 40, 1200), client.frame(40, b"tail")]
    send_train(alice, sent, bench.relays[0])
    assert not world.engine.run(0)
    assert drain(bob) == [b"".join(sent)]  # GRO on: bob sees how it left the relay
    assert world.count("forwarded_packets") == 41
    assert world.count("received_packets") == 41
    assert world.count("forwarded_bytes") == world.count("received_bytes") == len(b"".join(sent))
    assert world.engine.offload == [(True, True)]


def test_answers_to_one_peer_leave_as_one_message_and_are_not_counted_as_forwarded(
    bench: Bench,
) -> None:
    world = bench.start()
    alice, bob = bench.open("127.0.0.1"), bench.open("127.0.0.1")
    for sock in (alice, bob):
        sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    to_alice, to_bob = (Address.from_sockaddr(sock.getsockname()) for sock in (alice, bob))
    ack, challenge = b"a" * 55, b"c" * 28
    from_alice, from_bob = (
        ControlPacket(ControlKind.LEASE, b"", address) for address in (to_alice, to_bob)
    )
    world.engine.answer(
        [from_alice, from_alice, from_bob], [(ack, challenge), (), (ack, challenge)]
    )
    assert drain(alice) == drain(bob) == [ack + challenge]  # GRO on: as it left the relay
    assert world.count("forwarded_packets") == world.count("forwarded_bytes") == 0
    world.engine.inject_fault(errno.EPERM, 1)
    world.engine.answer([from_alice], [(ack, challenge)])
    assert world.count("drop_send_failed") == 2
    assert world.count("dropped_bytes_send_failed") == len(ack + challenge)
    assert drain(alice) == []


def test_lone_datagrams_are_gathered_into_one_message(bench: Bench) -> None:
    world = bench.start()
    alice, bob = bench.open("127.0.0.1"), bench.open("127.0.0.1")
    client, _ = bench.session(alice, bob)
    bob.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    # A shorter one closes a group, a longer one cannot join.
    sizes = [1000] * 10 + [700] + [1000] * 3 + [1400] * 5
    sent = [client.frame(at, bytes(size)) for at, size in enumerate(sizes)]
    for datagram in sent:
        alice.sendto(datagram, bench.relays[0].getsockname())
    world.engine.run(0)
    trains = [b"".join(sent[:11]), b"".join(sent[11:14]), b"".join(sent[14:])]
    assert drain(bob) == trains


@pytest.mark.parametrize("payload", [8, 1000, 1400])
def test_groups_end_at_64_segments_and_64_kb(bench: Bench, payload: int) -> None:
    world = bench.start()
    alice, bob = bench.open("127.0.0.1"), bench.open("127.0.0.1")
    client, _ = bench.session(alice, bob)
    sent = frames(client, 0, 400, payload)
    for at in range(0, 400, 40):
        send_train(alice, sent[at : at + 40], bench.relays[0])
    world.engine.run(0)
    assert drain(bob) == sent
    assert world.count("drop_send_failed") == 0
    # The kernel took every group as it was: none was refused and sent apart.
    assert world.engine.offload == [(True, True)]
    assert world.engine.statistics["plain_learned"] == 0
    assert world.engine.statistics["gso_messages"] >= 7


def test_many_sessions_keep_each_flow_in_order(bench: Bench) -> None:
    world = bench.start()
    alice = bench.open("127.0.0.1")
    servers = [bench.open("127.0.0.1") for _ in range(20)]
    clients = [bench.session(alice, server)[0] for server in servers]
    wanted: dict[int, list[bytes]] = {number: [] for number in range(20)}
    for round_number in range(30):
        for number, client in enumerate(clients):
            size = 1000 - (round_number * number) % 7
            datagram = client.frame(round_number, bytes(size))
            wanted[number].append(datagram)
            alice.sendto(datagram, bench.relays[0].getsockname())
    for _ in range(10):
        world.engine.run(0)
    assert [drain(server) for server in servers] == list(wanted.values())


def test_a_v4_peer_and_a_v6_peer_in_one_session(stack: ExitStack) -> None:
    bench = Bench(stack, ("127.0.0.1", "::1"))
    world = bench.start()
    alice, bob = bench.open("127.0.0.1"), bench.open("::1")
    client, server = bench.session(alice, bob, (0, 1))
    there, back = frames(client, 0, 30, 900), frames(server, 0, 30, 900)
    send_train(alice, there, bench.relays[0])
    send_train(bob, back, bench.relays[1])
    world.engine.run(0)
    assert drain(bob) == there
    assert drain(alice) == back


def test_a_dual_stack_socket_serves_both_families(stack: ExitStack) -> None:
    bench = Bench(stack, ())
    bench.relays.append(bench.open("::", dual=True))
    world = bench.start()
    port = bench.relays[0].getsockname()[1]
    alice, bob = bench.open("127.0.0.1"), bench.open("::1")
    mapped = ("::ffff:127.0.0.1", alice.getsockname()[1], 0, 0)
    client, server = world.session(
        client=Address.from_sockaddr(mapped), server=Address.from_sockaddr(bob.getsockname())
    )
    alice.sendto(client.frame(1, b"from v4"), ("127.0.0.1", port))
    bob.sendto(server.frame(1, b"from v6"), ("::1", port))
    world.engine.run(0)
    assert drain(bob) == [client.frame(1, b"from v4")]
    assert drain(alice) == [server.frame(1, b"from v6")]


def test_address_of_a_listen_number_that_is_gone_uses_the_family(bench: Bench) -> None:
    world = bench.start()
    alice = bench.open("127.0.0.1")
    assert world.engine.send(b"x", Address.from_sockaddr(alice.getsockname(), listen=7))
    assert drain(alice) == [b"x"]
    lost = Address.from_sockaddr(("::1", 9, 0, 0))
    assert not world.engine.send(b"x", lost)
    assert world.count("drop_send_failed") == 1


# -- Refusals ----------------------------------------------------------------------------------


def test_kernel_that_refuses_segmentation_turns_it_off_for_the_socket(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without checksums the kernel answers UDP_SEGMENT with EINVAL: a real refusal."""
    bench.relays[0].setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
    world = bench.start()
    alice, bob = bench.open("127.0.0.1"), bench.open("127.0.0.1")
    client, _ = bench.session(alice, bob)
    sent = frames(client, 0, 60, 1000)
    for at in (0, 30):
        send_train(alice, sent[at : at + 30], bench.relays[0])
        world.engine.run(0)
    assert drain(bob) == sent
    assert world.engine.offload == [(True, False)]
    assert world.count("forwarded_packets") == 60
    assert world.count("drop_send_failed") == 0
    assert world.engine.statistics["gso_messages"] == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "offload_refused"


def test_eio_of_the_first_train_turns_segmentation_off(bench: Bench) -> None:
    world = bench.start()
    alice, bob = bench.open("127.0.0.1"), bench.open("127.0.0.1")
    client, _ = bench.session(alice, bob)
    world.engine.inject_fault(errno.EIO, 1, only_gso=True)
    sent = frames(client, 0, 30, 1000)
    send_train(alice, sent, bench.relays[0])
    world.engine.run(0)
    assert drain(bob) == sent
    assert world.engine.offload == [(True, False)]


def test_pitfall_emsgsize_costs_one_destination_its_trains(bench: Bench) -> None:
    world = bench.start()
    alice, bob, carol = (bench.open("127.0.0.1") for _ in range(3))
    to_bob, _ = bench.session(alice, bob)
    to_carol, _ = bench.session(alice, carol)
    world.engine.inject_fault(errno.EMSGSIZE, 1, only_gso=True, port=bob.getsockname()[1])
    sent = [frames(to_bob, 0, 60, 1000), frames(to_carol, 0, 60, 1000)]
    for at in (0, 30):
        for datagrams in sent:
            send_train(alice, datagrams[at : at + 30], bench.relays[0])
        world.engine.run(0)
    assert [drain(bob), drain(carol)] == sent
    assert world.engine.offload == [(True, True)]
    assert world.engine.statistics["plain_learned"] == 1
    assert world.engine.statistics["gso_messages"] == 2  # both of carol's
    assert world.count("drop_send_failed") == 0
    world.advance(601)  # the path may have grown meanwhile: it is asked again
    to_bob.slot.expires_ms += 1_000_000
    sent = [frames(to_bob, 60, 20, 1000)]
    send_train(alice, sent[0], bench.relays[0])
    world.engine.run(0)
    assert drain(bob) == sent[0]
    assert world.engine.statistics["gso_messages"] == 3


def test_eio_for_one_destination_of_a_proven_socket_spares_the_others(bench: Bench) -> None:
    world = bench.start()
    alice, bob, carol = (bench.open("127.0.0.1") for _ in range(3))
    to_bob, _ = bench.session(alice, bob)
    to_carol, _ = bench.session(alice, carol)
    send_train(alice, frames(to_carol, 0, 5, 1000), bench.relays[0])
    world.engine.run(0)
    world.engine.inject_fault(errno.EIO, 1, only_gso=True, port=bob.getsockname()[1])
    sent = frames(to_bob, 0, 30, 1000)
    send_train(alice, sent, bench.relays[0])
    world.engine.run(0)
    assert drain(bob) == sent
    assert world.engine.offload == [(True, True)]


def test_a_peer_with_a_port_that_cannot_be_sent_to_costs_nobody_the_trains(bench: Bench) -> None:
    world = bench.start()
    alice, bob = bench.open("127.0.0.1"), bench.open("127.0.0.1")
    bad, _ = world.session(
        client=Address.from_sockaddr(alice.getsockname()),
        server=Address.from_sockaddr(("127.0.0.1", 0)),  # EINVAL, with and without a train
    )
    good, _ = bench.session(alice, bob)
    send_train(alice, frames(bad, 0, 10, 500), bench.relays[0])
    sent = frames(good, 0, 10, 500)
    send_train(alice, sent, bench.relays[0])
    world.engine.run(0)
    assert drain(bob) == sent
    assert world.engine.offload == [(True, True)]
    assert world.count("drop_send_failed") == 10


@pytest.mark.parametrize(
    ("error", "counter"),
    [(errno.EAGAIN, "drop_send_blocked"), (errno.ENOBUFS, "drop_send_blocked"),
     (errno.EPERM, "drop_send_failed"), (errno.ENETUNREACH, "drop_send_failed")],
    ids=lambda value: value if isinstance(value, str) else errno.errorcode[value],
)  # fmt: skip
def test_a_send_error_costs_its_message_and_not_the_batch(
    bench: Bench, error: int, counter: str
) -> None:
    world = bench.start()
    alice = bench.open("127.0.0.1")
    ends = [bench.open("127.0.0.1") for _ in range(5)]
    clients = [bench.session(alice, end)[0] for end in ends]
    world.engine.inject_fault(error, 10, port=ends[2].getsockname()[1])
    for client in clients:
        send_train(alice, frames(client, 0, 4, 100), bench.relays[0])
    world.engine.run(0)
    assert [len(drain(end)) for end in ends] == [4, 4, 0, 4, 4]
    assert world.count(counter) == 4
    assert world.count("forwarded_packets") == 16


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.ECONNREFUSED, errno.EINTR])
def test_a_passing_send_error_costs_nothing(bench: Bench, error: int) -> None:
    """A full buffer that empties, an ICMP error of an earlier datagram, a signal."""
    world = bench.start()
    alice, bob = bench.open("127.0.0.1"), bench.open("127.0.0.1")
    client, _ = bench.session(alice, bob)
    world.engine.inject_fault(error, 1)
    sent = frames(client, 0, 10, 100)
    send_train(alice, sent, bench.relays[0])
    world.engine.run(0)
    assert drain(bob) == sent
    assert world.count("drop_send_blocked") == world.count("drop_send_failed") == 0


def test_icmp_errors_of_the_kernel_lose_nothing(bench: Bench) -> None:
    """IP_RECVERR makes Linux report ICMP errors on this socket too, in place of a datagram."""
    bench.relays[0].setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
    world = bench.start()
    alice, bob, gone = (bench.open("127.0.0.1") for _ in range(3))
    to_bob, _ = bench.session(alice, bob)
    to_gone, _ = bench.session(alice, gone)
    gone.close()
    sent = []
    for number in range(20):
        alice.sendto(to_gone.frame(number), bench.relays[0].getsockname())
        sent.append(to_bob.frame(number, b"x"))
        alice.sendto(sent[-1], bench.relays[0].getsockname())
        world.engine.run(0)
    world.engine.run(0)
    assert drain(bob) == sent
    assert world.count("forwarded_packets") >= 20


# -- Control packets and waiting ---------------------------------------------------------------


def test_more_control_packets_than_a_round_takes_come_in_the_next_ones(bench: Bench) -> None:
    world = bench.start()
    alice, bob = bench.open("127.0.0.1"), bench.open("127.0.0.1")
    client, _ = bench.session(alice, bob)
    leases = [
        bytes((0x57, 1, 1, 0)) + client.sid.bytes + struct.pack("!I", at) for at in range(300)
    ]
    for at in range(0, 300, 50):
        send_train(alice, leases[at : at + 50], bench.relays[0])
    forwarded = client.frame(1, b"behind the flood")
    alice.sendto(forwarded, bench.relays[0].getsockname())
    got: list[bytes] = []
    for _ in range(24):
        packets = world.engine.run(0)
        assert len(packets) <= 20, "media waits while Python works on them"
        assert {packet.kind for packet in packets} <= {ControlKind.LEASE}
        assert {packet.source for packet in packets} <= {client.address}
        got += [packet.datagram for packet in packets]
    assert got == leases
    assert drain(bob) == [forwarded]
    assert world.count("received_packets") == 301


def test_pitfall_a_stranger_gets_in_while_others_flood(bench: Bench) -> None:
    """Where the queue is full the cookie comes at once, and who brings it comes first."""
    world = bench.start()
    crowd, stranger = bench.open("127.0.0.1"), bench.open("127.0.0.2")
    relay = bench.relays[0].getsockname()
    lease = bytes((0x57, 1, 1, 1)) + uuid.uuid4().bytes + bytes(200)
    for _ in range(14):
        send_train(crowd, [lease] * 40, bench.relays[0])
    assert len(world.engine.run(0)) == 20
    assert len(drain(crowd)) == 16, "of each batch so many are answered"
    assert world.count("drop_control_queue") == 560 - 512 - 16

    send_train(crowd, [lease] * 20, bench.relays[0])
    sid = uuid.uuid4().bytes
    sign = bytes(c.SIGNATURE_BYTES)
    first = packets.build_present(sid, c.Role.CLIENT, b"token", counter=1, sign=lambda _: sign)
    stranger.sendto(first, relay)
    assert len(world.engine.run(0)) == 20
    challenge = packets.parse_packet(*drain(stranger))
    assert challenge.header.session_id == sid
    assert isinstance(challenge.body, packets.PathChallenge)
    assert world.count("cookie_demanded") == world.count("sent_challenges") == 17
    assert world.count("lease_presented") == 17

    cookie = challenge.body.cookie
    again = packets.build_present(
        sid, c.Role.CLIENT, b"token", counter=2, cookie=cookie, sign=lambda _: sign
    )
    send_train(crowd, [lease] * 40, bench.relays[0])
    stranger.sendto(again, relay)
    packet = world.engine.run(0)[0]
    assert (packet.datagram, packet.sender) == (again, SenderClass.PROVED)


def test_oversized_and_empty_datagrams_are_counted(bench: Bench) -> None:
    world = bench.start()
    alice = bench.open("127.0.0.1")
    for datagram in (b"", bytes(1501), bytes(60_000)):
        alice.sendto(datagram, bench.relays[0].getsockname())
    send_train(alice, [bytes(1501)] * 3, bench.relays[0])
    world.engine.run(0)
    assert world.count("drop_too_short") == 1
    assert world.count("drop_too_long") == 5
    assert world.count("received_packets") == 6


def test_idle_costs_nothing_and_the_wake_descriptor_ends_a_round(bench: Bench) -> None:
    world = bench.start()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        engine = open_engine(
            EngineKind.NATIVE, world.segment, bench.relays, world.row, Clock(),
            wake_fd=ours.fileno(),
        )  # fmt: skip
        try:
            before_s, cpu_s = time.monotonic(), time.process_time()
            assert not engine.run(200)
            assert 0.19 < time.monotonic() - before_s < 1
            assert time.process_time() - cpu_s < 0.02
            theirs.send(b"S")
            before_s = time.monotonic()
            engine.run(5000)
            assert time.monotonic() - before_s < 1
        finally:
            engine.close()


def test_real_clocks_are_read_for_each_batch(bench: Bench) -> None:
    """With the system's clock, a lease of the fake world (2027) is checked against today."""
    world = bench.start()
    alice, bob = bench.open("127.0.0.1"), bench.open("127.0.0.1")
    client, _ = bench.session(alice, bob)
    client.slot.expires_ms = int(time.time() * 1000) + 150
    sockets = [socket.socket(fileno=os.dup(bench.relays[0].fileno()))]
    engine = open_engine(EngineKind.NATIVE, world.segment, sockets, world.row, Clock())
    try:
        alice.sendto(client.frame(1), bench.relays[0].getsockname())
        engine.run(0)
        assert len(drain(bob)) == 1
        time.sleep(0.16)
        alice.sendto(client.frame(2), bench.relays[0].getsockname())
        engine.run(0)
        assert drain(bob) == []
        assert world.count("drop_lease_expired") == 1
    finally:
        engine.close()


def test_busy_polling_burns_and_forwards(bench: Bench) -> None:
    from wavry_relay.engine._native import NativeEngine

    world = bench.start()
    alice, bob = bench.open("127.0.0.1"), bench.open("127.0.0.1")
    client, _ = bench.session(alice, bob)
    sockets = [socket.socket(fileno=os.dup(bench.relays[0].fileno()))]
    engine = NativeEngine(world.segment, sockets, world.row, world.clock, busy_poll_us=1_000_000)
    try:
        # Others may have the core for most of the time.  An engine that sleeps burns a few
        # milliseconds in all of these rounds.
        cpu_s = time.process_time()
        for _ in range(100):
            engine.run(100)
            burnt_s = time.process_time() - cpu_s
            if burnt_s > 0.03:
                break
        assert burnt_s > 0.03
        alice.sendto(client.frame(1), bench.relays[0].getsockname())
        engine.run(1)
        assert len(drain(bob)) == 1
    finally:
        engine.close()


def test_a_closed_engine_says_so_and_the_segment_can_be_closed(bench: Bench) -> None:
    world = bench.start()
    world.engine.close()
    world.engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        world.engine.run(0)
    with pytest.raises(RuntimeError, match="closed"), world.engine.locks.table():
        pass
