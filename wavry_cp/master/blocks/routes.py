"""Routes of operators: hosts that relays have blocked, and lifting them."""

from dataclasses import replace
from typing import Final

import structlog
from aiohttp import web

from wavry_cp.app.refusal import RefusedError
from wavry_cp.app.routes import CallerKind, Route, caller_of
from wavry_cp.master.master import Master
from wavry_cp.operators.audit import AuditEntry, attempted
from wavry_peer.protocol.http.admin import BlockList, ClearBlocksRequest, ClearBlocksResponse
from wavry_peer.protocol.http.codes import ErrorCode

from .service import subnet_text

__all__ = ["BLOCK_ROUTES"]

_log = structlog.get_logger(__name__)


async def _list(master: Master, request: web.Request) -> BlockList:
    named = request.query.get("relay")
    relay_id = None if named is None else master.registry.find(named).relay_id
    return BlockList(blocks=master.block_service.blocks(relay_id, master.clock.now_s()))


async def _clear(
    master: Master, request: web.Request, body: ClearBlocksRequest
) -> ClearBlocksResponse:
    who, named = caller_of(request).name, request.match_info["relay_id"]
    target = f"{named} {body.subnet or 'all'}"
    entry = AuditEntry(master.clock.now_s(), who, "clear_blocks", target, body.reason)
    async with attempted(master.store, entry):
        relay_id = master.registry.find(named).relay_id
        entry = replace(entry, target=f"{relay_id} {body.subnet or 'all'}")
        subnet = None if body.subnet is None else _subnet(body.subnet)
        reported = master.block_service.order(relay_id, subnet)
        await master.store.record_act(entry)
    _log.info("blocks_clear_ordered", relay_id=relay_id, all=subnet is None, by=who)
    confirmed = await master.block_service.confirmed(relay_id, subnet, body.wait_s)
    return ClearBlocksResponse(
        relay_id=relay_id, subnet=subnet, reported=reported, confirmed=confirmed
    )


def _subnet(text: str) -> str:
    try:
        return subnet_text(text)
    except ValueError as error:
        raise RefusedError(
            ErrorCode.INVALID_SUBNET, "subnet must be like 192.0.2.7/32 or 2001:db8::/64"
        ) from error


BLOCK_ROUTES: Final = (
    Route[Master](
        "GET",
        "/v1/admin/blocks",
        (CallerKind.VIEWER,),
        _list,
        "List the hosts that relays have blocked; `relay` names one relay.",
        query=("relay",),
        answer=BlockList,
        errors=(ErrorCode.AMBIGUOUS_RELAY, ErrorCode.UNKNOWN_RELAY),
    ),
    Route[Master](
        "POST",
        "/v1/admin/relays/{relay_id}/blocks/clear",
        (CallerKind.OPERATOR,),
        _clear,
        "Order a relay to lift one block, or all.",
        body=ClearBlocksRequest,
        answer=ClearBlocksResponse,
        errors=(
            ErrorCode.AMBIGUOUS_RELAY,
            ErrorCode.INVALID_SUBNET,
            ErrorCode.TOO_MANY_ORDERS,
            ErrorCode.UNKNOWN_RELAY,
        ),
    ),
)
