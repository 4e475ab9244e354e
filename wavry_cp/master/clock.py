"""The clocks of the shell; rules get plain numbers."""

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Clock"]


@dataclass(frozen=True, slots=True)
class Clock:
    """Both clocks, replaceable in tests.

    Attributes:
        wall_s: unix seconds, for what is written into leases and rows.
        monotonic_s: seconds, for time-outs and limits.
    """

    wall_s: Callable[[], float] = time.time
    monotonic_s: Callable[[], float] = time.monotonic

    def now_s(self) -> int:
        """Unix seconds, whole."""
        return int(self.wall_s())
