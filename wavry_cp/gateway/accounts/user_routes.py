"""``/v1/admin/users/NAME``: what operators do with accounts of users."""

from typing import Final

from aiohttp import web

from wavry_cp.app.routes import CallerKind, Route, caller_of
from wavry_cp.gateway.gateway import Gateway
from wavry_cp.operators.bans import BanKind
from wavry_peer.protocol.http.accounts import (
    DeleteUserRequest,
    EndedLogins,
    NewReset,
    ResetRequest,
    UserDetails,
)
from wavry_peer.protocol.http.admin import Order
from wavry_peer.protocol.http.codes import ErrorCode

__all__ = ["USER_ROUTES"]


def _named(request: web.Request) -> str:
    return request.match_info["username"]


async def _show(gateway: Gateway, request: web.Request) -> UserDetails:
    name = _named(request)
    banned = gateway.bans.is_banned(BanKind.USER, name, gateway.clock.now_s())
    return await gateway.account_changes.details(name, banned=banned)


async def _reset(gateway: Gateway, request: web.Request, body: ResetRequest) -> NewReset:
    return await gateway.account_changes.reset(
        _named(request), life_s=body.life_s, who=caller_of(request).name, reason=body.reason
    )


async def _log_out(gateway: Gateway, request: web.Request, body: Order) -> EndedLogins:
    return await gateway.account_changes.log_out(
        _named(request), who=caller_of(request).name, reason=body.reason
    )


async def _delete(gateway: Gateway, request: web.Request, body: DeleteUserRequest) -> None:
    await gateway.account_changes.delete(
        _named(request),
        free_name=body.free_name,
        who=caller_of(request).name,
        reason=body.reason,
    )


_ONE: Final = "/v1/admin/users/{username}"
_ERRORS: Final = (ErrorCode.UNKNOWN_USER,)
USER_ROUTES: Final = (
    Route[Gateway](
        "GET",
        _ONE,
        (CallerKind.VIEWER,),
        _show,
        "Tell about one user: logins, open sessions, ban.",
        answer=UserDetails,
        errors=_ERRORS,
    ),
    Route[Gateway](
        "POST",
        f"{_ONE}/reset",
        (CallerKind.OPERATOR,),
        _reset,
        "Make a token with which the user sets a new password, once.",
        body=ResetRequest,
        body_optional=True,
        answer=NewReset,
        status=201,
        errors=_ERRORS,
    ),
    Route[Gateway](
        "POST",
        f"{_ONE}/logout",
        (CallerKind.OPERATOR,),
        _log_out,
        "End every login of a user.",
        body=Order,
        body_optional=True,
        answer=EndedLogins,
        errors=_ERRORS,
    ),
    Route[Gateway](
        "POST",
        f"{_ONE}/delete",
        (CallerKind.OPERATOR,),
        _delete,
        "Delete an account with its logins and sessions; its name stays taken unless it is freed.",
        body=DeleteUserRequest,
        errors=_ERRORS,
    ),
)
