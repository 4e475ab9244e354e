"""Routes of admin tokens: list, create, rotate, revoke; and the gateway's question who one is."""

from typing import Final

import structlog
from aiohttp import web

from wavry_cp.app.routes import CallerKind, Route, caller_of
from wavry_cp.operators.admin_tokens import ShownToken
from wavry_peer.protocol.http.admin import (
    NewToken,
    NewTokenRequest,
    RevokeTokenRequest,
    RotateTokenRequest,
    TokenCheck,
    TokenCheckRequest,
    TokenList,
)
from wavry_peer.protocol.http.codes import ErrorCode

from .master import Master

__all__ = ["TOKEN_ROUTES"]

_log = structlog.get_logger(__name__)


async def _list(master: Master, _request: web.Request) -> TokenList:
    return master.token_service.listed()


async def _create(master: Master, request: web.Request, body: NewTokenRequest) -> NewToken:
    who = caller_of(request).name
    answer = await master.token_service.create(body, who=who)
    _log.info("admin_token_created", name=body.name, role=body.role, by=who)
    return answer


async def _rotate(master: Master, request: web.Request, body: RotateTokenRequest) -> NewToken:
    who, name = caller_of(request).name, request.match_info["name"]
    answer = await master.token_service.rotate(name, body, who=who)
    _log.info("admin_token_rotated", name=name, by=who, overlap_s=body.overlap_s)
    return answer


async def _revoke(master: Master, request: web.Request, body: RevokeTokenRequest) -> TokenList:
    who, name = caller_of(request).name, request.match_info["name"]
    answer = await master.token_service.revoke(name, who=who, reason=body.reason)
    _log.info("admin_token_revoked", name=name, by=who)
    return answer


async def _check(master: Master, _request: web.Request, body: TokenCheckRequest) -> TokenCheck:
    shown = ShownToken(body.token_id, body.secret_hash)
    token = master.tokens.check(shown, master.clock.now_s())
    if token is None:
        return TokenCheck(valid=False)
    return TokenCheck(valid=True, name=token.name, role=token.role.value)


TOKEN_ROUTES: Final = (
    Route[Master](
        "GET",
        "/v1/admin/tokens",
        (CallerKind.VIEWER,),
        _list,
        "List all admin tokens, without their secrets.",
        answer=TokenList,
    ),
    Route[Master](
        "POST",
        "/v1/admin/tokens",
        (CallerKind.ADMIN,),
        _create,
        "Make a named token; its text is told this one time.",
        body=NewTokenRequest,
        answer=NewToken,
        status=201,
        errors=(ErrorCode.NAME_TAKEN, ErrorCode.RESERVED_NAME, ErrorCode.TOO_MANY_TOKENS),
    ),
    Route[Master](
        "POST",
        "/v1/admin/tokens/check",
        (CallerKind.SERVICE,),
        _check,
        "Tell a gateway whose token this is; it sends the hash of the secret, never the secret.",
        body=TokenCheckRequest,
        answer=TokenCheck,
    ),
    Route[Master](
        "POST",
        "/v1/admin/tokens/{name}/rotate",
        (CallerKind.ADMIN,),
        _rotate,
        "Make a new token for a name; the old one ends after the overlap.",
        body=RotateTokenRequest,
        body_optional=True,
        answer=NewToken,
        status=201,
        errors=(ErrorCode.TOO_MANY_TOKENS, ErrorCode.UNKNOWN_TOKEN),
    ),
    Route[Master](
        "POST",
        "/v1/admin/tokens/{name}/revoke",
        (CallerKind.ADMIN,),
        _revoke,
        "End every token of a name.",
        body=RevokeTokenRequest,
        answer=TokenList,
        errors=(ErrorCode.UNKNOWN_TOKEN,),
    ),
)
