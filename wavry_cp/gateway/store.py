"""What the gateway wants of a store, in its own terms.

Every method is one transaction and may raise `StoreUnavailableError`.
"""

from dataclasses import dataclass
from typing import Protocol

from wavry_cp.gateway.accounts.tokens import TokenHash
from wavry_cp.gateway.sessions.rules import CallLimits, CallSession, Change, SessionKey
from wavry_cp.operators.store import AdminStore

__all__ = ["GatewayStore", "TokenOwner", "User"]


@dataclass(frozen=True, slots=True)
class User:
    """An account.  Times are unix seconds."""

    username: str
    password_hash: str
    created_at: int
    last_login_at: int | None


@dataclass(frozen=True, slots=True)
class TokenOwner:
    """Who a valid token belongs to, and until when (unix seconds)."""

    username: str
    expires_at: int


class GatewayStore(AdminStore, Protocol):
    """Accounts, tokens and sessions of the gateway."""

    async def close(self) -> None:
        """Release the store."""

    async def ping(self) -> None:
        """Do the smallest possible write transaction."""

    # -- accounts ---------------------------------------------------------------------------

    async def add_user(self, username: str, password_hash: str, *, now_s: int) -> bool:
        """Make an account; False where the name is taken."""

    async def user(self, username: str) -> User | None:
        """Return an account by name."""

    async def users(self, *, after: str, limit: int) -> tuple[User, ...]:
        """Accounts in the order of their names, those after `after`."""

    async def set_password_hash(self, username: str, password_hash: str) -> None:
        """Store a password hash of another cost."""

    async def count_users(self) -> int:
        """Return the number of accounts."""

    # -- tokens -----------------------------------------------------------------------------

    async def add_token(
        self, token: TokenHash, username: str, *, now_s: int, expires_at: int, max_tokens: int
    ) -> tuple[TokenHash, ...]:
        """Store a token and note the login; returns the oldest tokens that `max_tokens` ended."""

    async def token_owner(self, token: TokenHash, *, now_s: int) -> TokenOwner | None:
        """Owner of a token that exists and has not expired."""

    async def remove_token(self, token: TokenHash) -> bool:
        """End a token; False where there was none."""

    async def remove_expired_tokens(self, *, now_s: int) -> int:
        """Forget tokens whose time is over; returns how many."""

    # -- sessions ---------------------------------------------------------------------------

    async def add_session(self, session: CallSession, limits: CallLimits) -> bool:
        """Store a new session; False where its caller is at one of the limits."""

    async def session(self, session_id: SessionKey) -> CallSession | None:
        """Return a session by id."""

    async def change_session(
        self, session_id: SessionKey, change: Change
    ) -> tuple[CallSession, CallSession] | None:
        """Apply a rule atomically; returns the session before and after, None for an unknown id.

        What the rule raises is raised here, and nothing is changed.
        """

    async def sessions_of(self, username: str, *, limit: int) -> tuple[CallSession, ...]:
        """Return the newest sessions of a user, newest first."""

    async def open_sessions_between(
        self, one: str, other: str, *, now_s: int
    ) -> tuple[CallSession, ...]:
        """Sessions of two users that have not ended, newest first."""

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
