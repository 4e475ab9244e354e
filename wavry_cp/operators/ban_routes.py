"""``/v1/admin/bans``, the same in both services."""

from typing import Final, Protocol

from aiohttp import web

from wavry_cp.app.routes import CallerKind, Route, caller_of
from wavry_peer.protocol.http.admin import BanInfo, BanList, BanRequest, LiftBanRequest
from wavry_peer.protocol.http.codes import ErrorCode

from .ban_service import BanService

__all__ = ["BAN_ROUTES"]


class _Service(Protocol):
    @property
    def ban_service(self) -> BanService: ...


async def _list(service: _Service, _request: web.Request) -> BanList:
    return service.ban_service.listed()


async def _ban(service: _Service, request: web.Request, body: BanRequest) -> BanInfo:
    return await service.ban_service.ban(body, who=caller_of(request).name)


async def _lift(service: _Service, request: web.Request, body: LiftBanRequest) -> BanInfo:
    return await service.ban_service.lift(body, who=caller_of(request).name)


BAN_ROUTES: Final = (
    Route[_Service](
        "GET",
        "/v1/admin/bans",
        (CallerKind.VIEWER,),
        _list,
        "List the bans that hold now.",
        answer=BanList,
    ),
    Route[_Service](
        "POST",
        "/v1/admin/bans",
        (CallerKind.OPERATOR,),
        _ban,
        "Ban a user or a relay.",
        body=BanRequest,
        answer=BanInfo,
        errors=(ErrorCode.NOT_BANNED_HERE, ErrorCode.TOO_MANY_BANS),
    ),
    Route[_Service](
        "POST",
        "/v1/admin/bans/lift",
        (CallerKind.OPERATOR,),
        _lift,
        "End a ban.",
        body=LiftBanRequest,
        answer=BanInfo,
        errors=(ErrorCode.NOT_BANNED_HERE, ErrorCode.UNKNOWN_BAN),
    ),
)
