"""The sending side of a file transfer, sans I/O.

Strategy: every chunk is acknowledged by itself, so exactly what was lost is sent again.  A chunk
counts as lost when one that was sent clearly later has arrived ("clearly": more than a quarter
of the round trip, and more when the path turns out to reorder), as in RACK (RFC 8985).  When
nothing comes back at all, a timer sends the two oldest again.  A chunk is read from
the file each time it is sent: memory does not grow with the file or the window.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from .congestion import Congestion
from .frames import (
    ACK_NOW,
    DATA_HEADER_BYTES,
    WINDOW_CHUNKS,
    FrameError,
    FrameKind,
    ResultCode,
    Simple,
    TransferAck,
    TransferData,
    TransferOffer,
    parse_frame,
)

__all__ = ["FileSender", "SenderStatistics", "chunk_bytes_for"]

_SECOND_NS: Final = 1_000_000_000
OFFER_WAIT_NS: Final = _SECOND_NS // 2
MAX_WAIT_NS: Final = 2 * _SECOND_NS
STALL_NS: Final = 30 * _SECOND_NS
"""As long as a session moves to another relay at worst."""
CANCEL_COPIES: Final = 3


@dataclass(slots=True)
class SenderStatistics:
    """Counters of a sender.

    Attributes:
        chunks_sent: repetitions included.
        chunks_repeated: sent again because they seemed lost.
        timeouts: times that nothing came back.
        acked_bytes: content that the receiver has.
    """

    chunks_sent: int = 0
    chunks_repeated: int = 0
    timeouts: int = 0
    acked_bytes: int = 0


class _State(Enum):
    OFFERING = "offering"
    SENDING = "sending"
    WAITING_FOR_RESULT = "waiting for result"
    OVER = "over"


def chunk_bytes_for(max_datagram_bytes: int) -> int:
    """Return the content bytes of one chunk when a session takes datagrams of at most this size."""
    return max_datagram_bytes - DATA_HEADER_BYTES


class FileSender:
    """Sends one file.

    The owner feeds `receive` and `handle_timer`, and after each sends what `frames_to_send`
    gives and asks `get_timer`, until `is_over`.  Times are nanoseconds of a monotonic clock.

    Attributes:
        offer: what is sent.
        statistics: counters, for reading only.
        result: how the receiver says it ended; None if it did not say.
        is_over: nothing is left to do.
    """

    def __init__(
        self, offer: TransferOffer, read: Callable[[int, int], bytes], now_ns: int
    ) -> None:
        """Make a sender that offers the file at once.

        Args:
            offer: names the file; its chunk size must fit the session.
            read: gives `size` bytes from `offset`; fewer if the file became shorter.
            now_ns: time now.
        """
        self.offer = offer
        self.statistics = SenderStatistics()
        self.result: ResultCode | None = None
        self.is_over = False
        self._read = read
        self._congestion = Congestion()
        self._state = _State.OFFERING
        self._count = offer.chunk_count
        self._control: list[bytes] = [offer.pack()]
        self._wait_ns = OFFER_WAIT_NS
        self._control_due_ns = now_ns + self._wait_ns
        self._heard_ns = now_ns
        self._next_new = 0
        self._missing_from = 0
        self._have = 0
        self._flying: dict[int, int] = {}
        self._lost: dict[int, None] = {}
        self._newest_acked_sent_ns = 0
        self._last_sent_ns = now_ns
        self._reorder_factor = 0.25
        self._duplicates = 0
        self._has_stalled = False

    @property
    def has_stalled(self) -> bool:
        """True if it is over because the receiver fell silent."""
        return self._has_stalled

    @property
    def round_trip_ns(self) -> int:
        """Smoothed; 0 before the first sample."""
        return self._congestion.smoothed_ns

    def cancel(self) -> None:
        """Give up and tell the receiver."""
        if not self.is_over:
            cancel = Simple(FrameKind.CANCEL, self.offer.transfer_id).pack()
            self._control += [cancel] * CANCEL_COPIES
            self._end()

    def receive(self, frame: bytes, now_ns: int) -> None:
        """Take a frame from the session, whatever it is."""
        try:
            parsed = parse_frame(frame)
        except FrameError:
            return
        if parsed.transfer_id != self.offer.transfer_id or self.is_over:
            return
        match parsed:
            case TransferAck():
                self._on_ack(parsed, now_ns)
            case Simple(kind=FrameKind.ACCEPT):
                self._heard_ns = now_ns
                self._accepted(now_ns)
            case Simple(kind=FrameKind.RESULT):
                self._on_result(parsed.code)

    def frames_to_send(self, now_ns: int) -> list[bytes]:
        """Return frames for now: at most a burst; asks to be called again by `get_timer`."""
        frames, self._control = self._control, []
        if self._state is _State.SENDING and now_ns >= self._congestion.next_send_ns:
            frames += self._chunks(now_ns)
        return frames

    def get_timer(self) -> int | None:
        """Return when to call `handle_timer` and `frames_to_send`; None when it is over."""
        if self.is_over:
            return None
        stall_ns = self._heard_ns + STALL_NS
        if self._state is not _State.SENDING:
            return min(self._control_due_ns, stall_ns)
        if self._has_work() and self._congestion.room(len(self._flying)):
            return min(self._congestion.next_send_ns, stall_ns)
        return min(self._last_sent_ns + self._congestion.timeout_ns, stall_ns)

    def handle_timer(self, now_ns: int) -> None:
        """Do what is due; calling it early does no harm."""
        if self.is_over:
            return
        if now_ns >= self._heard_ns + STALL_NS:
            self._has_stalled = True
            self.cancel()
        elif self._state is _State.SENDING:
            if self._flying and now_ns >= self._last_sent_ns + self._congestion.timeout_ns:
                self._on_timeout(now_ns)
        elif now_ns >= self._control_due_ns:
            is_offering = self._state is _State.OFFERING
            query = Simple(FrameKind.QUERY, self.offer.transfer_id)
            self._control.append((self.offer if is_offering else query).pack())
            self._wait_ns = min(self._wait_ns * 2, MAX_WAIT_NS)
            self._control_due_ns = now_ns + self._wait_ns

    # -- Chunks ------------------------------------------------------------------------

    def _has_work(self) -> bool:
        in_window = self._next_new - self._missing_from < WINDOW_CHUNKS
        return bool(self._lost) or (self._next_new < self._count and in_window)

    def _chunks(self, now_ns: int) -> list[bytes]:
        room = self._congestion.room(len(self._flying))
        frames: list[bytes] = []
        while len(frames) < room and self._has_work():
            if self._lost:
                index = next(iter(self._lost))
                del self._lost[index]
                self.statistics.chunks_repeated += 1
            else:
                index = self._next_new
                self._next_new += 1
            is_last = len(frames) + 1 == room or not self._has_work()
            frames.append(self._chunk(index, now_ns, ACK_NOW if is_last else 0))
        if frames:
            self._congestion.sent(len(frames), now_ns)
        return frames

    def _chunk(self, index: int, now_ns: int, flags: int) -> bytes:
        size = self.offer.chunk_size(index)
        data = self._read(index * self.offer.chunk_bytes, size)
        # A file that became shorter is filled up: the receiver's hash check will tell.
        data = data.ljust(size, b"\0")
        self._flying[index] = now_ns
        self._last_sent_ns = now_ns
        self.statistics.chunks_sent += 1
        stamp_us = now_ns // 1000 & 0xFFFFFFFF
        return TransferData(self.offer.transfer_id, index, stamp_us, flags, data).pack()

    def _on_timeout(self, now_ns: int) -> None:
        self.statistics.timeouts += 1
        self._congestion.timed_out()
        if self._congestion.timeouts >= 3:
            self._lose(list(self._flying))
        oldest = list(self._lost)[:2] or list(self._flying)[:2]
        for index in oldest:
            self._lost.pop(index, None)
            # Moves it to the end of `_flying`, which is in the order of sending.
            self._flying.pop(index, None)
            self.statistics.chunks_repeated += 1
            self._control.append(self._chunk(index, now_ns, ACK_NOW))

    # -- Acknowledgements ----------------------------------------------------------------

    def _accepted(self, now_ns: int) -> None:
        if self._state is _State.OFFERING:
            self._state = _State.SENDING
            self._last_sent_ns = now_ns
            self._finish_sending(now_ns)

    def _on_ack(self, ack: TransferAck, now_ns: int) -> None:
        # The receiver answers only what it accepted: ACCEPT itself may have been lost.
        self._accepted(now_ns)
        if ack.next_index < self._missing_from or ack.next_index > self._next_new:
            return
        if ack.have.bit_length() > self._next_new - ack.next_index:
            return
        # A receiver that lacks what it once acknowledged would otherwise be asked for ever.
        if self._flying or self._has_work() or ack.next_index == self._count:
            self._heard_ns = now_ns
        self._sample(ack, now_ns)
        newly, newest_sent_ns = self._take_acked(ack, now_ns)
        self._newest_acked_sent_ns = max(self._newest_acked_sent_ns, newest_sent_ns)
        if ack.duplicates > self._duplicates:
            self._duplicates = ack.duplicates
            self._reorder_factor = min(self._reorder_factor * 2, 2.0)
        self._detect_loss()
        if newly:
            self._congestion.acked(newly, newest_sent_ns, now_ns)
        self._finish_sending(now_ns)

    def _sample(self, ack: TransferAck, now_ns: int) -> None:
        elapsed_us = (now_ns // 1000 - ack.stamp_us) & 0xFFFFFFFF
        if 0 < ack.delay_us <= elapsed_us < STALL_NS // 1000:
            self._congestion.sample((elapsed_us - ack.delay_us) * 1000)

    def _take_acked(self, ack: TransferAck, now_ns: int) -> tuple[int, int]:
        """Remove what arrived; return how many were new and when the newest was sent."""
        arrived = list(range(self._missing_from, ack.next_index))
        self._have >>= ack.next_index - self._missing_from
        self._missing_from = ack.next_index
        new = ack.have & ~self._have
        self._have |= new
        while new:
            low = new & -new
            arrived.append(ack.next_index + low.bit_length() - 1)
            new ^= low
        newly, newest_ns = 0, 0
        for index in arrived:
            sent_ns = self._flying.pop(index, None)
            if sent_ns is None:
                if index not in self._lost:
                    continue  # known from an earlier map.
                del self._lost[index]
                self._reorder_factor = min(self._reorder_factor * 2, 2.0)
            elif now_ns - sent_ns >= self._congestion.shortest_ns:
                newest_ns = max(newest_ns, sent_ns)
            # Else no packet is that fast: it was an earlier copy that arrived, and says nothing
            # about what was sent before the later one.
            newly += 1
            self.statistics.acked_bytes += self.offer.chunk_size(index)
        return newly, newest_ns

    def _detect_loss(self) -> None:
        allowance_ns = int(self._congestion.smoothed_ns * self._reorder_factor)
        limit_ns = self._newest_acked_sent_ns - max(allowance_ns, 1)
        lost = []
        for index, sent_ns in self._flying.items():
            if sent_ns > limit_ns:
                break
            lost.append(index)
        if lost:
            self._lose(lost)
            self._congestion.lost(len(lost))

    def _lose(self, indexes: list[int]) -> None:
        for index in indexes:
            del self._flying[index]
            self._lost[index] = None

    def _finish_sending(self, now_ns: int) -> None:
        if self._state is _State.SENDING and self._missing_from == self._count:
            self._state = _State.WAITING_FOR_RESULT
            self._wait_ns = max(self._congestion.timeout_ns, OFFER_WAIT_NS // 5)
            self._control_due_ns = now_ns + self._wait_ns

    # -- End ---------------------------------------------------------------------------

    def _on_result(self, code: int) -> None:
        known = code in ResultCode.__members__.values()
        self.result = ResultCode(code) if known else ResultCode.REFUSED
        if self.result is ResultCode.OK:
            self.statistics.acked_bytes = self.offer.size_bytes
        # Twice: nobody answers it, and without it the receiver waits a little.
        answer = Simple(FrameKind.RESULT_ACK, self.offer.transfer_id).pack()
        self._control += [answer, answer]
        self._end()

    def _end(self) -> None:
        self._state = _State.OVER
        self.is_over = True
        self._flying.clear()
        self._lost.clear()
