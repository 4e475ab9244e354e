"""Time as an argument: rules take an `Instant` or plain numbers, only the shell reads a `Clock`."""

import time
from typing import NamedTuple

__all__ = ["Clock", "Instant"]


class Instant(NamedTuple):
    """One moment on both clocks.

    Attributes:
        mono_ns: CLOCK_MONOTONIC; everything but lease expiry is measured on it.
        wall_ms: unix milliseconds; what `exp` and `nbf` of a lease are compared with.
    """

    mono_ns: int
    wall_ms: int


class Clock:
    """The clocks of the host; a test's clock overrides what it moves by hand."""

    def now(self) -> Instant:
        """Return the present moment."""
        return Instant(time.monotonic_ns(), time.time_ns() // 1_000_000)

    def wall_s(self) -> float:
        """Return unix seconds, for what is written into leases and rows."""
        return time.time()

    def monotonic_s(self) -> float:
        """Return seconds of CLOCK_MONOTONIC, for time-outs and limits."""
        return time.monotonic()

    def now_s(self) -> int:
        """Return whole unix seconds."""
        return int(self.wall_s())
