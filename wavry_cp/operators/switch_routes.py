"""``/v1/admin/switches``, the same in both services; each has switches of its own."""

from collections.abc import Mapping
from typing import Protocol

from aiohttp import web

from wavry_cp.app.refusal import RefusedError
from wavry_cp.app.routes import CallerKind, Route, caller_of
from wavry_peer.protocol.http.admin import SwitchInfo, SwitchList, SwitchRequest
from wavry_peer.protocol.http.codes import ErrorCode

from .switch_service import SwitchService, switch_info
from .switches import Switch, SwitchTable

__all__ = ["switch_routes"]


class _Service(Protocol):
    @property
    def switch_service(self) -> SwitchService: ...

    @property
    def switches(self) -> SwitchTable: ...


def switch_routes(roles: Mapping[Switch, CallerKind]) -> tuple[Route[_Service], ...]:
    """Return the rows of a service; `roles` names its switches and who may turn each."""
    named = {switch.value: switch for switch in roles}

    async def list_switches(service: _Service, _request: web.Request) -> SwitchList:
        states = (service.switches.state(switch) for switch in roles)
        return SwitchList(switches=tuple(switch_info(state) for state in states))

    async def turn(service: _Service, request: web.Request, body: SwitchRequest) -> SwitchInfo:
        switch = named[request.match_info["switch"]]
        order = await service.switch_service.turn(switch, body, who=caller_of(request).name)
        return switch_info(order)

    async def refuse(_service: _Service, _request: web.Request) -> None:
        raise RefusedError(ErrorCode.UNKNOWN_SWITCH, f"the switches here are: {', '.join(named)}")

    return (
        Route(
            "GET",
            "/v1/admin/switches",
            (CallerKind.VIEWER,),
            list_switches,
            "Tell where the switches stand, and who turned them.",
            answer=SwitchList,
        ),
        *(
            Route(
                "POST",
                f"/v1/admin/switches/{{switch:{switch.value}}}",
                (role,),
                turn,
                f"Turn the switch {switch.value}.",
                body=SwitchRequest,
                answer=SwitchInfo,
            )
            for switch, role in roles.items()
        ),
        # Without a token nobody is told which switches there are.
        Route(
            "POST",
            "/v1/admin/switches/{switch}",
            (CallerKind.ADMIN,),
            refuse,
            "Refuse any other switch by naming those that there are.",
            errors=(ErrorCode.UNKNOWN_SWITCH,),
        ),
    )
