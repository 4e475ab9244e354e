"""Relay datagrams: golden bytes by hand, round trips, every refusal, and hostile bytes."""

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.protocol import lease as ls

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import ed25519, lease, packets, stun
from wavry_peer.protocol.crc import crc16_kermit
from wavry_peer.protocol.errors import LocalError, PacketError
from wavry_peer.protocol.packets import LeaseAck, LeasePresent, SessionId

SID = SessionId(bytes(range(0x10, 0x20)))
SID_HEX = "101112131415161718191a1b1c1d1e1f"
KEY = ed25519.SigningKey.from_seed(b"p" * 32)

quick = settings(deadline=None, max_examples=60)
session_ids = st.binary(min_size=16, max_size=16).filter(any).map(SessionId)
roles = st.sampled_from(c.Role)
tokens = st.binary(min_size=1, max_size=c.MAX_TOKEN_BYTES)
u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
cookies = st.binary(min_size=8, max_size=8)
reflexive = st.tuples(
    st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16),
    st.integers(0, 65535),
)


def header_of(kind: int, flags: int = 0, session: bytes = SID) -> bytes:
    return struct.pack("!BBBB", 0x57, 0x01, kind, flags) + session


def sign(message: bytes) -> bytes:
    return KEY.sign(message)


# -- Golden bytes, written by hand from section 1 of the protocol ------------------------------


GOLDEN: list[tuple[str, Callable[[], bytes], str]] = [
    (
        "present",
        lambda: packets.build_present(SID, c.Role.SERVER, b"tok"),
        f"57010100 {SID_HEX} 01 0003 746f6b",
    ),
    (
        "present with proof",
        lambda: packets.build_present(
            SID,
            c.Role.CLIENT,
            b"tok",
            counter=0x0102,
            cookie=b"\xc0" * 8,
            sign=lambda _: b"\5" * 64,
        ),
        f"57010101 {SID_HEX} 00 0003 746f6b 0000000000000102 c0c0c0c0c0c0c0c0 " + "05" * 64,
    ),
    (
        "renew",
        lambda: packets.build_present(SID, c.Role.CLIENT, b"tok", renew=True),
        f"57010400 {SID_HEX} 00 0003 746f6b",
    ),
    (
        "renew with proof",
        lambda: packets.build_present(
            SID, c.Role.SERVER, b"t", counter=1, sign=lambda _: b"\6" * 64, renew=True
        ),
        f"57010401 {SID_HEX} 01 0001 74 0000000000000001 0000000000000000 " + "06" * 64,
    ),
    (
        "ack",
        lambda: packets.build_ack(SID, LeaseAck(0x0102030405060708, 0x0A0B0C0D, 0x01020304)),
        f"57010200 {SID_HEX} 0102030405060708 0a0b0c0d 01020304",
    ),
    (
        "ack with IPv4",
        lambda: packets.build_ack(SID, LeaseAck(1, 2, 3, (bytes([203, 0, 113, 7]), 4500))),
        f"57010201 {SID_HEX} 0000000000000001 00000002 00000003 04 1194 cb007107" + "00" * 12,
    ),
    (
        "ack with IPv6",
        lambda: packets.build_ack(SID, LeaseAck(1, 2, 3, (bytes(range(16)), 65535))),
        f"57010201 {SID_HEX} 0000000000000001 00000002 00000003 06 ffff" + bytes(range(16)).hex(),
    ),
    (
        "reject",
        lambda: packets.build_reject(SID, c.RejectReason.PROOF_REQUIRED),
        f"57010300 {SID_HEX} 000c",
    ),
    (
        "challenge",
        lambda: packets.build_challenge(SID, bytes(range(8))),
        f"57010500 {SID_HEX} 0001020304050607",
    ),
    (
        "notice",
        lambda: packets.build_notice(SID, c.NoticeCode.PEER_GONE),
        f"57010600 {SID_HEX} 0004",
    ),
    (
        "forward",
        lambda: packets.build_forward(SID, struct.pack("!Q", 9) + b"data"),
        f"57011000 {SID_HEX} 0000000000000009 64617461",
    ),
]


@pytest.mark.parametrize(("build", "wanted"), [g[1:] for g in GOLDEN], ids=[g[0] for g in GOLDEN])
def test_golden_bytes(build: Callable[[], bytes], wanted: str) -> None:
    assert build().hex() == wanted.replace(" ", "")


def test_numbers_of_the_wire() -> None:
    assert {kind.name: kind.value for kind in c.PacketType} == {
        "LEASE_PRESENT": 0x01,
        "LEASE_ACK": 0x02,
        "LEASE_REJECT": 0x03,
        "LEASE_RENEW": 0x04,
        "PATH_CHALLENGE": 0x05,
        "NOTICE": 0x06,
        "FORWARD": 0x10,
    }
    assert [(reason.name, reason.value) for reason in c.RejectReason] == [
        ("EXPIRED", 0x0001),
        ("INVALID_SIGNATURE", 0x0002),
        ("WRONG_RELAY", 0x0003),
        ("SESSION_FULL", 0x0004),
        ("BANNED", 0x0005),
        ("RATE_LIMITED", 0x0006),
        ("REPLAYED", 0x0007),
        ("REVOKED", 0x0008),
        ("NOT_YET_VALID", 0x0009),
        ("DRAINING", 0x000A),
        ("UNKNOWN_KEY", 0x000B),
        ("PROOF_REQUIRED", 0x000C),
    ]
    assert [(code.name, code.value) for code in c.NoticeCode] == [
        ("DRAINING", 1),
        ("EXPIRING", 2),
        ("REVOKED", 3),
        ("PEER_GONE", 4),
        ("SHUTDOWN", 5),
    ]
    assert (c.Role.CLIENT, c.Role.SERVER) == (0, 1)
    assert (c.Flag.PROOF, c.Flag.REFLEXIVE, c.Flag.AUTHENTICATED) == (1, 1, 2)


def test_signed_bytes_by_hand() -> None:
    wanted = (
        b"wavry-present-v1"
        + bytes.fromhex(f"57010101{SID_HEX}")
        + b"\x01\x00\x03tok"
        + struct.pack("!Q", 7)
        + b"COOKIE00"
    )
    args = (SID, c.Role.SERVER, b"tok", 7, b"COOKIE00")
    assert packets.present_signing_input(*args) == wanted
    renew = packets.present_signing_input(*args, renew=True)
    assert renew == wanted.replace(b"\x57\x01\x01\x01", b"\x57\x01\x04\x01")


# -- Round trips -------------------------------------------------------------------------------


@quick
@given(session_ids, roles, tokens, u64, cookies, st.booleans(), st.booleans())
def test_present_and_renew_round_trip(
    session: SessionId,
    role: c.Role,
    token: bytes,
    counter: int,
    cookie: bytes,
    proof: bool,
    renew: bool,
) -> None:
    built = packets.build_present(
        session,
        role,
        token,
        counter=counter,
        cookie=cookie,
        sign=sign if proof else None,
        renew=renew,
    )
    packet = packets.parse_packet(built)
    kind = c.PacketType.LEASE_RENEW if renew else c.PacketType.LEASE_PRESENT
    assert packet.header == packets.Header(kind, c.Flag.PROOF if proof else 0, session)
    body = packet.body
    assert isinstance(body, LeasePresent)
    assert (body.role, body.token) == (role, token)
    if not proof:
        assert body.proof is None
        assert body.signed_bytes == b""
        return
    assert body.proof is not None
    assert (body.proof.counter, body.proof.cookie) == (counter, cookie)
    wanted = packets.present_signing_input(session, role, token, counter, cookie, renew=renew)
    assert body.signed_bytes == wanted
    assert ed25519.verify(KEY.public_key, body.signed_bytes, body.proof.signature)


@quick
@given(session_ids, u64, u32, u32, st.none() | reflexive)
def test_ack_round_trip(
    session: SessionId, expires: int, soft: int, hard: int, address: tuple[bytes, int] | None
) -> None:
    ack = LeaseAck(expires, soft, hard, address)
    packet = packets.parse_packet(packets.build_ack(session, ack))
    assert packet.body == ack
    assert packet.header.flags == (0 if address is None else c.Flag.REFLEXIVE)


@pytest.mark.parametrize("reason", c.RejectReason)
def test_reject_round_trip(reason: c.RejectReason) -> None:
    body = packets.parse_packet(packets.build_reject(SID, reason)).body
    assert body == packets.LeaseReject(reason)
    assert isinstance(body, packets.LeaseReject)
    assert isinstance(body.reason, c.RejectReason)


@pytest.mark.parametrize("code", c.NoticeCode)
def test_notice_round_trip(code: c.NoticeCode) -> None:
    body = packets.parse_packet(packets.build_notice(SID, code)).body
    assert isinstance(body, packets.Notice)
    assert body.code is code


@pytest.mark.parametrize("number", [0, 0x0D, 0xFFFF])
def test_codes_of_a_later_version_stay_numbers(number: int) -> None:
    tail = struct.pack("!H", number)
    reject = packets.parse_packet(header_of(c.PacketType.LEASE_REJECT) + tail).body
    notice = packets.parse_packet(header_of(c.PacketType.NOTICE) + tail).body
    assert reject == packets.LeaseReject(number)
    assert notice == packets.Notice(number)


@quick
@given(session_ids, cookies)
def test_challenge_round_trip(session: SessionId, cookie: bytes) -> None:
    packet = packets.parse_packet(packets.build_challenge(session, cookie))
    assert packet.body == packets.PathChallenge(cookie)
    assert packet.header.session_id == session


@quick
@given(session_ids, st.binary(max_size=1480))
def test_forward_round_trip(session: SessionId, body: bytes) -> None:
    packet = packets.parse_packet(packets.build_forward(session, body))
    assert packet.header == packets.Header(c.PacketType.FORWARD, 0, session)
    assert packet.body == body


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden[0])
def test_every_kind_of_buffer_is_read(golden: Any, kind: Callable[[bytes], Any]) -> None:
    built = golden[1]()
    packet = packets.parse_packet(kind(built))
    assert packet == packets.parse_packet(built)
    assert type(packet.header.session_id) is bytes


def test_an_empty_renew_is_a_keepalive_and_an_empty_present_is_not() -> None:
    assert packets.parse_packet(header_of(c.PacketType.LEASE_RENEW)).body is None
    for datagram in (
        header_of(c.PacketType.LEASE_PRESENT),
        header_of(c.PacketType.LEASE_RENEW, c.Flag.PROOF),
        header_of(c.PacketType.LEASE_RENEW) + b"\0",
    ):
        with pytest.raises(PacketError, match="cut off"):
            packets.parse_packet(datagram)


# -- Header refusals, in order -----------------------------------------------------------------

HEADER_FAULTS: list[tuple[str, Callable[[bytearray], None]]] = [
    ("bad_magic", lambda datagram: datagram.__setitem__(0, 0x56)),
    ("bad_version", lambda datagram: datagram.__setitem__(1, 0x02)),
    ("unknown_type", lambda datagram: datagram.__setitem__(2, 0x07)),
    ("unknown_flag", lambda datagram: datagram.__setitem__(3, 0x80)),
    ("nil_session", lambda datagram: datagram.__setitem__(slice(4, 20), bytes(16))),
]


@pytest.mark.parametrize("first", range(len(HEADER_FAULTS)))
def test_the_first_fault_of_a_header_names_the_reason(first: int) -> None:
    datagram = bytearray(header_of(c.PacketType.FORWARD) + bytes(8))
    packets.parse_header(datagram)
    for _, spoil in HEADER_FAULTS[first:]:
        spoil(datagram)
    with pytest.raises(PacketError) as caught:
        packets.parse_header(datagram)
    assert caught.value.reason == HEADER_FAULTS[first][0]


@pytest.mark.parametrize(
    ("size", "reason"),
    [(0, "too_short"), (1, "too_short"), (19, "too_short"), (1501, "too_long"), (2048, "too_long")],
)
def test_size_is_checked_before_anything_else(size: int, reason: str) -> None:
    for datagram in (bytes(size), (header_of(c.PacketType.FORWARD) + bytes(size))[:size]):
        with pytest.raises(PacketError) as caught:
            packets.parse_header(datagram)
        assert caught.value.reason == reason


@pytest.mark.parametrize("size", [20, 1500])
def test_smallest_and_largest_datagram(size: int) -> None:
    datagram = (header_of(c.PacketType.FORWARD) + bytes(1500))[:size]
    assert packets.parse_header(datagram).session_id == SID


@pytest.mark.parametrize("kind", [0x00, *range(0x07, 0x10), *range(0x11, 0x100)])
def test_unknown_types(kind: int) -> None:
    with pytest.raises(PacketError) as caught:
        packets.parse_header(header_of(kind))
    assert caught.value.reason == "unknown_type"


@pytest.mark.parametrize("kind", c.PacketType)
def test_flags_that_a_type_may_have(kind: c.PacketType) -> None:
    with_bit_0 = {c.PacketType.LEASE_PRESENT, c.PacketType.LEASE_RENEW, c.PacketType.LEASE_ACK}
    allowed = {0, 1} if kind in with_bit_0 else {0}
    for flags in range(256):
        datagram = header_of(kind, flags)
        if flags in allowed:
            assert packets.parse_header(datagram).flags == flags
        else:
            with pytest.raises(PacketError) as caught:
                packets.parse_header(datagram)
            assert caught.value.reason == "unknown_flag"


# -- Body refusals -----------------------------------------------------------------------------


def present_body(role: int = 0, token: bytes = b"tok", length: int | None = None) -> bytes:
    return struct.pack("!BH", role, len(token) if length is None else length) + token


BAD_BODIES: list[tuple[str, bytes]] = [
    ("present cut off in its head", header_of(1) + b"\0\0"),
    ("token shorter than its length", header_of(1) + present_body(length=4)),
    ("token longer than its length", header_of(1) + present_body(length=2)),
    ("empty token", header_of(1) + present_body(token=b"")),
    ("token over 1100", header_of(1) + present_body(token=b"t" * 1101)),
    ("unknown role", header_of(1) + present_body(role=2)),
    ("role 255", header_of(4) + present_body(role=255)),
    ("flag without proof", header_of(1, 1) + present_body()),
    ("proof without flag", header_of(1) + present_body() + bytes(80)),
    ("proof cut off", header_of(1, 1) + present_body() + bytes(79)),
    ("proof too long", header_of(4, 1) + present_body() + bytes(81)),
    ("ack cut off", header_of(2) + bytes(15)),
    ("ack too long", header_of(2) + bytes(17)),
    ("ack without its address", header_of(2, 1) + bytes(16)),
    ("ack with an address and no flag", header_of(2) + bytes(16) + b"\4" + bytes(18)),
    ("ack with family 0", header_of(2, 1) + bytes(16) + b"\0" + bytes(18)),
    ("ack with family 5", header_of(2, 1) + bytes(16) + b"\5" + bytes(18)),
    ("ack with its address cut off", header_of(2, 1) + bytes(16) + b"\4" + bytes(17)),
    ("reject cut off", header_of(3) + b"\0"),
    ("reject too long", header_of(3) + bytes(3)),
    ("challenge cut off", header_of(5) + bytes(7)),
    ("challenge too long", header_of(5) + bytes(9)),
    ("notice cut off", header_of(6)),
    ("notice too long", header_of(6) + bytes(3)),
]


@pytest.mark.parametrize("datagram", [b[1] for b in BAD_BODIES], ids=[b[0] for b in BAD_BODIES])
def test_bad_bodies(datagram: bytes) -> None:
    packets.parse_header(datagram)
    with pytest.raises(PacketError) as caught:
        packets.parse_packet(datagram)
    assert caught.value.reason == "bad_body"


def test_largest_token() -> None:
    token = b"t" * c.MAX_TOKEN_BYTES
    built = packets.build_present(SID, c.Role.CLIENT, token, sign=sign)
    assert len(built) <= 1280 - 40 - 8
    body = packets.parse_packet(built).body
    assert isinstance(body, LeasePresent)
    assert body.token == token


# -- FORWARD framings --------------------------------------------------------------------------


def rift_transport(
    packet_id: int, connection: int = 7, payload: bytes = b"", version: int = 1
) -> bytes:
    head = b"RI" + struct.pack("!HIQ", version, connection, packet_id)
    return head + struct.pack("!H", crc16_kermit(head)) + payload


def rift_handshake(
    packet_id: int, payload: bytes = b"", version: int = 1, filler: int = 0xEE
) -> bytes:
    head = b"RI" + struct.pack("!HI", version, 0) + bytes([filler]) * 12
    head += struct.pack("!Q", packet_id)
    assert len(head) == 28
    return head + struct.pack("!H", crc16_kermit(head)) + payload


def forward_fault(body: bytes) -> str:
    with pytest.raises(PacketError) as caught:
        packets.forward_sequence(body)
    return caught.value.reason


def crc_bit_by_bit(data: bytes) -> int:
    """CRC-16/KERMIT from its parameters: poly 0x1021, reflected, init 0, no final xor."""
    crc = 0
    for byte in data:
        for bit in range(8):
            carry = (crc ^ (byte >> bit)) & 1
            crc >>= 1
            if carry:
                crc ^= 0x8408  # 0x1021 with its bits reversed.
    return crc


def test_crc_check_value() -> None:
    assert crc16_kermit(b"123456789") == 0x2189
    assert crc16_kermit(b"") == 0
    assert int(f"{0x1021:016b}"[::-1], 2) == 0x8408


@quick
@given(st.binary(max_size=64))
def test_crc_table_agrees_with_the_definition(data: bytes) -> None:
    assert crc16_kermit(data) == crc_bit_by_bit(data)


@quick
@given(u64.filter(lambda n: n >> 48 != 0x5249), st.binary(max_size=c.MAX_FORWARD_PAYLOAD_BYTES))
def test_plain_sequence(sequence: int, payload: bytes) -> None:
    assert packets.forward_sequence(struct.pack("!Q", sequence) + payload) == sequence


@quick
@given(
    u64, st.integers(1, 2**32 - 1), st.binary(max_size=1400), st.sampled_from([bytes, memoryview])
)
def test_rift_transport_sequence(
    packet_id: int, connection: int, payload: bytes, kind: Any
) -> None:
    body = kind(rift_transport(packet_id, connection, payload))
    assert packets.forward_sequence(body) == packet_id


@quick
@given(u64, st.binary(max_size=1400), st.integers(0, 255))
def test_rift_handshake_sequence(packet_id: int, payload: bytes, filler: int) -> None:
    body = rift_handshake(packet_id, payload, filler=filler)
    assert packets.forward_sequence(body) == packet_id


def test_rift_golden_bytes() -> None:
    head = bytes.fromhex("5249 0001 00000007 0000000000000102")
    assert rift_transport(0x0102) == head + struct.pack("!H", crc_bit_by_bit(head))
    head = bytes.fromhex("5249 0001 00000000 000102030405060708090a0b 0000000000000304")
    body = head + struct.pack("!H", crc_bit_by_bit(head)) + b"hello"
    assert packets.forward_sequence(body) == 0x0304


@pytest.mark.parametrize("size", range(18, 30))
def test_connection_zero_under_30_bytes_is_a_transport_header(size: int) -> None:
    body = rift_transport(5, connection=0, payload=bytes(size - 18))
    assert packets.forward_sequence(body) == 5


def test_connection_zero_of_30_bytes_is_a_handshake_header() -> None:
    assert forward_fault(rift_transport(5, connection=0, payload=bytes(12))) == "bad_crc"
    assert packets.forward_sequence(rift_handshake(6)) == 6


@pytest.mark.parametrize("make", [rift_transport, rift_handshake])
def test_every_changed_bit_under_the_crc_is_seen(make: Callable[..., bytes]) -> None:
    body = make(0x0102030405060708)
    for bit in range(8 * len(body)):
        changed = bytearray(body)
        changed[bit // 8] ^= 1 << bit % 8
        # Two bits at the ends of "RI" turn the body into a plain one, 16 into another version.
        wanted = {0: "", 1: "bad_rift"}.get(bit // 16, "bad_crc")
        if wanted:
            assert forward_fault(bytes(changed)) == wanted
        else:
            assert packets.forward_sequence(changed) == int.from_bytes(changed[:8], "big")


@pytest.mark.parametrize("version", [0, 2, 0x0100, 0xFFFF])
def test_another_rift_version(version: int) -> None:
    assert forward_fault(rift_transport(1, version=version)) == "bad_rift"
    assert forward_fault(rift_handshake(1, version=version)) == "bad_rift"


@pytest.mark.parametrize("size", range(2, 18))
def test_rift_cut_off(size: int) -> None:
    assert forward_fault(rift_transport(1)[:size]) == "bad_rift"


@pytest.mark.parametrize("size", range(8))
def test_forward_without_a_whole_sequence(size: int) -> None:
    assert forward_fault(bytes(size)) == "bad_body"
    assert forward_fault(b"R"[:size]) == "bad_body"


def test_plain_payload_limit_does_not_bind_rift() -> None:
    assert packets.forward_sequence(bytes(1408)) == 0
    assert forward_fault(bytes(1409)) == "bad_body"
    assert packets.forward_sequence(rift_transport(3, payload=bytes(1480 - 18))) == 3


# -- No amplification --------------------------------------------------------------------------


def test_answers_are_never_larger_than_their_questions() -> None:
    wide = (bytes(16), 65535)
    ack = len(packets.build_ack(SID, LeaseAck(2**64 - 1, 1, 1, wide)))
    reject = len(packets.build_reject(SID, c.RejectReason.EXPIRED))
    challenge = len(packets.build_challenge(SID, bytes(8)))
    # An ACK answers a lease that opened: no token is shorter than head, signature and claims.
    token = lease.sign_lease(
        ls.make_claims(sub="a", rid="r", kid="k", issuer="i"), ls.SIGNING
    ).encode()
    assert ack <= len(packets.build_present(SID, c.Role.CLIENT, token))
    # A REJECT answers whatever parses, the shortest being a token of one byte.
    assert reject <= len(packets.build_present(SID, c.Role.CLIENT, b"t"))
    # A CHALLENGE answers the shortest FORWARD, or any packet with proof.
    assert challenge <= len(packets.build_forward(SID, bytes(c.FORWARD_SEQUENCE_BYTES)))
    assert challenge <= len(packets.build_forward(SID, rift_transport(1)))
    assert challenge <= len(packets.build_present(SID, c.Role.CLIENT, b"t", sign=sign))


def test_a_stun_answer_is_never_larger_than_our_request() -> None:
    request = stun.build_binding_request(b"t" * 12)
    for address in (bytes(4), bytes(16)):
        answer = stun.build_binding_response(request, address, 1)
        assert answer is not None
        assert len(answer) <= len(request)


# -- Local misuse ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        lambda: packets.build_reject(bytes(16), c.RejectReason.EXPIRED),
        lambda: packets.build_reject(b"s" * 15, c.RejectReason.EXPIRED),
        lambda: packets.build_notice(b"s" * 17, c.NoticeCode.SHUTDOWN),
        lambda: packets.build_present(SID, c.Role.CLIENT, b""),
        lambda: packets.build_present(SID, c.Role.CLIENT, b"t" * 1101),
        lambda: packets.build_present(SID, c.Role.CLIENT, b"t", counter=-1, sign=sign),
        lambda: packets.build_present(SID, c.Role.CLIENT, b"t", counter=2**64, sign=sign),
        lambda: packets.build_present(SID, c.Role.CLIENT, b"t", cookie=b"7 bytes", sign=sign),
        lambda: packets.build_present(SID, c.Role.CLIENT, b"t", sign=lambda _: bytes(63)),
        lambda: packets.present_signing_input(SID, c.Role.CLIENT, b"t", 2**64),
        lambda: packets.present_signing_input(SID, c.Role.CLIENT, b"t", 0, b"9 bytes.."),
        lambda: packets.present_signing_input(SID, c.Role.CLIENT, b"t" * 70_000, 0),
        lambda: packets.build_challenge(SID, bytes(7)),
        lambda: packets.build_challenge(SID, bytes(9)),
        lambda: packets.build_ack(SID, LeaseAck(-1, 0, 0)),
        lambda: packets.build_ack(SID, LeaseAck(2**64, 0, 0)),
        lambda: packets.build_ack(SID, LeaseAck(0, 2**32, 0)),
        lambda: packets.build_ack(SID, LeaseAck(0, 0, 0, (bytes(5), 1))),
        lambda: packets.build_ack(SID, LeaseAck(0, 0, 0, (bytes(4), 65536))),
        lambda: packets.build_forward(SID, bytes(1481)),
    ],
)
def test_what_no_packet_can_carry_is_the_callers_fault(build: Callable[[], bytes]) -> None:
    with pytest.raises(LocalError):
        build()


# -- Hostile bytes -----------------------------------------------------------------------------

GOOD = [build() for _, build, _ in GOLDEN] + [
    packets.build_forward(SID, rift_transport(9, payload=b"x")),
    packets.build_forward(SID, rift_handshake(9, payload=b"x")),
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    datagram = bytearray(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(1, 4))):
        match draw(st.sampled_from(["flip", "cut", "grow", "insert"])):
            case "flip" if datagram:
                datagram[draw(st.integers(0, len(datagram) - 1))] = draw(st.integers(0, 255))
            case "cut":
                del datagram[draw(st.integers(0, len(datagram))) :]
            case "grow":
                datagram += draw(st.binary(max_size=32))
            case _:
                at = draw(st.integers(0, len(datagram)))
                datagram[at:at] = draw(st.binary(max_size=8))
    return bytes(datagram)


REASONS = {
    *("too_short", "too_long", "bad_magic", "bad_version", "unknown_type", "unknown_flag"),
    *("nil_session", "bad_body", "bad_rift", "bad_crc", "bad_stun"),
}


def parse_everything(datagram: bytes) -> None:
    """Parse as a relay does; a PacketError is the only way to fail."""
    stun.is_stun(datagram)
    for parse in (
        packets.parse_packet,
        packets.forward_sequence,
        lambda data: packets.forward_sequence(data[c.HEADER_BYTES :]),
        lambda data: stun.parse_mapped_address(data, data[8:20]),
    ):
        reason = None
        try:
            parse(datagram)
        except PacketError as error:
            reason = error.reason
        assert reason is None or reason in REASONS


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=2000))
def test_garbage_raises_nothing_but_packet_error(datagram: bytes) -> None:
    parse_everything(datagram)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from([*c.PacketType, 0x07]), st.integers(0, 3), st.binary(max_size=300))
def test_garbage_bodies_raise_nothing_but_packet_error(kind: int, flags: int, body: bytes) -> None:
    parse_everything(header_of(kind, flags) + body)


@settings(deadline=None, max_examples=100)
@given(mutated())
def test_mutated_packets_raise_nothing_but_packet_error(datagram: bytes) -> None:
    parse_everything(datagram)


@settings(deadline=None, max_examples=100)
@given(mutated())
def test_what_parses_is_built_again_to_the_same_bytes(datagram: bytes) -> None:
    try:
        packet = packets.parse_packet(datagram)
    except PacketError:
        return
    session, body = packet.header.session_id, packet.body
    match body:
        case LeasePresent(proof=None):
            renew = packet.header.type == c.PacketType.LEASE_RENEW
            built = packets.build_present(session, body.role, body.token, renew=renew)
        case LeasePresent(proof=proof):
            renew = packet.header.type == c.PacketType.LEASE_RENEW
            built = packets.build_present(
                session,
                body.role,
                body.token,
                counter=proof.counter,
                cookie=proof.cookie,
                sign=lambda _: proof.signature,
                renew=renew,
            )
        case packets.PathChallenge(cookie):
            built = packets.build_challenge(session, cookie)
        case packets.LeaseReject(c.RejectReason() as reason):
            built = packets.build_reject(session, reason)
        case packets.Notice(c.NoticeCode() as code):
            built = packets.build_notice(session, code)
        case bytes():
            built = packets.build_forward(session, body)
        case _:  # An ACK may carry filler after an IPv4 address; a later code has no name.
            return
    assert built == datagram


def test_repr_of_a_present_hides_the_lease() -> None:
    body = packets.parse_packet(
        packets.build_present(SID, c.Role.CLIENT, b"the-lease", sign=sign)
    ).body
    assert isinstance(body, LeasePresent)
    assert b"the-lease" in body.signed_bytes
    assert "the-lease" not in repr(body)
