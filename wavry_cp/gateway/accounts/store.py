"""What accounts ask of a store, in their own terms.

Every method is one transaction and may raise `StoreUnavailableError`.  Those that take an act for
the audit log write it in the same transaction.
"""

from dataclasses import dataclass
from typing import Protocol

from wavry_cp.operators.audit import AuditEntry

from .tokens import TokenHash

__all__ = ["AccountStore", "NewLogin", "StoredLogin", "TokenOwner", "User"]


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


@dataclass(frozen=True, slots=True)
class NewLogin:
    """A login to store.  Times are unix seconds.

    Attributes:
        token: hash of its token.
        username: whose it is.
        login_id: by which its owner ends it from elsewhere.
        created_at: now.
        expires_at: its end.
        temporary: of one run of a program, which logs out at its end.
    """

    token: TokenHash
    username: str
    login_id: str
    created_at: int
    expires_at: int
    temporary: bool


@dataclass(frozen=True, slots=True)
class StoredLogin:
    """A login that is valid; fields as in `NewLogin`."""

    login_id: str
    token: TokenHash
    created_at: int
    expires_at: int
    temporary: bool


class AccountStore(Protocol):
    """Accounts and their login tokens."""

    async def add_user(self, username: str, password_hash: str, *, now_s: int) -> bool:
        """Make an account; False where the name is taken, or was and is not free again."""

    async def user(self, username: str) -> User | None:
        """Return an account by name."""

    async def users(self, *, after: str, limit: int) -> tuple[User, ...]:
        """Return the accounts in the order of their names, those after `after`."""

    async def count_users(self) -> int:
        """Return the number of accounts."""

    async def set_password_hash(self, username: str, password_hash: str, *, before: str) -> None:
        """Store the hash of the same password at another cost, unless `before` was replaced."""

    async def change_password(
        self, username: str, password_hash: str, *, keep: TokenHash | None, audit: AuditEntry
    ) -> tuple[TokenHash, ...]:
        """Store a new password and end every login but `keep`; returns those that ended."""

    async def delete_user(
        self, username: str, *, now_s: int, keep_name: bool, audit: AuditEntry
    ) -> tuple[TokenHash, ...] | None:
        """Delete an account with its logins and sessions; None where there is none.

        With `keep_name` nobody gets the name before `free_names`.
        """

    async def free_names(self, *, deleted_before_s: int) -> int:
        """Let names be taken again whose accounts were deleted long ago; returns how many."""

    async def put_reset(
        self, username: str, token: TokenHash, *, expires_at: int, audit: AuditEntry
    ) -> bool:
        """Store a password reset in place of an older one; False where there is no account."""

    async def is_reset(self, username: str, token: TokenHash, *, now_s: int) -> bool:
        """Return whether a reset of this token is valid."""

    async def use_reset(
        self, username: str, token: TokenHash, password_hash: str, *, audit: AuditEntry
    ) -> tuple[TokenHash, ...] | None:
        """Use up a reset for a new password; the logins that ended, None where it is not valid."""

    async def add_token(
        self, new: NewLogin, *, password_hash: str, max_tokens: int
    ) -> tuple[TokenHash, ...] | None:
        """Store a login and note it; returns those of its kind, the oldest, over `max_tokens`.

        None, and nothing is stored, where the account is gone or has another password by now.
        """

    async def token_owner(self, token: TokenHash, *, now_s: int) -> TokenOwner | None:
        """Return the owner of a token that exists and has not expired."""

    async def logins(self, username: str, *, now_s: int) -> tuple[StoredLogin, ...]:
        """Return the valid logins of a user, newest first."""

    async def end_logins(
        self, username: str, *, login_id: str | None, keep: TokenHash | None, audit: AuditEntry
    ) -> tuple[TokenHash, ...]:
        """End one login of a user, or all but `keep`; returns those that ended."""

    async def remove_token(self, token: TokenHash) -> bool:
        """End a token; False where there was none."""

    async def remove_expired_tokens(self, *, now_s: int) -> int:
        """Forget tokens and resets whose time is over; returns how many tokens."""
