"""What every engine must decide alike.

`EngineConformance` is inherited by one test class for each engine; `kind` is all that differs.
Sessions are set up through the admission, time is fake, and decisions are asked for directly;
the last tests go through real sockets.
"""

import os
import socket
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.paths import REPOSITORY
from support.relay.world import World, open_world, v4, v6
from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets, stun
from wavry_peer.protocol.crc import crc16_kermit
from wavry_relay.engine.base import ControlKind, ControlPacket, Drop, Forward
from wavry_relay.shm.address import Address
from wavry_relay.shm.control import EngineKind, Limits

SID = uuid.UUID("11111111-2222-4333-8444-555555555555")
GENEROUS = {"ip_per_s": 1000, "ip_burst": 1000, "identity_per_s": 1000, "identity_burst": 1000}


def rift_transport(packet_id: int, payload: bytes = b"payload") -> bytes:
    head = b"RI" + struct.pack("!HIQ", 1, 0x01020304, packet_id)
    return head + struct.pack("!H", crc16_kermit(head)) + payload


def rift_handshake(packet_id: int, payload: bytes = b"hello") -> bytes:
    head = b"RI" + struct.pack("!HI12sQ", 1, 0, bytes(12), packet_id)
    return head + struct.pack("!H", crc16_kermit(head)) + payload


def header(kind: int = 0x10, flags: int = 0, *, magic: int = 0x57, version: int = 1) -> bytes:
    return bytes((magic, version, kind, flags)) + SID.bytes


class EngineConformance:
    kind: ClassVar[EngineKind]

    @pytest.fixture
    def world(self) -> Iterator[World]:
        with open_world(kind=self.kind) as world:
            yield world

    # -- Header ------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("datagram", "reason"),
        [
            (b"", "too_short"),
            (header()[:19], "too_short"),
            (header() + bytes(1481), "too_long"),
            (header(magic=0x58) + bytes(8), "bad_magic"),
            (header(version=2) + bytes(8), "bad_version"),
            (header(0x07) + bytes(8), "unknown_type"),
            (header(0x10, 0x01) + bytes(8), "unknown_flag"),
            (header(0x10, 0x02) + bytes(8), "unknown_flag"),
            (header(0x01, 0x02) + bytes(8), "unknown_flag"),
            (header()[:4] + bytes(16) + bytes(8), "nil_session"),
            (header() + bytes(7), "bad_body"),
            (header() + bytes(8) + bytes(1401), "bad_body"),
            (header(0x02) + bytes(16), "wrong_direction"),
            (header(0x03) + bytes(2), "wrong_direction"),
            (header(0x05) + bytes(8), "wrong_direction"),
            (header(0x06) + bytes(2), "wrong_direction"),
            (header() + bytes(8), "unknown_session"),
        ],
        ids=lambda value: value if isinstance(value, str) else f"{len(value)}-bytes",
    )
    def test_bad_datagrams_are_dropped_and_counted(
        self, world: World, datagram: bytes, reason: str
    ) -> None:
        before = world.count(f"drop_{reason}")
        bytes_before = world.count(f"dropped_bytes_{reason}")
        assert world.decide(datagram, v4(9)) == Drop(reason)
        assert world.count(f"drop_{reason}") == before + 1
        assert world.count(f"dropped_bytes_{reason}") == bytes_before + len(datagram)

    @pytest.mark.parametrize("kind", [0x01, 0x04])
    def test_lease_packets_go_to_the_admission(self, world: World, kind: int) -> None:
        datagram = header(kind) + b"anything"
        assert world.decide(datagram, v4(9)) == ControlPacket(ControlKind.LEASE, datagram, v4(9))

    def test_stun_request_goes_to_the_admission(self, world: World) -> None:
        request = stun.build_binding_request(bytes(12), padding=0)
        assert world.decide(request, v4(9)) == ControlPacket(ControlKind.STUN, request, v4(9))

    def test_stun_of_another_kind_is_dropped(self, world: World) -> None:
        indication = b"\x00\x11" + stun.build_binding_request(bytes(12), padding=0)[2:]
        assert world.decide(indication, v4(9)) == Drop("bad_magic")

    # -- Forwarding ----------------------------------------------------------------------------

    def test_forwards_both_ways(self, world: World) -> None:
        client, server = world.session()
        assert client.forward(0) == Forward(server.address)
        assert server.forward(0) == Forward(client.address)

    @pytest.mark.parametrize(
        ("client", "server"),
        [
            (v6(1), v6(2)),
            (v4(1), v6(2, listen=1)),
            (v6(1, scope=3), v6(1, scope=4)),
            (v4(1, 5000), v4(1, 5001)),
            (v4(1, listen=0), v4(1, listen=1)),
        ],
    )
    def test_forwards_between_address_families(
        self, world: World, client: Address, server: Address
    ) -> None:
        first, second = world.session(client=client, server=server)
        assert first.forward(7) == Forward(server)
        assert second.forward(7) == Forward(client)

    @pytest.mark.parametrize("frame", [rift_handshake, rift_transport])
    def test_forwards_rift_by_its_packet_id(self, world: World, frame: Any) -> None:
        client, server = world.session()
        datagram = packets.build_forward(client.sid.bytes, frame(41))
        assert world.decide(datagram, client.address) == Forward(server.address)
        assert world.decide(datagram, client.address) == Drop("duplicate")
        assert client.forward(41) == Drop("duplicate")
        assert client.forward(42) == Forward(server.address)

    @pytest.mark.parametrize("frame", [rift_handshake, rift_transport])
    def test_rift_with_a_wrong_crc_is_dropped(self, world: World, frame: Any) -> None:
        client, _ = world.session()
        body = bytearray(frame(41))
        body[12] ^= 1
        assert world.decide(
            packets.build_forward(client.sid.bytes, bytes(body)), client.address
        ) == Drop("bad_crc")

    @pytest.mark.parametrize(
        "body", [b"RI" + bytes(15), b"RI\x00\x02" + bytes(40)], ids=["short", "version-2"]
    )
    def test_rift_that_does_not_fit_is_dropped(self, world: World, body: bytes) -> None:
        client, _ = world.session()
        datagram = packets.build_forward(client.sid.bytes, body)
        assert world.decide(datagram, client.address) == Drop("bad_rift")

    def test_largest_payload_is_forwarded(self, world: World) -> None:
        client, server = world.session()
        assert client.forward(1, bytes(1400)) == Forward(server.address)
        assert client.forward(2, bytes(1401)) == Drop("bad_body")

    def test_session_that_waits_for_its_second_peer_does_not_forward(self, world: World) -> None:
        client = world.peer()
        client.accept()
        assert client.forward(1) == Drop("not_active")

    def test_a_peer_cannot_use_the_others_slot(self, world: World) -> None:
        """Sending from the server's address counts as the server, never as the client."""
        client, server = world.session()
        assert client.forward(5) == Forward(server.address)
        assert server.forward(5) == Forward(client.address)

    # -- Pitfalls: addresses --------------------------------------------------------------------

    @pytest.mark.parametrize(
        "stranger", [v4(1, 5001), v4(77), v6(1), v4(1, 5000, listen=1)], ids=repr
    )
    def test_pitfall_rebind_branch_is_reachable(self, world: World, stranger: Address) -> None:
        client, _ = world.session()
        datagram = client.frame(1)
        assert world.decide(datagram, stranger) == ControlPacket(
            ControlKind.UNKNOWN_PATH, datagram, stranger
        )
        assert client.slot.window_head == 0

    # -- Pitfalls: leases -----------------------------------------------------------------------

    # -- Path validation ------------------------------------------------------------------------

    @pytest.mark.parametrize("victim", [v4(77), v6(77)], ids=repr)
    @pytest.mark.parametrize("role", c.Role)
    def test_unproved_address_gets_three_times_what_came_from_it(
        self, world: World, victim: Address, role: c.Role
    ) -> None:
        """Everything counts: ACK, challenge, forwarded datagrams; in both directions."""
        places = {c.Role.CLIENT: v4(1), c.Role.SERVER: v4(2), role: victim}
        peers = [world.peer(at, address=places[at]) for at in c.Role]
        peers[1].sid = peers[0].sid
        peers[1].token = peers[1].new_token()
        target, sender = peers[role], peers[1 - role]
        sender.accept()
        came, sent, sequence = 0, 0, 0
        for step in range(4):
            if step < 2:
                asked = target.datagram(renew=step == 1, token=target.new_token())
                answer = world.raw_answer(asked, victim)
                assert answer is not None
                assert answer.challenge is not None
                came += len(asked)
                sent += len(answer.datagram) + len(answer.challenge)
            else:
                came += len(target.frame(step, bytes(300)))
                assert target.forward(step, bytes(300)) == Forward(sender.address)
            for _ in range(30):
                sequence += 1
                frame = sender.frame(sequence, bytes(500))
                decision = world.decide(frame, sender.address)
                if decision == Drop("unproved_path"):
                    break
                assert decision == Forward(victim)
                sent += len(frame)
            assert 3 * came - len(frame) < sent <= 3 * came
            assert sender.slot.window_head == sequence, "what is dropped moves no window"

    def test_proved_address_gets_everything(self, world: World) -> None:
        client, server = world.peer(), world.peer(c.Role.SERVER, address=v4(2))
        server.sid = client.sid
        server.token = server.new_token()
        client.accept()
        first = world.raw_answer(server.datagram(), server.address)
        assert first is not None
        assert first.challenge is not None
        cookie = packets.parse_packet(first.challenge).body
        assert isinstance(cookie, packets.PathChallenge)
        second = world.raw_answer(server.datagram(cookie=cookie.cookie), server.address)
        assert second is not None
        assert second.challenge is None
        for number in range(40):
            assert client.forward(number, bytes(1000)) == Forward(server.address)
        renewal = world.raw_answer(
            server.datagram(renew=True, token=server.new_token()), server.address
        )
        assert renewal is not None
        assert renewal.challenge is None, "a renewal from there leaves it proved"
        assert client.forward(40, bytes(1000)) == Forward(server.address)

    def test_cookie_of_another_address_or_session_proves_nothing(self, world: World) -> None:
        client, server = world.session()
        answer = world.raw_answer(world.peer().datagram(), v4(66))
        assert answer is not None
        assert answer.challenge is not None
        body = packets.parse_packet(answer.challenge).body
        assert isinstance(body, packets.PathChallenge)
        fresh = world.peer(address=v4(67))
        again = world.raw_answer(fresh.datagram(cookie=body.cookie), fresh.address)
        assert again is not None
        assert again.challenge is not None
        assert fresh.slot.unproved
        assert not client.slot.unproved
        assert not server.slot.unproved

    def test_keepalives_count_for_an_unproved_address(self, world: World) -> None:
        peer = world.peer()
        peer.accept(proved=False)
        before = peer.slot.unproved
        assert world.answer(b"W\x01\x04\0" + peer.sid.bytes, peer.address) is not None
        assert peer.slot.unproved == before + 3 * 20 - 36

    def test_pitfall_expiry_stops_forwarding_at_the_exact_millisecond(self, world: World) -> None:
        client, server = world.session(ttl_s=60)
        world.advance(59.999)
        assert client.forward(1) == Forward(server.address)
        world.advance(0.001)
        assert client.forward(2) == Drop("lease_expired")
        assert server.forward(2) == Drop("lease_expired")

    def test_only_the_senders_lease_counts(self, world: World) -> None:
        client = world.peer(ttl_s=60)
        server = world.peer(c.Role.SERVER, sid=client.sid, ttl_s=300)
        client.accept()
        server.accept()
        world.advance(60)
        assert client.forward(1) == Drop("lease_expired")
        assert server.forward(1) == Forward(client.address)

    # -- Pitfalls: replay -----------------------------------------------------------------------

    def test_duplicates_and_old_sequences_are_dropped(self, world: World) -> None:
        client, server = world.session()
        to_server = Forward(server.address)
        assert client.forward(2000) == to_server
        assert client.forward(2000) == Drop("duplicate")
        assert client.forward(977) == to_server  # 1024 wide, exactly
        assert client.forward(976) == Drop("too_old")
        assert client.forward(977) == Drop("duplicate")

    def test_each_direction_has_its_own_window(self, world: World) -> None:
        client, server = world.session()
        assert client.forward(9) == Forward(server.address)
        assert server.forward(9) == Forward(client.address)

    def test_first_sequence_may_be_anywhere(self, world: World) -> None:
        client, server = world.session()
        assert client.forward(1 << 40) == Forward(server.address)

    def test_pitfall_huge_sequence_does_not_blackhole_a_peer(self, world: World) -> None:
        client, server = world.session()
        client.forward(100)
        assert client.forward(100 + (1 << 20) + 1) == Drop("jump_too_far")
        assert client.forward((1 << 64) - 2) == Drop("jump_too_far")
        assert client.forward(101) == Forward(server.address)
        assert client.forward(101 + (1 << 20)) == Forward(server.address)

    def test_pitfall_sequence_at_the_edge_of_64_bits(self, world: World) -> None:
        client, server = world.session()
        top = (1 << 64) - 1
        assert client.forward(top) == Drop("jump_too_far")
        assert client.forward(top - 1) == Forward(server.address)
        assert client.forward(top) == Drop("jump_too_far")
        assert client.forward(top - 1) == Drop("duplicate")
        assert client.forward(top - 2) == Forward(server.address)

    def test_pitfall_window_is_not_advanced_by_a_rate_limited_packet(self, world: World) -> None:
        client, server = world.session(hard_kbps=100)
        sequence = 0
        while client.forward(sequence, bytes(1000)) == Forward(server.address):
            sequence += 1
        head = client.slot.window_head
        assert client.forward(sequence + 500, bytes(1000)) == Drop("peer_rate")
        assert client.slot.window_head == head
        world.advance(1)
        assert client.forward(sequence) == Forward(server.address)

    # -- Pitfalls: rates ------------------------------------------------------------------------

    def test_pitfall_hard_limit_holds_from_the_first_packet(self, world: World) -> None:
        """1000 kbit/s: no second of a ten times faster stream carries more than the limit and
        the burst, the first one included, and every later second carries the limit."""
        client, server = world.session(hard_kbps=1000)
        size = len(client.frame(0, bytes(1000)))
        sequence = 0
        for second in range(4):
            passed_bits = 0
            for _ in range(1250):
                if client.forward(sequence, bytes(1000)) == Forward(server.address):
                    passed_bits += size * 8
                sequence += 1
                world.advance(0.0008)
            burst_bits = 250_000 if second == 0 else 0
            assert passed_bits <= 1_000_000 + burst_bits + size * 16
            assert passed_bits >= 1_000_000 + burst_bits - size * 16

    def test_hard_limits_of_the_two_peers_are_separate(self, world: World) -> None:
        client, server = world.session(hard_kbps=100)
        sequence = 0
        while client.forward(sequence, bytes(1000)) != Drop("peer_rate"):
            sequence += 1
        assert server.forward(0, bytes(1000)) == Forward(client.address)

    def test_hard_limit_of_zero_lets_nothing_through(self, world: World) -> None:
        client, _ = world.session(hard_kbps=0)
        assert client.forward(1) == Drop("peer_rate")

    def test_pitfall_soft_limit_counts_and_never_drops(self, world: World) -> None:
        client, server = world.session(soft_kbps=100, hard_kbps=1_000_000)
        sent = 0
        for sequence in range(100):
            assert client.forward(sequence, bytes(1000)) == Forward(server.address)
            sent += 1
        over = world.count("soft_limit_packets")
        assert 90 < over < sent  # 250 ms of 100 kbit/s are three such packets
        assert world.count("soft_limit_bytes") == over * 1028
        world.advance(5)
        client.forward(sent, bytes(100))
        assert world.count("soft_limit_packets") == over

    def test_session_limit_is_shared_by_both_directions(self) -> None:
        limits = Limits(session_kbps=1000, **GENEROUS)
        with open_world(kind=self.kind, limits=limits) as world:
            client, server = world.session()
            sequence = 0
            while client.forward(sequence, bytes(1000)) == Forward(server.address):
                sequence += 1
            assert 25 <= sequence <= 40
            assert server.forward(1, bytes(1000)) == Drop("session_rate")
            assert (server.slot.window_head, server.slot.tat_ns) == (0, 0)

    @pytest.mark.parametrize("limit", [{"global_kbps": 1000}, {"global_pps": 200}], ids=str)
    def test_global_limit_is_shared_by_all_sessions(self, limit: dict[str, int]) -> None:
        with open_world(kind=self.kind, limits=Limits(**limit, **GENEROUS)) as world:
            client, server = world.session()
            other, _ = world.session(client=v4(11), server=v4(12))
            sequence = 0
            while client.forward(sequence, bytes(1000)) == Forward(server.address):
                sequence += 1
            assert 10 <= sequence <= 25
            assert other.forward(1, bytes(1000)) == Drop("global_rate")
            assert (other.slot.window_head, other.slot.tat_ns) == (0, 0)
            world.advance(1)
            assert other.forward(1, bytes(1000)) != Drop("global_rate")

    def test_dropped_packets_cost_no_allowance(self, world: World) -> None:
        client, server = world.session(hard_kbps=100)
        client.forward(1)
        for _ in range(1000):
            assert client.forward(1) == Drop("duplicate")
        assert client.forward(2) == Forward(server.address)

    # -- Several processes ------------------------------------------------------------------

    def test_two_processes_forward_each_sequence_once(self, world: World) -> None:
        """Any worker may handle any packet: what one forwarded, no other forwards again."""
        client, _ = world.session()
        fd, count = world.segment.fd, 3000
        code = (
            "import sys\n"
            "from wavry_relay.shm.address import Address\n"
            "from wavry_peer.service.clock import Instant, Clock\n"
            "from wavry_relay.engine import open_engine\n"
            "from wavry_relay.engine.base import Forward\n"
            "from wavry_relay.shm.control import EngineKind\n"
            "from wavry_relay.shm.counters import CounterRow\n"
            "from wavry_relay.shm.segment import Segment\n"
            f"segment = Segment.attach({fd})\n"
            f"engine = open_engine(EngineKind({int(self.kind)}), segment, [],"
            " CounterRow(segment, 0), Clock())\n"
            f"head = {client.frame(0)[:20]!r}\n"
            f"source, now = Address(*{tuple(client.address)}), Instant(*{tuple(world.now)})\n"
            "print('ready', flush=True); sys.stdin.readline()\n"
            f"frames = (head + n.to_bytes(8, 'big') for n in range({count}))\n"
            "print(sum(isinstance(engine.decide(f, source, now), Forward) for f in frames))\n"
        )
        children = [
            subprocess.Popen(
                [sys.executable, "-c", code],
                cwd=REPOSITORY,
                pass_fds=(fd,),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        forwarded = [0, 0]
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        for number, child in enumerate(children):
            forwarded[number] = int(child.communicate(timeout=30)[0])
        assert sum(forwarded) <= count
        lost_to_the_window = count - sum(forwarded)  # one process may fall 1024 behind the other
        assert lost_to_the_window == 0 or max(forwarded) > 1024

    # -- Locks ----------------------------------------------------------------------------------

    def test_lock_of_a_stopped_process_costs_a_packet_not_the_worker(self, world: World) -> None:
        if self.kind is not EngineKind.REFERENCE:
            pytest.skip("byte-range locks are the reference engine's")
        client, server = world.session()
        record = world.record(client.sid).number
        fd = world.segment.fd
        code = (
            "import sys; from wavry_relay.shm.locks import FileLocks\n"
            f"with FileLocks({fd}).session({record}):\n"
            " print('locked', flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=REPOSITORY,
            pass_fds=(fd,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"locked\n"
            assert client.forward(1) == Drop("lock_busy")
            holder.kill()  # the kernel frees a dead process's locks
        assert client.forward(1) == Forward(server.address)

    # -- Garbage --------------------------------------------------------------------------------

    def test_garbage_never_forwards_and_never_fails(self, world: World) -> None:
        client, server = world.session()

        @settings(max_examples=80, deadline=None)
        @given(data=st.binary(max_size=1600))
        def check(data: bytes) -> None:
            assert not isinstance(world.decide(data, client.address), Forward)

        check()
        assert client.forward(1) == Forward(server.address)

    def test_garbage_behind_a_good_header_goes_to_the_other_peer_or_nowhere(
        self, world: World
    ) -> None:
        client, server = world.session()

        @settings(max_examples=100, deadline=None)
        @given(
            kind=st.sampled_from([0x01, 0x04, 0x10]),
            flags=st.integers(0, 3),
            start=st.sampled_from([b"", b"RI", b"RI\0\1", b"RI\0\1\0\0\0\0"]),
            body=st.binary(max_size=1480),
        )
        def check(kind: int, flags: int, start: bytes, body: bytes) -> None:
            head = bytes((c.MAGIC, c.VERSION, kind, flags)) + client.sid.bytes
            decision = world.decide(head + start + body, client.address)
            if isinstance(decision, Forward):
                assert kind == 0x10
                assert decision.to == server.address
            elif isinstance(decision, ControlPacket):
                answer = world.admission.handle(decision, world.now)
                assert sum(map(len, answer[:1])) <= max(36, len(decision.datagram))

        check()
        world.advance(1)
        assert client.forward(client.slot.window_head) == Forward(server.address)

    # -- Real sockets ---------------------------------------------------------------------------

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    def test_forwards_byte_for_byte_through_sockets(self, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        relay, alice, bob = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(3))
        for sock in (relay, alice, bob):
            sock.bind((host, 0))
            sock.settimeout(2)
        relay.setblocking(False)
        with alice, bob, open_world(kind=self.kind, sockets=[relay]) as world:
            client, _ = world.session(
                client=Address.from_sockaddr(alice.getsockname()),
                server=Address.from_sockaddr(bob.getsockname()),
            )
            sent = [client.frame(number, os.urandom(number * 14)) for number in range(100)]
            for datagram in sent:
                alice.sendto(datagram, relay.getsockname())
            for _ in range(4):
                assert not world.engine.run(0)
            assert [bob.recv(2048) for _ in sent] == sent
            assert world.count("forwarded_packets") == 100
            assert world.count("forwarded_bytes") == sum(map(len, sent))

    def test_pitfall_receive_buffer_does_not_truncate_an_oversized_datagram(self) -> None:
        relay, alice = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        for sock in (relay, alice):
            sock.bind(("127.0.0.1", 0))
        relay.setblocking(False)
        with alice, open_world(kind=self.kind, sockets=[relay]) as world:
            client, _ = world.session(client=Address.from_sockaddr(alice.getsockname()))
            for size in (1501, 2048, 2049, 9000):
                alice.sendto(client.frame(1).ljust(size, b"\0"), relay.getsockname())
            world.engine.run(100)
            assert world.count("drop_too_long") == 4
            assert world.count("forwarded_packets") == 0

    def test_control_packets_come_back_in_order(self) -> None:
        relay, alice = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        for sock in (relay, alice):
            sock.bind(("127.0.0.1", 0))
        relay.setblocking(False)
        with alice, open_world(kind=self.kind, sockets=[relay]) as world:
            client = world.peer(address=Address.from_sockaddr(alice.getsockname()))
            datagrams = [client.datagram(), stun.build_binding_request(bytes(12))]
            for datagram in datagrams:
                alice.sendto(datagram, relay.getsockname())
            control = list(world.engine.run(100))
            assert [packet.datagram for packet in control] == datagrams
            assert [packet.kind for packet in control] == [ControlKind.LEASE, ControlKind.STUN]
            answer = world.admission.handle(control[0], world.now)
            assert len(answer) == 2, "ACK and challenge"
            alice.settimeout(2)
            assert world.engine.send(answer[0], control[0].source)
            assert alice.recv(2048) == answer[0]
            world.engine.answer([control[1], *control], [(), answer, answer[:1]])
            sent = [*answer, answer[0]]
            assert [alice.recv(2048) for _ in sent] == sent
            assert world.count("forwarded_packets") == 0
