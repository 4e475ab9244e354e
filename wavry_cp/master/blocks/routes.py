"""Routes of operators: networks that relays have blocked, and lifting them."""

import structlog
from aiohttp import web

from wavry_cp.app.http import ApiError, json_response, read_body
from wavry_cp.master.context import MasterContext
from wavry_cp.operators.audit import AuditEntry, attempted
from wavry_peer.protocol.http.admin import BlockList, ClearBlocksRequest, ClearBlocksResponse

from .service import subnet_text

__all__ = ["BlockRoutes"]

_log = structlog.get_logger(__name__)


class BlockRoutes:
    """Handlers; the work is `BlockDesk`'s."""

    def __init__(self, context: MasterContext) -> None:
        self._context = context

    def routes(self) -> list[web.RouteDef]:
        """The route table."""
        return [
            web.get("/v1/admin/blocks", self.list),
            web.post("/v1/admin/relays/{relay_id}/blocks/clear", self.clear),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """What the relays told; ``?relay=ID`` for one."""
        context = self._context
        context.access.require(request, "viewer")
        relay_id = request.query.get("relay")
        return json_response(
            BlockList(blocks=context.block_desk.blocks(relay_id, context.clock.now_s()))
        )

    async def clear(self, request: web.Request) -> web.Response:
        """Order a relay to lift a block, or all."""
        context = self._context
        who = context.access.require(request, "operator")
        relay_id = request.match_info["relay_id"]
        body = await read_body(request, ClearBlocksRequest)
        target = f"{relay_id} {body.subnet or 'all'}"
        entry = AuditEntry(context.clock.now_s(), who, "clear_blocks", target, body.reason)
        async with attempted(context.store, entry):
            context.directory.info(relay_id, context.clock.monotonic_s())  # Refuses unknown ones.
            subnet = None if body.subnet is None else _subnet(body.subnet)
            reported = context.block_desk.order(relay_id, subnet)
            await context.store.record_act(entry)
        _log.info("blocks_clear_ordered", relay_id=relay_id, all=subnet is None, by=who)
        confirmed = await context.block_desk.confirmed(relay_id, subnet, body.wait_s)
        return json_response(
            ClearBlocksResponse(
                relay_id=relay_id, subnet=subnet, reported=reported, confirmed=confirmed
            )
        )


def _subnet(text: str) -> str:
    try:
        return subnet_text(text)
    except ValueError as error:
        raise ApiError(
            400, "invalid_subnet", "subnet must be like 192.0.2.0/24 or 2001:db8::/48"
        ) from error
