"""HTTP bodies of what users do with their own accounts, and operators with those of users.

Rules of form as in `api`.  Times are unix seconds.
"""

from typing import Annotated, ClassVar, Final

import msgspec

from .admin import GivenReason, Reason
from .api import Body, Password, UserCredentials, Username

__all__ = [
    "AccountDeletion",
    "AccountExport",
    "DeleteUserRequest",
    "EndedLogins",
    "ExportedSession",
    "LoginInfo",
    "LoginList",
    "LoginRequest",
    "NewReset",
    "PasswordChange",
    "PasswordReset",
    "ResetRequest",
    "UserDetails",
]

ResetText = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{43}\Z")]
MAX_RESET_S: Final = 7 * 86_400


class LoginRequest(UserCredentials, frozen=True, kw_only=True):
    """``POST /auth/login``; `temporary`: of one run of a program, which logs out at its end."""

    temporary: bool = False


class PasswordChange(Body, frozen=True, kw_only=True):
    """``POST /auth/password``: every other login of the user ends."""

    SECRET_FIELDS: ClassVar[frozenset[str]] = frozenset({"password", "new_password"})

    password: Password
    new_password: Password


class PasswordReset(Body, frozen=True, kw_only=True):
    """``POST /auth/reset`` with the token that an operator gave; every login of the user ends."""

    SECRET_FIELDS: ClassVar[frozenset[str]] = frozenset({"token", "new_password"})

    username: Username
    token: ResetText
    new_password: Password


class AccountDeletion(Body, frozen=True, kw_only=True):
    """``POST /auth/delete``."""

    SECRET_FIELDS: ClassVar[frozenset[str]] = frozenset({"password"})

    password: Password


class LoginInfo(Body, frozen=True, kw_only=True):
    """One login; `current` is the one that asks."""

    login_id: str
    created_at: int
    expires_at: int
    temporary: bool
    current: bool


class LoginList(Body, frozen=True, kw_only=True):
    """``GET /auth/logins``, newest first."""

    logins: tuple[LoginInfo, ...]


class EndedLogins(Body, frozen=True, kw_only=True):
    """How many logins have ended."""

    ended: int


class ExportedSession(Body, frozen=True, kw_only=True):
    """A session of the user as the gateway keeps it, for a week after its end."""

    session_id: str
    with_username: str
    called: bool
    state: str
    created_at: int
    closed_at: int | None = None
    path: str | None = None
    relay_id: str | None = None
    identity_key: str | None = None
    noise_key: str | None = None


class AccountExport(Body, frozen=True, kw_only=True):
    """``GET /auth/export``: everything that the gateway keeps of the user, but no secret."""

    username: str
    created_at: int
    exported_at: int
    last_login_at: int | None = None
    logins: tuple[LoginInfo, ...] = ()
    sessions: tuple[ExportedSession, ...] = ()


# -- Operators -----------------------------------------------------------------------------


class UserDetails(Body, frozen=True, kw_only=True):
    """``GET /v1/admin/users/{username}``."""

    username: str
    created_at: int
    last_login_at: int | None = None
    online: bool = False
    banned: bool = False
    logins: tuple[LoginInfo, ...] = ()
    open_sessions: tuple[str, ...] = ()


class ResetRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/admin/users/{username}/reset``; may be left out."""

    life_s: Annotated[int, msgspec.Meta(ge=60, le=MAX_RESET_S)] = 3600
    reason: Reason = ""


class NewReset(Body, frozen=True, kw_only=True):
    """201: the only time that `token` is told; it is good once, until `expires_at`."""

    SECRET_FIELDS: ClassVar[frozenset[str]] = frozenset({"token"})

    username: str
    token: str
    expires_at: int


class DeleteUserRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/admin/users/{username}/delete``; with `free_name` anybody may take the name."""

    reason: GivenReason
    free_name: bool = False
