"""Routes of admin tokens: list, create, rotate, revoke; and the gateway's question who one is."""

import structlog
from aiohttp import web

from wavry_cp.app.http import json_response, read_body, read_optional_body
from wavry_cp.operators.admin_tokens import ShownToken, TokenTable
from wavry_cp.operators.token_service import TokenService
from wavry_peer.protocol.http.admin import (
    NewTokenRequest,
    RevokeTokenRequest,
    RotateTokenRequest,
    TokenCheck,
    TokenCheckRequest,
)
from wavry_peer.service.clock import Clock

from .access import Access

__all__ = ["TokenRoutes"]

_log = structlog.get_logger(__name__)


class TokenRoutes:
    """Handlers; the rules are in `TokenService` and `control.admin_tokens`."""

    def __init__(self, access: Access, desk: TokenService, book: TokenTable, clock: Clock) -> None:
        self._access = access
        self._desk = desk
        self._book = book
        self._clock = clock

    def routes(self) -> list[web.RouteDef]:
        """The route table."""
        return [
            web.get("/v1/admin/tokens", self.list),
            web.post("/v1/admin/tokens", self.create),
            web.post("/v1/admin/tokens/check", self.check),
            web.post("/v1/admin/tokens/{name}/rotate", self.rotate),
            web.post("/v1/admin/tokens/{name}/revoke", self.revoke),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """All tokens, without their secrets."""
        self._access.require(request, "viewer")
        return json_response(self._desk.listed())

    async def create(self, request: web.Request) -> web.Response:
        """A new named token; the only time that its text is told."""
        who = self._access.require(request, "admin")
        body = await read_body(request, NewTokenRequest)
        answer = await self._desk.create(body, who=who)
        _log.info("admin_token_created", name=body.name, role=body.role, by=who)
        return json_response(answer, status=201)

    async def rotate(self, request: web.Request) -> web.Response:
        """A new token for a name; the old one ends after the overlap."""
        who = self._access.require(request, "admin")
        name = request.match_info["name"]
        body = await read_optional_body(request, RotateTokenRequest)
        answer = await self._desk.rotate(name, body, who=who)
        _log.info("admin_token_rotated", name=name, by=who, overlap_s=body.overlap_s)
        return json_response(answer, status=201)

    async def revoke(self, request: web.Request) -> web.Response:
        """End every token of a name."""
        who = self._access.require(request, "admin")
        name = request.match_info["name"]
        body = await read_body(request, RevokeTokenRequest)
        answer = await self._desk.revoke(name, who=who, reason=body.reason)
        _log.info("admin_token_revoked", name=name, by=who)
        return json_response(answer)

    async def check(self, request: web.Request) -> web.Response:
        """Tell a gateway who shows a token; it sends the secret's hash, never the secret."""
        self._access.require(request, "service")
        body = await read_body(request, TokenCheckRequest)
        shown = ShownToken(body.token_id, body.secret_hash)
        token = self._book.check(shown, self._clock.now_s())
        if token is None:
            return json_response(TokenCheck(valid=False))
        return json_response(TokenCheck(valid=True, name=token.name, role=token.role.value))
