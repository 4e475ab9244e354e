"""Routes of key administration: steps of a rotation, change of root, status."""

from aiohttp import web

from wavry_cp.app.http import Handler, json_response, read_body
from wavry_cp.master.context import MasterContext
from wavry_peer.protocol.http.keys import KeyStepRequest, RootStepRequest

from .rules import KeyStep

__all__ = ["KeyRoutes"]


class KeyRoutes:
    """Handlers; the rules are in `rotation`, the work in `key_desk`."""

    def __init__(self, context: MasterContext) -> None:
        self._context = context

    def routes(self) -> list[web.RouteDef]:
        """The route table."""
        return [
            web.get("/v1/admin/keys/status", self.status),
            web.post("/v1/admin/keys/root", self.root),
            *(web.post(f"/v1/admin/keys/{step}", self._handler(step)) for step in KeyStep),
        ]

    async def status(self, request: web.Request) -> web.Response:
        """Keys, leases and relays."""
        self._context.access.require(request, "viewer")
        return json_response(await self._context.key_desk.status())

    def _handler(self, step: KeyStep) -> Handler:
        async def take_step(request: web.Request) -> web.Response:
            who = self._context.access.require(request, "admin")
            body = await read_body(request, KeyStepRequest)
            return json_response(await self._context.key_desk.take_step(step, body, who=who))

        return take_step

    async def root(self, request: web.Request) -> web.Response:
        """Change the root key."""
        who = self._context.access.require(request, "admin")
        body = await read_body(request, RootStepRequest)
        return json_response(await self._context.key_desk.change_root(body, who=who))
