"""``/ws``: the WebSocket that signaling runs on."""

from typing import Final

from aiohttp import web

from wavry_cp.app.refusal import RefusedError
from wavry_cp.app.routes import CallerKind, Route
from wavry_cp.gateway.cors import require_known_origin
from wavry_cp.gateway.gateway import Gateway
from wavry_peer.protocol.http.codes import ErrorCode

__all__ = ["SIGNALING_ROUTES"]


async def _open(gateway: Gateway, request: web.Request) -> web.StreamResponse:
    require_known_origin(request, gateway.config.cors_origins)
    address = gateway.address_key(request)
    wait_s = gateway.connect_limit.check(address, gateway.clock.monotonic_s())
    if wait_s:
        gateway.metrics.limited.labels("connect").inc()
        raise RefusedError(
            ErrorCode.RATE_LIMITED, "too many connections from this address", retry_after_s=wait_s
        )
    if gateway.stopping:
        raise RefusedError(ErrorCode.BUSY, "the gateway stops; connect again", retry_after_s=1)
    try:
        slot = gateway.slots.take(address)
    except RefusedError:
        gateway.metrics.limited.labels("connections").inc()
        raise
    with slot:
        return await gateway.signaling.serve(request)


SIGNALING_ROUTES: Final = (
    Route[Gateway](
        "GET",
        "/ws",
        (CallerKind.ANYONE,),
        _open,
        "Open the WebSocket of signaling; the user's token comes in its first message, BIND.",
        errors=(
            ErrorCode.BUSY,
            ErrorCode.ORIGIN_NOT_ALLOWED,
            ErrorCode.RATE_LIMITED,
            ErrorCode.TOO_MANY_CONNECTIONS,
        ),
        websocket=True,
    ),
)
