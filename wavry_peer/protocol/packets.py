"""Relay datagrams: build and parse (protocol: datagram header and packet types).

Parsing is split the way a relay needs it.  `parse_header` looks at the 20 bytes that every
packet has; the body parsers look at one type each.  Every refusal is a `PacketError` with a
short stable reason, which is also the name of the drop counter.  Nothing here answers,
stores or reads a clock.
"""

import struct
from collections.abc import Callable
from typing import Final, NewType

import msgspec

from . import constants as c
from .crc import crc16_kermit
from .errors import LocalError, PacketError

__all__ = [
    "Buffer",
    "Header",
    "LeaseAck",
    "LeasePresent",
    "LeaseReject",
    "Notice",
    "Packet",
    "PathChallenge",
    "Proof",
    "SessionId",
    "build_ack",
    "build_challenge",
    "build_forward",
    "build_notice",
    "build_present",
    "build_reject",
    "forward_sequence",
    "parse_ack",
    "parse_challenge",
    "parse_header",
    "parse_notice",
    "parse_packet",
    "parse_present",
    "parse_reject",
    "present_signing_input",
]

SessionId = NewType("SessionId", bytes)
"""16 bytes of an RFC 4122 UUID, never nil."""

Buffer = bytes | bytearray | memoryview

NIL_SESSION: Final = bytes(c.SESSION_ID_BYTES)

_TYPES: Final = {int(kind): (kind, ~int(c.ALLOWED_FLAGS[kind])) for kind in c.PacketType}
"""Type and forbidden flags by the byte on the wire; far cheaper than a call of `PacketType`."""
_ROLES: Final = {int(role): role for role in c.Role}

_HEADER: Final = struct.Struct("!BBBB16s")
_PRESENT_HEAD: Final = struct.Struct("!BH")
_PROOF: Final = struct.Struct("!Q8s64s")
_TOKEN_AT: Final = c.HEADER_BYTES + _PRESENT_HEAD.size
_PROOF_FLAG: Final = int(c.Flag.PROOF)
_RENEW: Final = c.PacketType.LEASE_RENEW
_ACK: Final = struct.Struct("!QII")
_REFLEXIVE: Final = struct.Struct("!BH16s")
_U16: Final = struct.Struct("!H")
_U64: Final = struct.Struct("!Q")


class Header(msgspec.Struct, frozen=True, gc=False):
    """The 20 bytes that every packet begins with."""

    type: c.PacketType
    flags: int
    session_id: SessionId


class Proof(msgspec.Struct, frozen=True, gc=False):
    """Proof of possession of the `cnf` key at the end of LEASE_PRESENT / LEASE_RENEW.

    Attributes:
        counter: grows with every packet that the peer signs for the session (u64).
        cookie: 8 bytes from PATH_CHALLENGE, or zeros.
        signature: 64 bytes, Ed25519 over `present_signing_input`.
    """

    counter: int
    cookie: bytes
    signature: bytes


class LeasePresent(msgspec.Struct, frozen=True, gc=False):
    """Body of LEASE_PRESENT and of LEASE_RENEW.

    Attributes:
        role: slot that the sender wants.
        token: the PASETO as it came, at most 1100 bytes; not in `repr`.
        proof: present where the PROOF flag is set.
        signed_bytes: exactly what `proof.signature` must cover (holds the token).
    """

    role: c.Role
    token: bytes
    proof: Proof | None
    signed_bytes: bytes

    def __repr__(self) -> str:
        return f"LeasePresent(role={self.role!r}, proof={self.proof!r})"


class LeaseAck(msgspec.Struct, frozen=True, gc=False):
    """Body of LEASE_ACK: expiry in unix milliseconds, limits in kbit/s.

    `reflexive` is the sender's address as the relay saw it: (packed IPv4 or IPv6, port).
    """

    expires_ms: int
    soft_kbps: int
    hard_kbps: int
    reflexive: tuple[bytes, int] | None = None


class LeaseReject(msgspec.Struct, frozen=True, gc=False):
    """Body of LEASE_REJECT; an unknown reason is kept as its number."""

    reason: c.RejectReason | int


class PathChallenge(msgspec.Struct, frozen=True, gc=False):
    """Body of PATH_CHALLENGE."""

    cookie: bytes


class Notice(msgspec.Struct, frozen=True, gc=False):
    """Body of NOTICE; an unknown code is kept as its number."""

    code: c.NoticeCode | int


Body = LeasePresent | LeaseAck | LeaseReject | PathChallenge | Notice | bytes | None


class Packet(msgspec.Struct, frozen=True, gc=False):
    """A whole datagram.  `body` is None for an empty LEASE_RENEW, bytes for FORWARD."""

    header: Header
    body: Body


# -- Parse -------------------------------------------------------------------------------


def parse_header(datagram: Buffer) -> Header:
    """Check size, magic, version, type, flags and session id of a datagram.

    Raises:
        PacketError: ``too_short``, ``too_long``, ``bad_magic``, ``bad_version``,
            ``unknown_type``, ``unknown_flag`` or ``nil_session``, checked in this order.
    """
    size = len(datagram)
    if size < c.MIN_DATAGRAM_BYTES:
        raise PacketError("too_short")
    if size > c.MAX_DATAGRAM_BYTES:
        raise PacketError("too_long")
    magic, version, kind, flags, session = _HEADER.unpack_from(datagram)
    if magic != c.MAGIC:
        raise PacketError("bad_magic")
    if version != c.VERSION:
        raise PacketError("bad_version")
    known = _TYPES.get(kind)
    if known is None:
        raise PacketError("unknown_type")
    if flags & known[1]:
        raise PacketError("unknown_flag")
    if session == NIL_SESSION:
        raise PacketError("nil_session")
    return Header(known[0], flags, session)


def parse_present(datagram: Buffer, header: Header) -> LeasePresent | None:
    """Parse the body of LEASE_PRESENT or LEASE_RENEW.

    Returns:
        None for an empty LEASE_RENEW, which is a keepalive of an old peer.

    Raises:
        PacketError: ``bad_body``: length, role, or proof that does not fit its flag.
    """
    size = len(datagram)
    has_proof = bool(header.flags & _PROOF_FLAG)
    if size == c.HEADER_BYTES and header.type is _RENEW and not header.flags:
        return None
    if size < _TOKEN_AT:
        raise PacketError("bad_body", "lease packet is cut off")
    role_number, token_bytes = _PRESENT_HEAD.unpack_from(datagram, c.HEADER_BYTES)
    token_end = _TOKEN_AT + token_bytes
    if size != token_end + (_PROOF.size if has_proof else 0):
        raise PacketError("bad_body", "token length does not fit the datagram")
    role = _ROLES.get(role_number)
    if role is None:
        raise PacketError("bad_body", "unknown role")
    if not 0 < token_bytes <= c.MAX_TOKEN_BYTES:
        raise PacketError("bad_body", "token size out of range")
    token = bytes(datagram[_TOKEN_AT:token_end])
    if not has_proof:
        return LeasePresent(role, token, None, b"")
    proof = Proof(*_PROOF.unpack_from(datagram, token_end))
    signed = c.PRESENT_SIGNATURE_LABEL + bytes(datagram[: size - c.SIGNATURE_BYTES])
    return LeasePresent(role, token, proof, signed)


def parse_ack(datagram: Buffer, header: Header) -> LeaseAck:
    """Parse the body of LEASE_ACK.

    Raises:
        PacketError: ``bad_body``.
    """
    has_reflexive = bool(header.flags & c.Flag.REFLEXIVE)
    want = _ACK.size + (_REFLEXIVE.size if has_reflexive else 0)
    if len(datagram) - c.HEADER_BYTES != want:
        raise PacketError("bad_body", "LEASE_ACK has the wrong size")
    expires_ms, soft, hard = _ACK.unpack_from(datagram, c.HEADER_BYTES)
    reflexive = None
    if has_reflexive:
        family, port, address = _REFLEXIVE.unpack_from(datagram, c.HEADER_BYTES + _ACK.size)
        if family not in (4, 6):
            raise PacketError("bad_body", "unknown address family")
        reflexive = (address[:4] if family == 4 else address, port)
    return LeaseAck(expires_ms, soft, hard, reflexive)


def _parse_code(datagram: Buffer) -> int:
    if len(datagram) != c.HEADER_BYTES + _U16.size:
        raise PacketError("bad_body", "packet has the wrong size")
    (code,) = _U16.unpack_from(datagram, c.HEADER_BYTES)
    return int(code)


def parse_reject(datagram: Buffer, _header: Header) -> LeaseReject:
    """Parse the body of LEASE_REJECT; a reason from a later version stays a number.

    Raises:
        PacketError: ``bad_body``.
    """
    code = _parse_code(datagram)
    known = code in c.RejectReason.__members__.values()
    return LeaseReject(c.RejectReason(code) if known else code)


def parse_notice(datagram: Buffer, _header: Header) -> Notice:
    """Parse the body of NOTICE; a code from a later version stays a number.

    Raises:
        PacketError: ``bad_body``.
    """
    code = _parse_code(datagram)
    known = code in c.NoticeCode.__members__.values()
    return Notice(c.NoticeCode(code) if known else code)


def parse_challenge(datagram: Buffer, _header: Header) -> PathChallenge:
    """Parse the body of PATH_CHALLENGE.

    Raises:
        PacketError: ``bad_body``.
    """
    if len(datagram) != c.HEADER_BYTES + c.COOKIE_BYTES:
        raise PacketError("bad_body", "PATH_CHALLENGE has the wrong size")
    return PathChallenge(bytes(datagram[c.HEADER_BYTES :]))


def forward_sequence(body: Buffer) -> int:
    """Return the sequence of a FORWARD body, plain or RIFT.

    Raises:
        PacketError: ``bad_body`` (too short or too long), ``bad_rift`` (version, size) or
            ``bad_crc``.
    """
    if len(body) >= 2 and bytes(body[:2]) == c.RIFT_MAGIC:
        return _rift_packet_id(body)
    if len(body) < c.FORWARD_SEQUENCE_BYTES:
        raise PacketError("bad_body", "FORWARD without a sequence")
    if len(body) > c.FORWARD_SEQUENCE_BYTES + c.MAX_FORWARD_PAYLOAD_BYTES:
        raise PacketError("bad_body", "FORWARD payload is over 1400 bytes")
    (sequence,) = _U64.unpack_from(body)
    return int(sequence)


def _rift_packet_id(body: Buffer) -> int:
    if len(body) < c.RIFT_TRANSPORT_MIN_BYTES:
        raise PacketError("bad_rift", "RIFT packet is cut off")
    version, connection = struct.unpack_from("!HI", body, 2)
    if version != c.RIFT_VERSION:
        raise PacketError("bad_rift", "unknown RIFT version")
    handshake = connection == 0 and len(body) >= c.RIFT_HANDSHAKE_MIN_BYTES
    id_at = c.RIFT_HANDSHAKE_ID_OFFSET if handshake else c.RIFT_TRANSPORT_ID_OFFSET
    crc_at = id_at + _U64.size
    (crc,) = _U16.unpack_from(body, crc_at)
    if crc != crc16_kermit(bytes(body[:crc_at])):
        raise PacketError("bad_crc")
    (packet_id,) = _U64.unpack_from(body, id_at)
    return int(packet_id)


_BODY_PARSERS: Final[dict[c.PacketType, Callable[[Buffer, Header], Body]]] = {
    c.PacketType.LEASE_PRESENT: parse_present,
    c.PacketType.LEASE_ACK: parse_ack,
    c.PacketType.LEASE_REJECT: parse_reject,
    c.PacketType.LEASE_RENEW: parse_present,
    c.PacketType.PATH_CHALLENGE: parse_challenge,
    c.PacketType.NOTICE: parse_notice,
    c.PacketType.FORWARD: lambda datagram, _header: bytes(datagram[c.HEADER_BYTES :]),
}


def parse_packet(datagram: Buffer) -> Packet:
    """Parse a whole datagram of any type.

    Raises:
        PacketError: see `parse_header` and the parser of the type.
    """
    header = parse_header(datagram)
    return Packet(header, _BODY_PARSERS[header.type](datagram, header))


# -- Build -------------------------------------------------------------------------------


def _header(kind: c.PacketType, session_id: bytes, flags: int = 0) -> bytes:
    if len(session_id) != c.SESSION_ID_BYTES or session_id == NIL_SESSION:
        raise LocalError("session id must be 16 bytes and not nil")
    return _HEADER.pack(c.MAGIC, c.VERSION, kind, flags, session_id)


def present_signing_input(
    session_id: bytes,
    role: c.Role,
    token: bytes,
    counter: int,
    cookie: bytes = c.NO_COOKIE,
    *,
    renew: bool = False,
) -> bytes:
    """Return the bytes that the `cnf` key signs for a LEASE_PRESENT (or LEASE_RENEW) with proof.

    Raises:
        LocalError: an argument that the packet cannot carry.
    """
    if not 0 < len(token) <= c.MAX_TOKEN_BYTES:
        raise LocalError(f"token must have 1 to {c.MAX_TOKEN_BYTES} bytes")
    if len(cookie) != c.COOKIE_BYTES:
        raise LocalError("cookie must have 8 bytes")
    if not 0 <= counter < 1 << 64:
        raise LocalError("counter must fit 64 bits")
    kind = c.PacketType.LEASE_RENEW if renew else c.PacketType.LEASE_PRESENT
    return b"".join(
        (
            c.PRESENT_SIGNATURE_LABEL,
            _header(kind, session_id, c.Flag.PROOF),
            _PRESENT_HEAD.pack(role, len(token)),
            token,
            _U64.pack(counter),
            cookie,
        )
    )


def build_present(
    session_id: bytes,
    role: c.Role,
    token: bytes,
    *,
    counter: int = 0,
    cookie: bytes = c.NO_COOKIE,
    sign: Callable[[bytes], bytes] | None = None,
    renew: bool = False,
) -> bytes:
    """Build LEASE_PRESENT or LEASE_RENEW.

    Args:
        session_id: 16 bytes.
        role: slot to take.
        token: the lease as the gateway gave it.
        counter: larger than in every packet signed before for this session (u64).
        cookie: of the last PATH_CHALLENGE from this relay, or zeros.
        sign: makes 64 bytes of Ed25519 signature with the `cnf` key; None leaves the proof
            away, and no relay takes that.
        renew: build LEASE_RENEW instead of LEASE_PRESENT.

    Raises:
        LocalError: an argument that the packet cannot carry.
    """
    signed = present_signing_input(session_id, role, token, counter, cookie, renew=renew)
    if sign is None:
        kind = c.PacketType.LEASE_RENEW if renew else c.PacketType.LEASE_PRESENT
        return _header(kind, session_id) + _PRESENT_HEAD.pack(role, len(token)) + token
    signature = sign(signed)
    if len(signature) != c.SIGNATURE_BYTES:
        raise LocalError("signature must have 64 bytes")
    return signed[len(c.PRESENT_SIGNATURE_LABEL) :] + signature


def build_ack(session_id: bytes, ack: LeaseAck) -> bytes:
    """Build LEASE_ACK, with the REFLEXIVE part where `ack.reflexive` is given.

    Raises:
        LocalError: a number that its field cannot hold, or an address of neither family.
    """
    try:
        head = _ACK.pack(ack.expires_ms, ack.soft_kbps, ack.hard_kbps)
    except struct.error as error:
        raise LocalError("expiry must fit 64 bits and limits 32 bits") from error
    if ack.reflexive is None:
        return _header(c.PacketType.LEASE_ACK, session_id) + head
    address, port = ack.reflexive
    if len(address) not in (4, 16) or not 0 <= port <= 0xFFFF:
        raise LocalError("address must have 4 or 16 bytes and its port 16 bits")
    family = 4 if len(address) == 4 else 6
    tail = _REFLEXIVE.pack(family, port, address)
    return _header(c.PacketType.LEASE_ACK, session_id, c.Flag.REFLEXIVE) + head + tail


def build_reject(session_id: bytes, reason: c.RejectReason) -> bytes:
    """Build LEASE_REJECT."""
    return _header(c.PacketType.LEASE_REJECT, session_id) + _U16.pack(reason)


def build_challenge(session_id: bytes, cookie: bytes) -> bytes:
    """Build PATH_CHALLENGE with an 8-byte cookie.

    Raises:
        LocalError: the cookie has another size.
    """
    if len(cookie) != c.COOKIE_BYTES:
        raise LocalError("cookie must have 8 bytes")
    return _header(c.PacketType.PATH_CHALLENGE, session_id) + cookie


def build_notice(session_id: bytes, code: c.NoticeCode) -> bytes:
    """Build NOTICE."""
    return _header(c.PacketType.NOTICE, session_id) + _U16.pack(code)


def build_forward(session_id: bytes, body: Buffer) -> bytes:
    """Build FORWARD around a body that already begins with its sequence.

    Raises:
        LocalError: the body leaves no room in a datagram of 1500 bytes.
    """
    if len(body) > c.MAX_DATAGRAM_BYTES - c.HEADER_BYTES:
        raise LocalError("FORWARD body is over 1480 bytes")
    return _header(c.PacketType.FORWARD, session_id) + bytes(body)
