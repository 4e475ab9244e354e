"""How much a sender may have on its way: window, pacing, round-trip time.  Sans I/O.

Strategy: loss says little here (radio links lose without being full) and comes late (a
relay's socket buffer holds milliseconds of queue first).  So the window is governed by the
queue it makes, and shrinks with loss only in proportion to it:

- slow start doubles each round trip, until a queue or more than 2 % loss shows;
- then, each round trip: -20 % if there is a queue; else minus half the share that was lost,
  plus one and 1/16 if the window was in use.

A fifth of all packets lost at random thus leaves a small working window, where halving at each
loss would leave none; lasting loss above some 12 % shrinks it.  In front of a buffer too small to
show as delay it settles at up to 12 % loss, less friendly than TCP.  Packets are spread over
the round trip, at most 32 at once.
"""

from typing import Final

__all__ = ["BURST_CHUNKS", "MIN_WINDOW_CHUNKS", "Congestion"]

BURST_CHUNKS: Final = 32
"""A third of the smallest usual socket buffer (90 full datagrams)."""
INITIAL_WINDOW_CHUNKS: Final = 16
MIN_WINDOW_CHUNKS: Final = 8
MAX_WINDOW_CHUNKS: Final = 4096
"""Half of the receiver's map, so that retransmissions never wait for room in it."""
QUEUE_NS: Final = 10_000_000
"""A round trip this much over the shortest one is a queue (or half as long again, on a long
path).  10 ms: more than event loops and schedulers of busy machines add by themselves."""
LOSS_IN_SLOW_START: Final = 0.02
MAX_ACK_DELAY_NS: Final = 25_000_000
MIN_TIMEOUT_NS: Final = 50_000_000
MAX_TIMEOUT_NS: Final = 2_000_000_000
FIRST_TIMEOUT_NS: Final = 500_000_000
_SLACK_NS: Final = 2_000_000
"""Timers of an event loop are late by a millisecond or two: so much sending time may be made
up for."""


class Congestion:
    """Window and clock of one sender.

    Attributes:
        window_chunks: how many may be on their way.
        smoothed_ns: round-trip time, smoothed; 0 before the first sample.
        shortest_ns: shortest round trip seen; 0 before the first sample.
    """

    def __init__(self) -> None:
        self.window_chunks = float(INITIAL_WINDOW_CHUNKS)
        self.smoothed_ns = 0
        self.shortest_ns = 0
        self._variance_ns = 0
        self._in_slow_start = True
        self._timeouts = 0
        self._next_send_ns = 0
        self._round_began_ns = 0
        self._round_acked = 0
        self._round_lost = 0
        self._round_shortest_ns = 0
        self._round_was_full = False

    def sample(self, round_trip_ns: int) -> None:
        """Note a round trip that was measured."""
        rtt_ns = max(round_trip_ns, 1)
        if not self.smoothed_ns:
            self.smoothed_ns = self.shortest_ns = rtt_ns
            self._variance_ns = rtt_ns // 2
        else:
            deviation_ns = abs(self.smoothed_ns - rtt_ns)
            self._variance_ns += (deviation_ns - self._variance_ns) // 4
            self.smoothed_ns += (rtt_ns - self.smoothed_ns) // 8
            self.shortest_ns = min(self.shortest_ns, rtt_ns)
        self._round_shortest_ns = min(self._round_shortest_ns or rtt_ns, rtt_ns)

    def acked(self, chunks: int, newest_sent_ns: int, now_ns: int) -> None:
        """Note chunks that arrived.

        Args:
            chunks: how many were new.
            newest_sent_ns: when the newest of them was sent.
            now_ns: time now.
        """
        self._timeouts = 0
        self._round_acked += chunks
        if self._in_slow_start and self._round_was_full:
            self._grow(chunks)
        if newest_sent_ns >= self._round_began_ns:
            self._end_round(now_ns)

    def lost(self, chunks: int) -> None:
        """Note chunks that were lost."""
        self._round_lost += chunks

    def timed_out(self) -> None:
        """Take it that nothing came back for `timeout_ns`: wait twice as long next time."""
        self._timeouts += 1
        if self._timeouts == 3:
            # Not a burst of loss any more: the path is gone or much slower than it was.
            self.window_chunks = MIN_WINDOW_CHUNKS
            self._in_slow_start = True

    @property
    def timeouts(self) -> int:
        """Timeouts in a row."""
        return self._timeouts

    @property
    def timeout_ns(self) -> int:
        """How long to wait for an ACK of something sent."""
        if not self.smoothed_ns:
            base_ns = FIRST_TIMEOUT_NS
        else:
            base_ns = self.smoothed_ns + 4 * self._variance_ns + MAX_ACK_DELAY_NS
        return min(max(base_ns, MIN_TIMEOUT_NS) << min(self._timeouts, 6), MAX_TIMEOUT_NS)

    def room(self, flying: int) -> int:
        """Return how many chunks may be sent in addition to those on their way."""
        room = int(self.window_chunks) - flying
        if room <= 0:
            self._round_was_full = True
        return max(0, min(room, BURST_CHUNKS))

    @property
    def next_send_ns(self) -> int:
        """Not before this time, to spread packets over the round trip."""
        return self._next_send_ns

    def sent(self, chunks: int, now_ns: int) -> None:
        """Note chunks that were sent just now."""
        gain = 2.0 if self._in_slow_start else 1.25
        interval_ns = self.smoothed_ns / (self.window_chunks * gain)
        begin_ns = max(self._next_send_ns, now_ns - _SLACK_NS)
        self._next_send_ns = begin_ns + int(chunks * interval_ns)

    def _grow(self, chunks: float) -> None:
        self.window_chunks = min(self.window_chunks + chunks, MAX_WINDOW_CHUNKS)

    def _end_round(self, now_ns: int) -> None:
        total = self._round_acked + self._round_lost
        loss = self._round_lost / total if total else 0.0
        queue_ns = self._round_shortest_ns - self.shortest_ns
        has_queue = queue_ns > max(QUEUE_NS, self.shortest_ns // 2)
        if has_queue:
            self.window_chunks *= 0.8
        else:
            self.window_chunks *= 1 - loss / 2
        if self._in_slow_start:
            if has_queue or loss > LOSS_IN_SLOW_START:
                self._in_slow_start = False
        elif not has_queue and self._round_was_full:
            self._grow(1 + self.window_chunks / 16)
        self.window_chunks = max(self.window_chunks, MIN_WINDOW_CHUNKS)
        self._round_began_ns = now_ns
        self._round_acked = self._round_lost = self._round_shortest_ns = 0
        self._round_was_full = False
