"""The two clocks of the gateway, as one argument."""

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Clock"]


@dataclass(frozen=True, slots=True)
class Clock:
    """Wall clock (unix seconds) and monotonic clock (seconds)."""

    wall_s: Callable[[], float] = time.time
    monotonic_s: Callable[[], float] = time.monotonic

    def now_s(self) -> int:
        """Whole unix seconds."""
        return int(self.wall_s())
