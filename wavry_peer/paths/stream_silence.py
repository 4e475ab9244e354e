"""When a stream that came in falls silent: a reason to show where we are.  Sans I/O.

A peer that only receives cannot see that the NAT before it has forgotten it, or has given it
another address: the relay goes on writing to the old one, and asks for a proof of the new one only
when something comes from there (PATH_CHALLENGE).  So when a steady stream stops, and we ourselves
send nothing, we show ourselves once, and again after twice the wait each time, until the
ordinary keepalives take over.  A sender that only paused is told nothing by that, and a few small
packets are all it costs.
"""

from typing import Final

__all__ = ["StreamSilence"]

_MS_NS: Final = 1_000_000
MIN_WAIT_NS: Final = 150 * _MS_NS
"""More than the jitter of most networks, less than a person takes for a broken call."""
MAX_WAIT_NS: Final = 5_000 * _MS_NS
"""Then the ordinary keepalive (10 s) is near."""
SPACINGS: Final = 4
"""A slow stream is given this many of its own spacings."""
STREAM_DATAGRAMS: Final = 8
STREAM_PAUSE_NS: Final = 1_000 * _MS_NS
"""So many datagrams with no longer pause are a stream; a question and its answer are none."""
_SMOOTHING: Final = 8


class StreamSilence:
    """Watches what the application receives in one session."""

    def __init__(self) -> None:
        self._last_ns: int | None = None
        self._count = 0
        self._spacing_ns = 0
        self._wait_ns = MIN_WAIT_NS

    def received(self, now_ns: int) -> None:
        """Note a datagram that came."""
        spacing_ns = STREAM_PAUSE_NS if self._last_ns is None else now_ns - self._last_ns
        self._last_ns = now_ns
        if spacing_ns >= STREAM_PAUSE_NS:
            self._count = 1
            self._spacing_ns = 0
        else:
            self._count += 1
            self._spacing_ns += (spacing_ns - self._spacing_ns) // _SMOOTHING
        self._wait_ns = max(MIN_WAIT_NS, SPACINGS * self._spacing_ns)

    def due_ns(self, last_sent_ns: int) -> int | None:
        """Return when to send a keepalive unless something comes or is sent before; None for never.

        Args:
            last_sent_ns: when we sent anything last: whatever it was, it showed where we are.
        """
        if self._last_ns is None or self._count < STREAM_DATAGRAMS or self._wait_ns > MAX_WAIT_NS:
            return None
        return max(self._last_ns, last_sent_ns) + self._wait_ns

    def shown(self) -> None:
        """Note a keepalive that was sent because of `due_ns`."""
        self._wait_ns *= 2
