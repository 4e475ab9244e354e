"""Every number of the wire, once.

Source of each value: the relay protocol (docs/protocol.md).  A constant that is a
choice of ours says why it has that value and what it costs.
"""

from enum import IntEnum, IntFlag
from typing import Final

# -- Datagram header -----------------------------------------------------------------

MAGIC: Final = 0x57
VERSION: Final = 0x01
HEADER_BYTES: Final = 20
SESSION_ID_BYTES: Final = 16
SESSION_ID_OFFSET: Final = 4

MIN_DATAGRAM_BYTES: Final = HEADER_BYTES
MAX_DATAGRAM_BYTES: Final = 1500
"""A larger datagram is dropped and counted.  Receive buffers hold more than this, so that
an oversized datagram is seen as oversized and never as a truncated good one."""

RECEIVE_BUFFER_BYTES: Final = 2048
"""Room for MAX_DATAGRAM_BYTES and a margin that shows every larger datagram as too large."""

MAX_FORWARD_PAYLOAD_BYTES: Final = 1400
FORWARD_SEQUENCE_BYTES: Final = 8


class PacketType(IntEnum):
    """Byte 2 of the header."""

    LEASE_PRESENT = 0x01
    LEASE_ACK = 0x02
    LEASE_REJECT = 0x03
    LEASE_RENEW = 0x04
    PATH_CHALLENGE = 0x05
    NOTICE = 0x06
    FORWARD = 0x10


class Flag(IntFlag):
    """Byte 3 of the header; the meaning of bit 0 depends on the packet type."""

    NONE = 0x00
    PROOF = 0x01
    REFLEXIVE = 0x01
    AUTHENTICATED = 0x02


ALLOWED_FLAGS: Final[dict[int, int]] = {
    PacketType.LEASE_PRESENT: Flag.PROOF.value,
    PacketType.LEASE_ACK: Flag.REFLEXIVE.value,
    PacketType.LEASE_REJECT: 0,
    PacketType.LEASE_RENEW: Flag.PROOF.value,
    PacketType.PATH_CHALLENGE: 0,
    PacketType.NOTICE: 0,
    PacketType.FORWARD: 0,
}
"""Flags that may be set today.  FORWARD's bit 1 is reserved, and no relay accepts it yet:
a packet with a bit that is not listed here is dropped.  Plain numbers: the complement of a
`Flag` holds only the bits that have a name, so a mask made of it would let the others pass."""


class Role(IntEnum):
    """Role byte of LEASE_PRESENT and LEASE_RENEW; also the index of the peer slot."""

    CLIENT = 0
    SERVER = 1


ROLE_NAMES: Final[dict[Role, str]] = {Role.CLIENT: "client", Role.SERVER: "server"}


class RejectReason(IntEnum):
    """Reason of LEASE_REJECT."""

    EXPIRED = 0x0001
    INVALID_SIGNATURE = 0x0002
    WRONG_RELAY = 0x0003
    SESSION_FULL = 0x0004
    BANNED = 0x0005
    RATE_LIMITED = 0x0006
    REPLAYED = 0x0007
    REVOKED = 0x0008
    NOT_YET_VALID = 0x0009
    DRAINING = 0x000A
    UNKNOWN_KEY = 0x000B
    PROOF_REQUIRED = 0x000C


class NoticeCode(IntEnum):
    """Code of NOTICE: a hint that is never trusted by itself."""

    DRAINING = 1
    EXPIRING = 2
    REVOKED = 3
    PEER_GONE = 4
    SHUTDOWN = 5


# -- LEASE_PRESENT / LEASE_RENEW -------------------------------------------------------

MAX_TOKEN_BYTES: Final = 1100
"""A PRESENT with proof must fit one 1280-byte MTU: 1280 - 40 (IPv6) - 8 (UDP) - 20 - 3 - 80
leaves 1129; 1100 keeps a margin for a tunnel header."""

COOKIE_BYTES: Final = 8
SIGNATURE_BYTES: Final = 64
PROOF_BYTES: Final = 8 + COOKIE_BYTES + SIGNATURE_BYTES
PRESENT_SIGNATURE_LABEL: Final = b"wavry-present-v1"
NO_COOKIE: Final = bytes(COOKIE_BYTES)
RELEASE_COOKIE: Final = b"\xffrelease"
"""In place of a path's cookie it says: "I am done with this relay, free my slot".  The signature
covers it and the counter makes it good once.  A relay that does not know it takes the packet for
another proof of the same lease, which does no harm, and frees the slot when it has been idle."""

# -- Leases ----------------------------------------------------------------------------

LEASE_TTL_S: Final = 300
LEASE_TTL_MIN_S: Final = 60
LEASE_TTL_MAX_S: Final = 900
LEASE_HORIZON_S: Final = 3600
"""A relay refuses an `exp` further ahead than this."""
NOT_BEFORE_SKEW_S: Final = 30
RENEW_AT_FRACTION: Final = 0.8

# -- Relay sessions --------------------------------------------------------------------

REPLAY_WINDOW_PACKETS: Final = 1024
REPLAY_MAX_JUMP: Final = 1 << 20
"""A sequence further ahead than this is dropped: a spoofed huge sequence must not blackhole
a peer.  2^20 packets are 100 s of 100 Mbit/s at 1200 bytes."""
SECOND_PEER_TIMEOUT_S: Final = 30
GONE_AFTER_S: Final = 45
"""Four keepalives: then the relay tells the other peer of the slot (NOTICE PEER_GONE)."""
IDLE_TIMEOUT_S: Final = 60
COOKIE_SLOT_S: Final = 30
UNPROVED_FACTOR: Final = 3
"""A slot whose address is not proved is sent this many times the bytes that came from it."""
REFLEXIVE_ACK_BYTES: Final = 55
PATH_CHALLENGE_BYTES: Final = 28

# -- RIFT physical packets inside FORWARD ----------------------------------------------

RIFT_MAGIC: Final = b"RI"
RIFT_VERSION: Final = 1
RIFT_HANDSHAKE_MIN_BYTES: Final = 30
RIFT_TRANSPORT_MIN_BYTES: Final = 18
RIFT_HANDSHAKE_ID_OFFSET: Final = 20
RIFT_TRANSPORT_ID_OFFSET: Final = 8
"""Of the 64-bit packet id; the CRC of what is before it and of itself follows."""

# -- STUN on the relay port (RFC 8489) -------------------------------------------------

STUN_COOKIE: Final = 0x2112A442
STUN_HEADER_BYTES: Final = 20
STUN_BINDING_REQUEST: Final = 0x0001
STUN_BINDING_RESPONSE: Final = 0x0101
STUN_XOR_MAPPED_ADDRESS: Final = 0x0020
STUN_SOFTWARE: Final = 0x8022

# -- Signaling (design: gateway) -------------------------------------------------------

MAX_SIGNALING_FRAME_BYTES: Final = 64 * 1024
BIND_TIMEOUT_S: Final = 10
