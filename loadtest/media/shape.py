"""Media-shaped traffic: frames at a fixed rate, each a burst of datagrams, key frames larger.

A datagram of media begins with a header of 25 bytes that says which frame it is part of and when
that frame was *due*.  Latency counts from there, not from the moment in which the sender got round
to it: a sender that is late (or that was held up by the system under test) would otherwise leave
out just the waits that users feel (coordinated omission).  How late the sender itself was
is measured apart.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

__all__ = [
    "MAX_PACKET_BYTES",
    "MIN_PACKET_BYTES",
    "MediaPacket",
    "MediaShape",
    "echo_of",
    "read_packet",
]

_MEDIA: Final = 1
_ECHO: Final = 2
_HEAD: Final = struct.Struct("!BIHHQQ")
_SECOND_NS: Final = 1_000_000_000

MIN_PACKET_BYTES: Final = _HEAD.size
MAX_PACKET_BYTES: Final = 1300
"""Below what a FORWARD carries, with room for the encryption of a real session."""


class MediaPacket(NamedTuple):
    """Header of a datagram.

    Attributes:
        is_echo: the receiver's answer to a whole frame.
        frame: number of the frame, from 0.
        position: of the datagram in its frame, from 0.
        of: datagrams of the frame.
        number: of the datagram in its stream, from 0.
        due_ns: when the frame was due, on the monotonic clock of this machine.
    """

    is_echo: bool
    frame: int
    position: int
    of: int
    number: int
    due_ns: int


@dataclass(frozen=True, slots=True)
class MediaShape:
    """What a stream looks like.

    Attributes:
        fps: frames a second.
        frame_packets: datagrams of a frame.
        keyframe_packets: datagrams of a key frame.
        keyframe_every: every so-manieth frame is a key frame, the first too.
        packet_bytes: of each datagram, header included.
    """

    fps: int = 60
    frame_packets: int = 4
    keyframe_packets: int = 16
    keyframe_every: int = 60
    packet_bytes: int = 1100

    def due_ns(self, frame: int) -> int:
        """Return when a frame is due, from the start of the stream."""
        return frame * _SECOND_NS // self.fps

    def packets_of(self, frame: int) -> int:
        """Return how many datagrams a frame has."""
        is_key = frame % self.keyframe_every == 0
        return self.keyframe_packets if is_key else self.frame_packets

    def payloads(self, frame: int, first_number: int, due_ns: int) -> Iterator[bytes]:
        """Return the datagrams of a frame, numbered from `first_number`."""
        of = self.packets_of(frame)
        padding = bytes(self.packet_bytes - _HEAD.size)
        for at in range(of):
            yield _HEAD.pack(_MEDIA, frame, at, of, first_number + at, due_ns) + padding

    @property
    def packets_per_s(self) -> float:
        """Datagrams a second, in the direction of the media."""
        group = self.keyframe_packets + self.frame_packets * (self.keyframe_every - 1)
        return group * self.fps / self.keyframe_every

    @property
    def kbps(self) -> float:
        """Rate of the payload in kbit/s."""
        return self.packets_per_s * self.packet_bytes * 8 / 1000


def echo_of(packet: MediaPacket) -> bytes:
    """Return what the receiver sends back when a frame is whole."""
    return _HEAD.pack(_ECHO, packet.frame, 0, 1, packet.number, packet.due_ns)


def read_packet(payload: bytes) -> MediaPacket | None:
    """Return the header of a datagram; None where it is not one of ours."""
    if len(payload) < _HEAD.size:
        return None
    kind, *rest = _HEAD.unpack_from(payload)
    return MediaPacket(kind == _ECHO, *rest) if kind in (_MEDIA, _ECHO) else None
