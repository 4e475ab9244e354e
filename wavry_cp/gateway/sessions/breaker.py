"""A small circuit breaker: a master that does not answer is not asked by everybody at once."""

from typing import Final

__all__ = ["Breaker"]

FAILURES: Final = 3
OPEN_S: Final = 1.0
"""Short: a master that comes back is in use again within a second."""


class Breaker:
    """After some failures in a row, refuses for a while, then lets one call try."""

    def __init__(self, *, failures: int = FAILURES, open_s: float = OPEN_S) -> None:
        self._limit = failures
        self._open_s = open_s
        self._failures = 0
        self._closed_again_s = 0.0

    def allows(self, now_s: float) -> bool:
        """Return whether a call may be made at `now_s` (monotonic seconds)."""
        if self._failures < self._limit:
            return True
        if now_s < self._closed_again_s:
            return False
        # One caller tries; the others are refused until it is known how that went.
        self._closed_again_s = now_s + self._open_s
        return True

    def succeeded(self) -> None:
        """Note that the master answered, whatever it said."""
        self._failures = 0

    def failed(self, now_s: float) -> None:
        """Note that the master did not answer."""
        self._failures += 1
        if self._failures >= self._limit:
            self._closed_again_s = now_s + self._open_s
