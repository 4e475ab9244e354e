"""Whether the other peer is still there: gone once nothing came from it on any path.  Sans I/O.

A relay that answers says nothing about the peer behind it.  Only what the channel has
authenticated counts; keepalives come every 10 s.
"""

from typing import Final

from wavry_peer.protocol.constants import IDLE_TIMEOUT_S

__all__ = ["GONE_NS", "RemotePresence"]

_SECOND_NS: Final = 1_000_000_000
GONE_NS: Final = IDLE_TIMEOUT_S * _SECOND_NS
LATE_NS: Final = 2 * _SECOND_NS
"""Who asks so long after the time has come was away itself (suspended, stopped, overloaded)."""
GRACE_NS: Final = 5 * _SECOND_NS
"""Then what waits in the socket is read first."""


class RemotePresence:
    """Judges how long nothing came from the other peer of one session."""

    def __init__(self) -> None:
        self._waits_from_ns = 0

    def due_ns(self, heard_ns: int | None) -> int | None:
        """Return when the peer is gone unless something comes; None before anything came.

        Args:
            heard_ns: when the last authentic packet came.
        """
        return None if heard_ns is None else max(heard_ns, self._waits_from_ns) + GONE_NS

    def is_gone(self, heard_ns: int | None, now_ns: int) -> bool:
        """Return whether nothing came for too long while we listened."""
        due_ns = self.due_ns(heard_ns)
        if due_ns is None or now_ns < due_ns:
            return False
        if now_ns >= due_ns + LATE_NS:
            self._waits_from_ns = now_ns + GRACE_NS - GONE_NS
            return False
        return True
