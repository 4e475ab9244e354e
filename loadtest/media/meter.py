"""What became of one stream: latency, loss, duplicates, reordering.

Reordering is counted as RFC 4737 section 3 defines it: a datagram is reordered when its number is
lower than that of one which came before it.  A gap that is filled later is reordering; one
that is still open when the stream has ended, and the time for stragglers is over, is loss.
"""

import msgspec

from .histogram import Histogram
from .shape import MediaPacket

__all__ = ["MediaTotals", "StreamMeter"]


class MediaTotals(msgspec.Struct):
    """Sums over streams; datagrams of media, echoes not among them.

    Attributes:
        streams: that have ended.
        sent: datagrams given to the network.
        received: different datagrams that came.
        lost: never came.
        duplicates: came again.
        reordered: came after one that was sent later (RFC 4737).
        foreign: datagrams that are not of the stream.
        one_way: from the time a frame was due to the arrival of each of its datagrams.
        send_late: how long after it was due the sender sent a frame.
    """

    streams: int = 0
    sent: int = 0
    received: int = 0
    lost: int = 0
    duplicates: int = 0
    reordered: int = 0
    foreign: int = 0
    one_way: Histogram = msgspec.field(default_factory=Histogram)
    send_late: Histogram = msgspec.field(default_factory=Histogram)

    def merge(self, other: "MediaTotals") -> None:
        """Add the sums of others."""
        self.streams += other.streams
        self.sent += other.sent
        self.received += other.received
        self.lost += other.lost
        self.duplicates += other.duplicates
        self.reordered += other.reordered
        self.foreign += other.foreign
        self.one_way.merge(other.one_way)
        self.send_late.merge(other.send_late)

    def clear(self) -> None:
        """Begin anew, in place."""
        self.streams = self.sent = self.received = self.lost = 0
        self.duplicates = self.reordered = self.foreign = 0
        self.one_way, self.send_late = Histogram(), Histogram()

    @property
    def loss_pct(self) -> float:
        """Share of the datagrams sent that never came, in percent."""
        ended = self.received + self.lost
        return 100 * self.lost / ended if ended else 0.0

    @property
    def reordered_pct(self) -> float:
        """Share of the datagrams received that were reordered, in percent."""
        return 100 * self.reordered / self.received if self.received else 0.0


class StreamMeter:
    """Accounts for one stream from its two ends, which live in one process.

    Args:
        totals: where to count.
        deadline_ns: from when a frame was due; one that is not whole by then has failed.
    """

    def __init__(self, totals: MediaTotals, deadline_ns: int) -> None:
        self._totals = totals
        self._deadline_ns = deadline_ns
        self._next_number = 0
        self._expected = 0
        self._gaps: set[int] = set()
        self._open_frames: dict[int, tuple[int, int]] = {}

    @property
    def next_number(self) -> int:
        """Number of the next datagram to send."""
        return self._next_number

    @property
    def is_complete(self) -> bool:
        """Whether everything that was sent has come."""
        return self._expected == self._next_number and not self._gaps

    def frame_sent(self, frame: int, packets: int, due_ns: int, now_ns: int) -> None:
        """Note that a frame of `packets` datagrams goes out now."""
        self._open_frames[frame] = (packets, due_ns)
        self._next_number += packets
        self._totals.sent += packets
        self._totals.send_late.add(now_ns - due_ns)

    def receive(self, packet: MediaPacket, now_ns: int) -> bool:
        """Count a datagram.

        Returns:
            True where it makes its frame whole.
        """
        if packet.number >= self._next_number:
            self._totals.foreign += 1
            return False
        if packet.number >= self._expected:
            self._gaps.update(range(self._expected, packet.number))
            self._expected = packet.number + 1
        elif packet.number in self._gaps:
            self._gaps.discard(packet.number)
            self._totals.reordered += 1
        else:
            self._totals.duplicates += 1
            return False
        self._totals.received += 1
        self._totals.one_way.add(now_ns - packet.due_ns)
        missing, due_ns = self._open_frames.get(packet.frame, (0, 0))
        if missing > 1:
            self._open_frames[packet.frame] = (missing - 1, due_ns)
            return False
        return self._open_frames.pop(packet.frame, None) is not None

    def overdue(self, now_ns: int) -> int:
        """Give up frames past their deadline; returns how many."""
        count = 0
        for frame, (_, due_ns) in list(self._open_frames.items()):
            if now_ns - due_ns < self._deadline_ns:
                break  # frames are in the order in which they were due
            del self._open_frames[frame]
            count += 1
        return count

    def close(self) -> int:
        """End the stream: what has not come is lost.

        Returns:
            Frames that are not whole.
        """
        self._totals.streams += 1
        self._totals.lost += len(self._gaps) + self._next_number - self._expected
        self._gaps.clear()
        self._expected = self._next_number
        failed = len(self._open_frames)
        self._open_frames.clear()
        return failed
