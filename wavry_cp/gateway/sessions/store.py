"""What sessions ask of a store, in their own terms.

Every method is one transaction and may raise `StoreUnavailableError`.
"""

from typing import Protocol

from wavry_cp.operators.audit import AuditEntry

from .rules import CallFilter, CallLimits, CallSession, Change, SessionKey

__all__ = ["CallStore"]


class CallStore(Protocol):
    """Sessions between two users."""

    async def add_session(self, session: CallSession, limits: CallLimits) -> bool:
        """Store a new session; False where its caller is at one of the limits."""

    async def session(self, session_id: SessionKey) -> CallSession | None:
        """Return a session by id."""

    async def change_session(
        self, session_id: SessionKey, change: Change, audit: AuditEntry | None = None
    ) -> tuple[CallSession, CallSession] | None:
        """Apply a rule atomically; returns the session before and after, None for an unknown id.

        What the rule raises is raised here, and nothing is changed.  An operator's act is written
        with the change, both or neither.
        """

    async def sessions_of(self, username: str, *, limit: int) -> tuple[CallSession, ...]:
        """Return the newest sessions of a user, newest first."""

    async def find_sessions(
        self, wanted: CallFilter, *, limit: int
    ) -> tuple[tuple[int, CallSession], ...]:
        """Return sessions with their numbers, newest first."""

    async def open_sessions_between(
        self, one: str, other: str, *, now_s: int
    ) -> tuple[CallSession, ...]:
        """Return the sessions of two users that have not ended, newest first."""

    async def close_sessions_of(
        self, username: str, *, now_s: int, limit: int
    ) -> tuple[CallSession, ...]:
        """Close open sessions of a user; returns them."""

    async def expire_sessions(self, *, now_s: int, limit: int) -> tuple[CallSession, ...]:
        """Close sessions whose time is over; returns them."""

    async def forget_sessions(self, *, closed_before_s: int, limit: int) -> int:
        """Forget sessions that were closed long ago; returns how many."""

    async def count_sessions(self) -> dict[str, int]:
        """Return the number of sessions by state, closed ones left out."""

    async def count_paths(self) -> dict[str, int]:
        """Return the number of answered sessions by the path reported last, or ``"unreported"``."""
