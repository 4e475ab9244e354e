"""What leases ask of a store.

A call that returned is on disk.  Every method raises `StoreUnavailableError` where the store
cannot answer now; then nothing of the call was kept.
"""

from collections.abc import Sequence
from typing import Protocol

from .rules import LeasedSession, LeaseFilter
from .tally import LiveLeasesRow

__all__ = ["LeaseStore"]


class LeaseStore(Protocol):
    """Sessions with the leases that were signed for them."""

    async def session(self, session_id: str) -> LeasedSession | None:
        """Return the session with this id."""
        ...

    async def swap_session(self, expected_revision: int | None, session: LeasedSession) -> bool:
        """Write a session if it is still as the caller read it, and how long its keys are needed.

        Args:
            expected_revision: revision that was read; None where there was no such session.
            session: with a revision of its own.

        Returns:
            False where somebody was faster; nothing was written.
        """
        ...

    async def find_sessions(self, wanted: LeaseFilter, *, limit: int) -> Sequence[LeasedSession]:
        """Return sessions, newest first."""
        ...

    async def live_sessions(self, now_s: int) -> int:
        """Return the number of sessions with a lease that still runs."""
        ...

    async def live_leases(self, now_s: int) -> Sequence[LiveLeasesRow]:
        """Return the sessions with a lease that still runs, counted by relay and end."""
        ...

    async def prune_sessions(self, expired_before_s: int, limit: int) -> int:
        """Delete at most `limit` sessions that expired before an instant; gives how many."""
        ...
