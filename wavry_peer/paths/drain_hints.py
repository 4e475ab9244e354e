"""When to follow a hint that the relay in use drains.  Sans I/O.

A NOTICE is unauthenticated, so a stranger can send one.  A hint is followed by a question to the
gateway and nothing more; if the session stays at the relay, the next questions wait twice as long
each time, because each costs the master a pair of leases.
"""

from typing import Final

__all__ = ["DrainHints"]

_SECOND_NS: Final = 1_000_000_000
FIRST_WAIT_NS: Final = 4 * _SECOND_NS
MAX_WAIT_NS: Final = 120 * _SECOND_NS
"""A relay that nobody can leave says every 5 s that it drains."""
LIFE_NS: Final = 15 * _SECOND_NS
"""A relay that has not said it for three of its intervals does not drain any more."""


class DrainHints:
    """Hints of the relay in use."""

    def __init__(self) -> None:
        self._heard_ns: int | None = None
        self._due_ns = 0
        self._wait_ns = FIRST_WAIT_NS

    def heard(self, now_ns: int) -> None:
        """Note a hint."""
        self._heard_ns = now_ns

    def is_due(self, now_ns: int) -> bool:
        """Return True if a hint may be followed now."""
        return now_ns >= self._due_ns

    def followed(self, now_ns: int) -> None:
        """Note that the gateway is asked because of a hint: the next one has to wait."""
        self._due_ns = now_ns + self._wait_ns
        self._wait_ns = min(self._wait_ns * 2, MAX_WAIT_NS)

    def is_fresh(self, now_ns: int) -> bool:
        """Return True while the relay still says that it drains."""
        return self._heard_ns is not None and now_ns - self._heard_ns < LIFE_NS
