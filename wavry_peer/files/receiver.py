"""The receiving side of a file transfer, sans I/O.

Strategy: a chunk is written to its place as it comes; what is kept in memory is one map of at
most 8192 bits.  An ACK goes out for every 16th chunk, when the sender asks for it, or 10 ms
after a chunk that nothing else made us acknowledge.  The result is repeated until the sender
has it, for 20 seconds at most.
"""

from collections.abc import Callable
from enum import Enum
from typing import Final

from .frames import (
    ACK_NOW,
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

__all__ = ["FileReceiver"]

_MS_NS: Final = 1_000_000
CHUNKS_PER_ACK: Final = 16
ACK_DELAY_NS: Final = 10 * _MS_NS
RESULT_WAIT_NS: Final = 200 * _MS_NS
RESULT_MAX_WAIT_NS: Final = 2_000 * _MS_NS
RESULT_LINGER_NS: Final = 20_000 * _MS_NS
"""The file is stored already; this only keeps the sender from failing after an outage.  The end of
the session ends it too."""
STALL_NS: Final = 40_000 * _MS_NS
"""Longer than the sender's: the one that knows why gives up first."""


class _State(Enum):
    RECEIVING = "receiving"
    COMPLETE = "complete"
    RESULT = "result"
    OVER = "over"


class FileReceiver:
    """Receives one file that was accepted, or tells the sender why not.

    The owner feeds `receive` and `handle_timer`, and after each sends what `frames_to_send`
    gives and asks `get_timer`, until `is_over`.  When `is_complete`, it checks the content and
    calls `finish`.

    Attributes:
        offer: what is received.
        result: how it ended here; None while it goes on.
        is_over: nothing is left to do.
        received_bytes: content written.
        duplicates: chunks that came again.
    """

    def __init__(
        self, offer: TransferOffer, write: Callable[[int, bytes], None], now_ns: int
    ) -> None:
        """Make a receiver that accepts at once.

        Args:
            offer: checked by the owner.
            write: puts bytes at an offset; its OSError ends the transfer.
            now_ns: time now.
        """
        self.offer = offer
        self.result: ResultCode | None = None
        self.is_over = False
        self.received_bytes = 0
        self.duplicates = 0
        self._write = write
        self._state = _State.RECEIVING
        self._count = offer.chunk_count
        self._next = 0
        self._have = 0
        self._outgoing: list[bytes] = [self._simple(FrameKind.ACCEPT)]
        self._heard_ns = now_ns
        self._unacked = 0
        self._ack_due_ns: int | None = None
        self._stamp_us = 0
        self._stamped_ns: int | None = None
        self._result_due_ns = 0
        self._result_wait_ns = RESULT_WAIT_NS
        self._result_until_ns = 0
        self._complete_if_all()

    @classmethod
    def refusal(cls, offer: TransferOffer, code: ResultCode, now_ns: int) -> "FileReceiver":
        """Make a receiver that only tells the sender "no", reliably."""

        def write(_offset: int, _data: bytes) -> None: ...

        receiver = cls(offer, write, now_ns)
        receiver._outgoing.clear()
        receiver.finish(code, now_ns)
        return receiver

    @property
    def is_complete(self) -> bool:
        """True when all chunks are written and `finish` is due."""
        return self._state is _State.COMPLETE

    def finish(self, code: ResultCode, now_ns: int) -> None:
        """Take the owner's verdict and tell the sender."""
        if self._state in (_State.RESULT, _State.OVER):
            return
        self.result = code
        self._state = _State.RESULT
        self._ack_due_ns = None
        self._result_until_ns = now_ns + RESULT_LINGER_NS
        self._tell_result(now_ns)

    def receive(self, frame: bytes, now_ns: int) -> None:
        """Take a frame from the session, whatever it is."""
        try:
            parsed = parse_frame(frame)
        except FrameError:
            return
        if parsed.transfer_id != self.offer.transfer_id or self._state is _State.OVER:
            return
        self._heard_ns = now_ns
        match parsed:
            case Simple(kind=FrameKind.CANCEL):
                self.result = self.result or ResultCode.CANCELLED
                self._end()
            case Simple(kind=FrameKind.RESULT_ACK):
                if self._state is _State.RESULT:
                    self._end()
            case _ if self._state is _State.RESULT:
                # It has not heard the result; at most one copy for each burst.
                self._result_due_ns = min(self._result_due_ns, now_ns)
            case TransferData():
                self._on_data(parsed, now_ns)
            case TransferOffer():
                self._outgoing.append(self._simple(FrameKind.ACCEPT))
            case Simple(kind=FrameKind.QUERY):
                self._ack_due_ns = now_ns

    def frames_to_send(self, now_ns: int) -> list[bytes]:
        """Return frames for now."""
        self.handle_timer(now_ns)
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def get_timer(self) -> int | None:
        """Return when to call `frames_to_send` again; None when it is over."""
        if self._state is _State.OVER:
            return None
        if self._state is _State.RESULT:
            return min(self._result_due_ns, self._result_until_ns)
        stall_ns = self._heard_ns + STALL_NS
        return stall_ns if self._ack_due_ns is None else min(self._ack_due_ns, stall_ns)

    def handle_timer(self, now_ns: int) -> None:
        """Do what is due; calling it early does no harm."""
        if self._state is _State.OVER:
            return
        if self._state is _State.RESULT:
            if now_ns >= self._result_until_ns:
                self._end()
            elif now_ns >= self._result_due_ns:
                self._tell_result(now_ns)
        elif self._state is _State.RECEIVING and now_ns >= self._heard_ns + STALL_NS:
            self.finish(ResultCode.CANCELLED, now_ns)
        elif self._ack_due_ns is not None and now_ns >= self._ack_due_ns:
            self._acknowledge(now_ns)

    def _on_data(self, data: TransferData, now_ns: int) -> None:
        offset = data.index - self._next
        if data.index >= self._count or offset >= WINDOW_CHUNKS:
            return
        if len(data.data) != self.offer.chunk_size(data.index):
            return
        self._stamp_us, self._stamped_ns = data.stamp_us, now_ns
        if offset < 0 or self._have >> offset & 1:
            self.duplicates += 1
            self._ack_due_ns = now_ns
            return
        try:
            self._write(data.index * self.offer.chunk_bytes, data.data)
        except OSError:
            self.finish(ResultCode.DISK_ERROR, now_ns)
            return
        self.received_bytes += len(data.data)
        self._have |= 1 << offset
        if not offset:
            # The run of ones at the low end is complete now.
            run = (~self._have & (self._have + 1)).bit_length() - 1
            self._next += run
            self._have >>= run
        self._unacked += 1
        if data.flags & ACK_NOW or self._unacked >= CHUNKS_PER_ACK:
            self._ack_due_ns = now_ns
        elif self._ack_due_ns is None:
            self._ack_due_ns = now_ns + ACK_DELAY_NS
        self._complete_if_all()

    def _complete_if_all(self) -> None:
        if self._next == self._count and self._state is _State.RECEIVING:
            self._state = _State.COMPLETE

    def _acknowledge(self, now_ns: int) -> None:
        self._unacked = 0
        self._ack_due_ns = None
        # A delay of 0 says that there is no stamp; a stamp is good for one ACK.
        delay_us = 0 if self._stamped_ns is None else (now_ns - self._stamped_ns) // 1000 + 1
        self._stamped_ns = None
        ack = TransferAck(
            self.offer.transfer_id,
            self._stamp_us,
            delay_us,
            self.duplicates,
            self._next,
            self._have,
        )
        self._outgoing.append(ack.pack())

    def _tell_result(self, now_ns: int) -> None:
        self._outgoing.append(self._simple(FrameKind.RESULT, self.result or ResultCode.OK))
        self._result_due_ns = now_ns + self._result_wait_ns
        self._result_wait_ns = min(self._result_wait_ns * 2, RESULT_MAX_WAIT_NS)

    def _simple(self, kind: FrameKind, code: int = 0) -> bytes:
        return Simple(kind, self.offer.transfer_id, code).pack()

    def _end(self) -> None:
        self._state = _State.OVER
        self.is_over = True
