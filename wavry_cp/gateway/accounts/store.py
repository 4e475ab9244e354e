"""What accounts ask of a store, in their own terms.

Every method is one transaction and may raise `StoreUnavailableError`.
"""

from dataclasses import dataclass
from typing import Protocol

from .tokens import TokenHash

__all__ = ["AccountStore", "TokenOwner", "User"]


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


class AccountStore(Protocol):
    """Accounts and their login tokens."""

    async def add_user(self, username: str, password_hash: str, *, now_s: int) -> bool:
        """Make an account; False where the name is taken."""

    async def user(self, username: str) -> User | None:
        """Return an account by name."""

    async def users(self, *, after: str, limit: int) -> tuple[User, ...]:
        """Return the accounts in the order of their names, those after `after`."""

    async def set_password_hash(self, username: str, password_hash: str) -> None:
        """Store a password hash of another cost."""

    async def count_users(self) -> int:
        """Return the number of accounts."""

    async def add_token(
        self, token: TokenHash, username: str, *, now_s: int, expires_at: int, max_tokens: int
    ) -> tuple[TokenHash, ...]:
        """Store a token and note the login; returns the oldest tokens that `max_tokens` ended."""

    async def token_owner(self, token: TokenHash, *, now_s: int) -> TokenOwner | None:
        """Return the owner of a token that exists and has not expired."""

    async def remove_token(self, token: TokenHash) -> bool:
        """End a token; False where there was none."""

    async def remove_expired_tokens(self, *, now_s: int) -> int:
        """Forget tokens whose time is over; returns how many."""
