"""What users change of their own accounts, and operators of those of users.

Who changes his password or deletes his account shows the password again: a login that somebody else
holds must not be enough.  Each change and its row of the audit log are one transaction; a user
stands there as ``user:NAME``, which no admin token can be called.
"""

import secrets
from collections.abc import Callable
from typing import Final

import structlog

from wavry_cp.app.refusal import RefusedError
from wavry_cp.gateway.core import GatewayCore
from wavry_cp.gateway.sessions.rules import CallSession, other_user
from wavry_cp.gateway.sessions.service import SessionService
from wavry_cp.operators.audit import AuditEntry, attempted
from wavry_peer.protocol.http.accounts import (
    AccountExport,
    EndedLogins,
    ExportedSession,
    LoginInfo,
    LoginList,
    NewReset,
    UserDetails,
)
from wavry_peer.protocol.http.codes import ErrorCode

from .fair_queue import Party
from .passwords import PasswordHasher
from .service import AccountService
from .store import User
from .tokens import make_token, token_hash

__all__ = ["KEEP_NAMES_S", "AccountChanges"]

KEEP_NAMES_S: Final = 365 * 86_400
"""So long nobody gets the name of a deleted account: others let it call them (``--from NAME``)."""
MAX_EXPORTED: Final = 10_000

_log = structlog.get_logger(__name__)


class AccountChanges:
    """Answers the calls below /auth beside login and logout, and /v1/admin/users/NAME."""

    def __init__(
        self,
        core: GatewayCore,
        accounts: AccountService,
        sessions: SessionService,
        hasher: PasswordHasher,
        *,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._store = core.store
        self._hub = core.hub
        self._access = core.access
        self._clock = core.clock
        self._accounts = accounts
        self._sessions = sessions
        self._hasher = hasher
        self._random_bytes = random_bytes

    # -- by the user ------------------------------------------------------------------------

    async def change_password(
        self, username: str, token: str, passwords: tuple[str, str], address: str
    ) -> EndedLogins:
        """Change a password; every login but the one of `token` ends.

        Args:
            username: who shows `token`.
            token: of the login that asks.
            passwords: the present one and the new one.
            address: the limiter's key of the client.

        Raises:
            RefusedError: as `AccountService.require_password`.
        """
        await self._accounts.require_password(username, passwords[0], address)
        hashed = await self._hasher.hash(passwords[1], Party.of(username, address))
        ended = await self._store.change_password(
            username, hashed, keep=token_hash(token), audit=self._own(username, "password_change")
        )
        self._hub.end_tokens(ended)
        _log.info("password_changed", by="user", logins_ended=len(ended))
        return EndedLogins(ended=len(ended))

    async def use_reset(self, username: str, token: str, password: str, address: str) -> None:
        """Set a password with the token of an operator's reset, which is used up by it.

        Raises:
            RefusedError: ``rate_limited``, ``invalid_reset``, ``busy`` or ``banned``.
        """
        self._accounts.check_address(address)
        hashed_token = token_hash(token)
        now_s = self._clock.now_s()
        if hashed_token is None or not await self._store.is_reset(
            username, hashed_token, now_s=now_s
        ):
            raise _invalid_reset()
        self._access.require(username)
        ended = await self._store.use_reset(
            username,
            hashed_token,
            await self._hasher.hash(password, Party.of(username, address)),
            audit=self._own(username, "password_reset"),
        )
        if ended is None:
            raise _invalid_reset()
        self._hub.end_tokens(ended)
        _log.info("password_changed", by="reset", logins_ended=len(ended))

    async def delete_own(self, username: str, password: str, address: str) -> None:
        """Delete the account of a user; see `delete`.

        Raises:
            RefusedError: as `AccountService.require_password`.
        """
        await self._accounts.require_password(username, password, address)
        await self._delete(username, self._own(username, "account_delete"), keep_name=True)

    async def logins(self, username: str, token: str | None) -> LoginList:
        """List the logins of a user; the one of `token` is marked."""
        return LoginList(logins=await self._logins(username, token))

    async def end_login(self, username: str, login_id: str) -> None:
        """End one login of a user.

        Raises:
            RefusedError: ``unknown_login``.
        """
        ended = await self._store.end_logins(
            username,
            login_id=login_id,
            keep=None,
            audit=self._own(username, "login_end", reason=f"login {login_id}"),
        )
        if not ended:
            raise RefusedError(
                ErrorCode.UNKNOWN_LOGIN, "you have no such login (any more); list them"
            )
        self._hub.end_tokens(ended)

    async def end_other_logins(self, username: str, token: str) -> EndedLogins:
        """End every login of a user but the one of `token`."""
        ended = await self._store.end_logins(
            username,
            login_id=None,
            keep=token_hash(token),
            audit=self._own(username, "logins_end_others"),
        )
        self._hub.end_tokens(ended)
        return EndedLogins(ended=len(ended))

    async def export(self, username: str, token: str) -> AccountExport:
        """Return everything that is kept of a user, but no secret."""
        user = await self._known(username)
        sessions = await self._store.sessions_of(username, limit=MAX_EXPORTED)
        await self._store.record_act(self._own(username, "account_export"))
        return AccountExport(
            username=username,
            created_at=user.created_at,
            exported_at=self._clock.now_s(),
            last_login_at=user.last_login_at,
            logins=await self._logins(username, token),
            sessions=tuple(_exported(session, username) for session in sessions),
        )

    # -- by operators -----------------------------------------------------------------------

    async def details(self, username: str, *, banned: bool) -> UserDetails:
        """Tell about an account.

        Raises:
            RefusedError: ``unknown_user``.
        """
        user = await self._known(username)
        sessions = await self._store.sessions_of(username, limit=MAX_EXPORTED)
        return UserDetails(
            username=username,
            created_at=user.created_at,
            last_login_at=user.last_login_at,
            online=self._hub.is_online(username),
            banned=banned,
            logins=await self._logins(username, None),
            open_sessions=tuple(
                session.session_id for session in sessions if session.state != "closed"
            ),
        )

    async def reset(self, username: str, *, life_s: int, who: str, reason: str) -> NewReset:
        """Make a token with which a user sets a new password, once; logins go on until then.

        Raises:
            RefusedError: ``unknown_user``.
        """
        now_s = self._clock.now_s()
        audit = AuditEntry(now_s, who, "user_reset", username, reason)
        token, hashed = make_token(self._random_bytes)
        async with attempted(self._store, audit):
            if not await self._store.put_reset(
                username, hashed, expires_at=now_s + life_s, audit=audit
            ):
                raise _unknown_user()
        _log.warning("password_reset_ordered", username=username, by=who)
        return NewReset(username=username, token=token, expires_at=now_s + life_s)

    async def log_out(self, username: str, *, who: str, reason: str) -> EndedLogins:
        """End every login of a user.

        Raises:
            RefusedError: ``unknown_user``.
        """
        audit = AuditEntry(self._clock.now_s(), who, "user_logout", username, reason)
        async with attempted(self._store, audit):
            await self._known(username)
            ended = await self._store.end_logins(username, login_id=None, keep=None, audit=audit)
        self._hub.end_tokens(ended)
        return EndedLogins(ended=len(ended))

    async def delete(self, username: str, *, free_name: bool, who: str, reason: str) -> None:
        """Delete an account: password, logins and sessions go, the audit log stays.

        Raises:
            RefusedError: ``unknown_user``.
        """
        audit = AuditEntry(self._clock.now_s(), who, "user_delete", username, reason)
        async with attempted(self._store, audit):
            await self._known(username)
            await self._delete(username, audit, keep_name=not free_name)

    # -- parts ------------------------------------------------------------------------------

    async def _delete(self, username: str, audit: AuditEntry, *, keep_name: bool) -> None:
        # The others are told while the sessions are still there to say who they are.
        await self._sessions.end_all_of(username)
        ended = await self._store.delete_user(
            username, now_s=audit.at_s, keep_name=keep_name, audit=audit
        )
        if ended is None:
            raise _unknown_user()
        self._hub.end_tokens(ended)
        _log.warning("account_deleted", username=username, by=audit.who)

    async def _known(self, username: str) -> User:
        user = await self._store.user(username)
        if user is None:
            raise _unknown_user()
        return user

    async def _logins(self, username: str, token: str | None) -> tuple[LoginInfo, ...]:
        current = None if token is None else token_hash(token)
        return tuple(
            LoginInfo(
                login_id=login.login_id,
                created_at=login.created_at,
                expires_at=login.expires_at,
                temporary=login.temporary,
                current=login.token == current,
            )
            for login in await self._store.logins(username, now_s=self._clock.now_s())
        )

    def _own(self, username: str, action: str, *, reason: str = "") -> AuditEntry:
        return AuditEntry(self._clock.now_s(), f"user:{username}", action, username, reason)


def _exported(session: CallSession, username: str) -> ExportedSession:
    is_caller = session.caller == username
    keys = session.caller_keys if is_caller else session.callee_keys
    return ExportedSession(
        session_id=session.session_id,
        with_username=other_user(session, username),
        called=is_caller,
        state=session.state,
        created_at=session.created_at,
        closed_at=session.closed_at,
        path=session.path,
        relay_id=session.relay_id,
        identity_key=keys.identity,
        noise_key=keys.noise,
    )


def _unknown_user() -> RefusedError:
    return RefusedError(
        ErrorCode.UNKNOWN_USER, "there is no such account; see `wavryctl users list`"
    )


def _invalid_reset() -> RefusedError:
    return RefusedError(
        ErrorCode.INVALID_RESET,
        "this reset is used, over, or another user's; ask the operator for a new one",
    )
