"""Time as an argument: rule modules take an `Instant`, only the shell reads a `Clock`."""

import time
from typing import NamedTuple, Protocol

__all__ = ["Clock", "Instant", "SystemClock"]


class Instant(NamedTuple):
    """One moment on both clocks.

    Attributes:
        mono_ns: CLOCK_MONOTONIC; everything but lease expiry is measured on it.
        wall_ms: unix milliseconds; what `exp` and `nbf` of a lease are compared with.
    """

    mono_ns: int
    wall_ms: int


class Clock(Protocol):
    """Where an `Instant` comes from."""

    def now(self) -> Instant:
        """The present moment."""


class SystemClock:
    """The host's clocks."""

    def now(self) -> Instant:
        """The present moment."""
        return Instant(time.monotonic_ns(), time.time_ns() // 1_000_000)
