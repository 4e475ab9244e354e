"""Routes of accounts: register, log in, log out."""

from typing import Final

from aiohttp import web

from wavry_cp.app.http import bearer_token
from wavry_cp.app.routes import CallerKind, Route
from wavry_cp.gateway.gateway import Gateway
from wavry_peer.protocol.http.api import LoginResponse, UserCredentials
from wavry_peer.protocol.http.codes import ErrorCode

__all__ = ["ACCOUNT_ROUTES"]


async def _register(gateway: Gateway, request: web.Request, body: UserCredentials) -> LoginResponse:
    address = gateway.address_key(request)
    await gateway.accounts.register(body.username, body.password, address)
    return LoginResponse(username=body.username)


async def _login(gateway: Gateway, request: web.Request, body: UserCredentials) -> LoginResponse:
    address = gateway.address_key(request)
    login = await gateway.accounts.login(body.username, body.password, address)
    return LoginResponse(username=body.username, token=login.token, expires_at=login.expires_at)


async def _logout(gateway: Gateway, request: web.Request) -> None:
    await gateway.accounts.logout(bearer_token(request) or "")


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
        body=UserCredentials,
        answer=LoginResponse,
        errors=(
            ErrorCode.BANNED,
            ErrorCode.BUSY,
            ErrorCode.INVALID_CREDENTIALS,
            ErrorCode.RATE_LIMITED,
            ErrorCode.TOO_MANY_ATTEMPTS,
        ),
    ),
    Route[Gateway](
        "POST",
        "/auth/logout",
        (CallerKind.LOGIN,),
        _logout,
        "End the token that is shown, and every WebSocket that was opened with it.",
    ),
)
