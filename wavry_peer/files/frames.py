"""Frames of a file transfer; each is one datagram of the session.

::

    kind u8 | transfer id 8 | rest                                      all integers big-endian

    OFFER       size u64 | chunk u16 | SHA-256 32 | name UTF-8           sender, until answered
    ACCEPT                                                               receiver
    DATA        index u32 | stamp u32 | flags u8 | bytes                 sender
    ACK         stamp u32 | delay u32 | duplicates u32 | next u32 | map  receiver
    QUERY                                                                sender: "what do you have?"
    RESULT      code u8                                                  receiver, until answered
    RESULT_ACK                                                           sender
    CANCEL                                                               sender gives up

Chunk `index` holds the bytes from `index * chunk` on.  `next` is the lowest chunk that is missing;
bit i of `map` (least significant bit of the first byte first) says whether chunk `next + i` is
there.  `stamp` is the sender's clock (µs, modulo 2^32), repeated by the receiver with the time it
kept it (`delay`, µs): so a round trip is measured exactly, retransmitted or not.
"""

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from wavry_peer.protocol.errors import ProtocolError

__all__ = [
    "ACK_NOW",
    "DATA_HEADER_BYTES",
    "ID_BYTES",
    "MAX_CHUNKS",
    "WINDOW_CHUNKS",
    "Frame",
    "FrameError",
    "FrameKind",
    "ResultCode",
    "Simple",
    "TransferAck",
    "TransferData",
    "TransferOffer",
    "parse_frame",
]

ID_BYTES: Final = 8
ACK_NOW: Final = 0x01
"""Flag of DATA: answer at once, I am waiting for it."""
WINDOW_CHUNKS: Final = 8192
"""A chunk this far after the lowest missing one is refused: it bounds the map to 1 KiB (an
ACK stays one datagram), and the memory of both sides."""
MAX_CHUNKS: Final = 2**32 - 1
MIN_CHUNK_BYTES: Final = 64
MAX_NAME_BYTES: Final = 255

_HEAD: Final = struct.Struct("!B8s")
_OFFER: Final = struct.Struct("!B8sQH32s")
_DATA: Final = struct.Struct("!B8sIIB")
_ACK: Final = struct.Struct("!B8sIIII")
DATA_HEADER_BYTES: Final = _DATA.size


class FrameKind(IntEnum):
    """First byte of a frame."""

    OFFER = 1
    ACCEPT = 2
    DATA = 3
    ACK = 4
    QUERY = 5
    RESULT = 6
    RESULT_ACK = 7
    CANCEL = 8


class ResultCode(IntEnum):
    """How a transfer ended, in the receiver's words."""

    OK = 0
    REFUSED = 1
    EXISTS = 2
    TOO_LARGE = 3
    NO_SPACE = 4
    BAD_NAME = 5
    HASH_MISMATCH = 6
    DISK_ERROR = 7
    CANCELLED = 8


class FrameError(ProtocolError):
    """A frame that does not fit; it is dropped."""


@dataclass(frozen=True, slots=True)
class TransferOffer:
    """A file is offered; `sha256` is over its whole content."""

    transfer_id: bytes
    size_bytes: int
    chunk_bytes: int
    sha256: bytes
    name: str

    @property
    def chunk_count(self) -> int:
        """Chunks in the file."""
        return -(-self.size_bytes // self.chunk_bytes)

    def chunk_size(self, index: int) -> int:
        """Return the bytes of a chunk: the last one may be shorter."""
        return min(self.chunk_bytes, self.size_bytes - index * self.chunk_bytes)

    def pack(self) -> bytes:
        """Return the frame."""
        head = _OFFER.pack(
            FrameKind.OFFER, self.transfer_id, self.size_bytes, self.chunk_bytes, self.sha256
        )
        return head + self.name.encode()


@dataclass(frozen=True, slots=True)
class TransferData:
    """One chunk."""

    transfer_id: bytes
    index: int
    stamp_us: int
    flags: int
    data: bytes = field(repr=False)

    def pack(self) -> bytes:
        """Return the frame."""
        head = _DATA.pack(FrameKind.DATA, self.transfer_id, self.index, self.stamp_us, self.flags)
        return head + self.data


@dataclass(frozen=True, slots=True)
class TransferAck:
    """What the receiver has: everything before `next_index`, and bit i for `next_index + i`."""

    transfer_id: bytes
    stamp_us: int
    delay_us: int
    duplicates: int
    next_index: int
    have: int

    def pack(self) -> bytes:
        """Return the frame."""
        head = _ACK.pack(
            FrameKind.ACK,
            self.transfer_id,
            self.stamp_us,
            min(self.delay_us, 2**32 - 1),
            self.duplicates & 0xFFFFFFFF,
            self.next_index,
        )
        return head + self.have.to_bytes(-(-self.have.bit_length() // 8), "little")


@dataclass(frozen=True, slots=True)
class Simple:
    """A frame with nothing but a code (RESULT) or not even that."""

    kind: FrameKind
    transfer_id: bytes
    code: int = 0

    def pack(self) -> bytes:
        """Return the frame."""
        head = _HEAD.pack(self.kind, self.transfer_id)
        return head + bytes((self.code,)) if self.kind is FrameKind.RESULT else head


Frame = TransferOffer | TransferData | TransferAck | Simple


def parse_frame(frame: bytes) -> Frame:
    """Read a frame.

    Raises:
        FrameError: it does not fit.
    """
    try:
        kind = FrameKind(frame[0])
        if kind is FrameKind.DATA:
            _, transfer_id, index, stamp_us, flags = _DATA.unpack_from(frame)
            return TransferData(transfer_id, index, stamp_us, flags, frame[_DATA.size :])
        if kind is FrameKind.ACK:
            _, transfer_id, stamp_us, delay_us, duplicates, next_index = _ACK.unpack_from(frame)
            have = int.from_bytes(frame[_ACK.size :], "little")
            if have.bit_length() > WINDOW_CHUNKS:
                raise FrameError("the map of an ACK is too long")
            return TransferAck(transfer_id, stamp_us, delay_us, duplicates, next_index, have)
        if kind is FrameKind.OFFER:
            return _parse_offer(frame)
        transfer_id = _HEAD.unpack_from(frame)[1]
        rest = frame[_HEAD.size :]
    except (IndexError, ValueError, struct.error) as error:
        raise FrameError("not a frame of a file transfer") from error
    if len(rest) != (1 if kind is FrameKind.RESULT else 0):
        raise FrameError(f"{kind.name} has the wrong size")
    return Simple(kind, transfer_id, rest[0] if rest else 0)


def _parse_offer(frame: bytes) -> TransferOffer:
    _, transfer_id, size_bytes, chunk_bytes, sha256 = _OFFER.unpack_from(frame)
    raw_name = frame[_OFFER.size :]
    if not chunk_bytes >= MIN_CHUNK_BYTES or not 0 < len(raw_name) <= MAX_NAME_BYTES:
        raise FrameError("an OFFER's chunk size or name is out of range")
    offer = TransferOffer(transfer_id, size_bytes, chunk_bytes, sha256, raw_name.decode())
    if offer.chunk_count > MAX_CHUNKS:
        raise FrameError("the file has too many chunks")
    return offer
