"""Wire form of the end-to-end channel: the body of a FORWARD datagram.

::

    sequence u64 | kind u8 | rest                                      every packet
    sequence u64 | kind u8 | epoch u16 | ciphertext and 16-byte tag    transport packets

All packets of one sender take their sequence from one counter that starts at 1 and never
repeats while the sender lives: the relay drops repeated sequences, retransmitted handshake
messages included, and a transport packet uses its sequence as the nonce.  The 11 bytes before
the ciphertext are authenticated as associated data.
"""

import struct
from enum import IntEnum
from typing import Final

from wavry_peer.protocol.constants import (
    FORWARD_SEQUENCE_BYTES,
    MAX_FORWARD_PAYLOAD_BYTES,
    RIFT_MAGIC,
)

from .noise import KEY_BYTES, TAG_BYTES

__all__ = [
    "FIRST_SEQUENCE",
    "HANDSHAKE_REST_BYTES",
    "INSTANCE_ID_BYTES",
    "MAX_BODY_BYTES",
    "MAX_DATAGRAM_BYTES",
    "MAX_EPOCH",
    "MAX_SEQUENCE",
    "MESSAGE_1_PADDING",
    "PACKET_HEADER",
    "PROLOGUE_LABEL",
    "TRANSPORT_HEADER",
    "TRANSPORT_KINDS",
    "ChannelKind",
    "ProbeStage",
]


class ChannelKind(IntEnum):
    """Byte 8 of a channel packet."""

    MESSAGE_1 = 1
    """Noise message 1 with padding; initiator to responder."""
    MESSAGE_2 = 2
    """Noise message 2; responder to initiator."""
    MESSAGE_3 = 3
    """Initiator's ephemeral public key, then Noise message 3."""
    DATA = 4
    """Transport: one application datagram."""
    CLOSE = 5
    """Transport: the sender is gone for good; no content."""
    CONFIRM = 6
    """Transport: no content.  Answers message 3, and keeps a path alive.  With one byte of content
    (a `ProbeStage`) it probes the path it came on."""
    KNOCK = 7
    """Responder to initiator, unauthenticated and empty: "I have no keys, begin a handshake".
    A hint only: it can cause a handshake, and changes nothing unless that one succeeds."""


class ProbeStage(IntEnum):
    """Content of a CONFIRM that probes a path: how far its sender is with moving there."""

    PROBING = 0
    HEARD = 1
    """The other side's packets arrive on this path."""
    USING = 2
    """Data is sent on this path."""
    SETTLED = 3
    """Both sides send on this path; no answer is needed."""


TRANSPORT_KINDS: Final = frozenset({ChannelKind.DATA, ChannelKind.CLOSE, ChannelKind.CONFIRM})

PACKET_HEADER: Final = struct.Struct("!QB")
"""Sequence, kind."""
TRANSPORT_HEADER: Final = struct.Struct("!QBH")
"""Sequence, kind, epoch."""

FIRST_SEQUENCE: Final = 1
MAX_SEQUENCE: Final = (int.from_bytes(RIFT_MAGIC, "big") << 48) - 1
"""From the next number on, a body would begin with "RI" and be taken for RIFT.  At a million
packets a second that is 188 000 years away."""
MAX_EPOCH: Final = 0xFFFF

MAX_BODY_BYTES: Final = FORWARD_SEQUENCE_BYTES + MAX_FORWARD_PAYLOAD_BYTES
MAX_DATAGRAM_BYTES: Final = MAX_BODY_BYTES - TRANSPORT_HEADER.size - TAG_BYTES
"""Largest application datagram: 1381 bytes, so that a FORWARD payload has at most 1400."""

INSTANCE_ID_BYTES: Final = 8
"""Random name of one `Channel` object, inside messages 2 and 3: tells a restarted peer from one
that merely renewed its keys.  8 bytes: it only has to differ from the one before."""

HANDSHAKE_REST_BYTES: Final = KEY_BYTES + (KEY_BYTES + TAG_BYTES) + (INSTANCE_ID_BYTES + TAG_BYTES)
"""Size of each handshake message after its kind byte: 104.  Message 2 has an ephemeral key, a
sealed static key and a sealed instance id; the other two are brought to the same size, so that
no answer is larger than what caused it."""

MESSAGE_1_PADDING: Final = bytes(HANDSHAKE_REST_BYTES - KEY_BYTES)

PROLOGUE_LABEL: Final = b"wavry-channel-v1"
"""Bound, with the session id, into every handshake: a change of this wire form changes it."""
