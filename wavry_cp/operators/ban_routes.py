"""``/v1/admin/bans``, the same in both services."""

from aiohttp import web

from wavry_cp.app.http import json_response, read_body
from wavry_peer.protocol.http.admin import BanRequest, LiftBanRequest

from .ban_service import BanService
from .switch_routes import Require

__all__ = ["BanRoutes"]


class BanRoutes:
    """Handlers; the rules are `BanService`'s."""

    def __init__(self, desk: BanService, require: Require) -> None:
        self._desk = desk
        self._require = require

    def routes(self) -> list[web.RouteDef]:
        """The route table."""
        return [
            web.get("/v1/admin/bans", self.list),
            web.post("/v1/admin/bans", self.ban),
            web.post("/v1/admin/bans/lift", self.lift),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """Bans that hold now."""
        await self._require(request, "viewer")
        return json_response(self._desk.listed())

    async def ban(self, request: web.Request) -> web.Response:
        """Ban a user or relay."""
        who = await self._require(request, "operator")
        return json_response(await self._desk.ban(await read_body(request, BanRequest), who=who))

    async def lift(self, request: web.Request) -> web.Response:
        """End a ban."""
        who = await self._require(request, "operator")
        order = await read_body(request, LiftBanRequest)
        return json_response(await self._desk.lift(order, who=who))
