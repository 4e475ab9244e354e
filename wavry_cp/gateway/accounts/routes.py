"""Routes of users' own accounts: register, log in and out, and what they change later."""

from typing import Final

from aiohttp import web

from wavry_cp.app.http import bearer_token
from wavry_cp.app.routes import CallerKind, Route, caller_of
from wavry_cp.gateway.gateway import Gateway
from wavry_peer.protocol.http.accounts import (
    AccountDeletion,
    AccountExport,
    EndedLogins,
    LoginList,
    LoginRequest,
    PasswordChange,
    PasswordReset,
)
from wavry_peer.protocol.http.api import LoginResponse, UserCredentials
from wavry_peer.protocol.http.codes import ErrorCode

__all__ = ["ACCOUNT_ROUTES"]


async def _register(gateway: Gateway, request: web.Request, body: UserCredentials) -> LoginResponse:
    address = gateway.address_key(request)
    await gateway.accounts.register(body.username, body.password, address)
    return LoginResponse(username=body.username)


async def _login(gateway: Gateway, request: web.Request, body: LoginRequest) -> LoginResponse:
    login = await gateway.accounts.login(
        body.username,
        body.password,
        gateway.address_key(request),
        temporary=body.temporary,
    )
    return LoginResponse(username=body.username, token=login.token, expires_at=login.expires_at)


async def _logout(gateway: Gateway, request: web.Request) -> None:
    await gateway.accounts.logout(bearer_token(request) or "")


def _token(request: web.Request) -> str:
    return bearer_token(request) or ""


async def _password(gateway: Gateway, request: web.Request, body: PasswordChange) -> EndedLogins:
    return await gateway.account_changes.change_password(
        caller_of(request).name,
        _token(request),
        (body.password, body.new_password),
        gateway.address_key(request),
    )


async def _reset(gateway: Gateway, request: web.Request, body: PasswordReset) -> None:
    await gateway.account_changes.use_reset(
        body.username, body.token, body.new_password, gateway.address_key(request)
    )


async def _delete(gateway: Gateway, request: web.Request, body: AccountDeletion) -> None:
    await gateway.account_changes.delete_own(
        caller_of(request).name, body.password, gateway.address_key(request)
    )


async def _logins(gateway: Gateway, request: web.Request) -> LoginList:
    return await gateway.account_changes.logins(caller_of(request).name, _token(request))


async def _end_login(gateway: Gateway, request: web.Request) -> None:
    await gateway.account_changes.end_login(caller_of(request).name, request.match_info["login_id"])


async def _end_others(gateway: Gateway, request: web.Request) -> EndedLogins:
    return await gateway.account_changes.end_other_logins(caller_of(request).name, _token(request))


async def _export(gateway: Gateway, request: web.Request) -> AccountExport:
    return await gateway.account_changes.export(caller_of(request).name, _token(request))


_PASSWORD_ERRORS: Final = (
    ErrorCode.BANNED,
    ErrorCode.BUSY,
    ErrorCode.INVALID_CREDENTIALS,
    ErrorCode.RATE_LIMITED,
    ErrorCode.TOO_MANY_ATTEMPTS,
)
ACCOUNT_ROUTES: Final = (
    Route[Gateway](
        "POST",
        "/auth/register",
        (CallerKind.ANYONE,),
        _register,
        "Make an account.",
        body=UserCredentials,
        answer=LoginResponse,
        status=201,
        errors=(ErrorCode.BUSY, ErrorCode.RATE_LIMITED, ErrorCode.USERNAME_TAKEN),
    ),
    Route[Gateway](
        "POST",
        "/auth/login",
        (CallerKind.ANYONE,),
        _login,
        "Check a password and make a token.",
        body=LoginRequest,
        answer=LoginResponse,
        errors=_PASSWORD_ERRORS,
    ),
    Route[Gateway](
        "POST",
        "/auth/logout",
        (CallerKind.LOGIN,),
        _logout,
        "End the token that is shown, and every WebSocket that was opened with it.",
    ),
    Route[Gateway](
        "POST",
        "/auth/password",
        (CallerKind.USER,),
        _password,
        "Change the password; every other login of the user ends.",
        body=PasswordChange,
        answer=EndedLogins,
        errors=_PASSWORD_ERRORS,
    ),
    Route[Gateway](
        "POST",
        "/auth/reset",
        (CallerKind.ANYONE,),
        _reset,
        "Set a password with the token of an operator's reset; every login of the user ends.",
        body=PasswordReset,
        errors=(
            ErrorCode.BANNED,
            ErrorCode.BUSY,
            ErrorCode.INVALID_RESET,
            ErrorCode.RATE_LIMITED,
        ),
    ),
    Route[Gateway](
        "POST",
        "/auth/delete",
        (CallerKind.USER,),
        _delete,
        "Delete the account with its logins and sessions; its name stays taken for a year.",
        body=AccountDeletion,
        errors=_PASSWORD_ERRORS,
    ),
    Route[Gateway](
        "GET",
        "/auth/export",
        (CallerKind.USER,),
        _export,
        "Give everything that the gateway keeps of the user, but no secret.",
        answer=AccountExport,
        errors=(ErrorCode.RATE_LIMITED,),
    ),
    Route[Gateway](
        "GET",
        "/auth/logins",
        (CallerKind.USER,),
        _logins,
        "List the user's logins, newest first.",
        answer=LoginList,
        errors=(ErrorCode.RATE_LIMITED,),
    ),
    Route[Gateway](
        "POST",
        "/auth/logins/end-others",
        (CallerKind.USER,),
        _end_others,
        "End every login of the user but the one that asks.",
        answer=EndedLogins,
        errors=(ErrorCode.RATE_LIMITED,),
    ),
    Route[Gateway](
        "DELETE",
        "/auth/logins/{login_id}",
        (CallerKind.USER,),
        _end_login,
        "End one login of the user.",
        errors=(ErrorCode.RATE_LIMITED, ErrorCode.UNKNOWN_LOGIN),
    ),
)
