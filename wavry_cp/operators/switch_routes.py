"""``/v1/admin/switches``, the same in both services; each has switches of its own."""

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from wavry_cp.app.http import ApiError, json_response, read_body
from wavry_peer.protocol.http.admin import SwitchList, SwitchRequest

from .switch_service import SwitchService, switch_info
from .switches import Switch, SwitchTable

__all__ = ["Require", "SwitchRoutes"]

Require = Callable[[web.Request, str], Awaitable[str]]
"""Name of the caller, who must have a role; raises what the service answers else."""


class SwitchRoutes:
    """Handlers."""

    def __init__(
        self,
        desk: SwitchService,
        book: SwitchTable,
        roles: Mapping[Switch, str],
        require: Require,
    ) -> None:
        """Make them; `roles` names the service's switches and the role that may turn each."""
        self._desk = desk
        self._book = book
        self._roles = roles
        self._require = require

    def routes(self) -> list[web.RouteDef]:
        """The route table."""
        return [
            web.get("/v1/admin/switches", self.list),
            web.post("/v1/admin/switches/{switch}", self.turn),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """Where the switches stand."""
        await self._require(request, "viewer")
        states = (self._book.state(switch) for switch in self._roles)
        return json_response(SwitchList(switches=tuple(switch_info(state) for state in states)))

    async def turn(self, request: web.Request) -> web.Response:
        """Turn one."""
        named = {switch.value: switch for switch in self._roles}
        switch = named.get(request.match_info["switch"])
        # Without a token nobody is told which switches there are.
        who = await self._require(request, "admin" if switch is None else self._roles[switch])
        if switch is None:
            raise ApiError(404, "unknown_switch", f"the switches here are: {', '.join(named)}")
        order = await read_body(request, SwitchRequest)
        return json_response(switch_info(await self._desk.turn(switch, order, who=who)))
