"""Which web origins a browser may use the gateway from (none unless the operator names them)."""

from collections.abc import Awaitable, Callable, Collection

from aiohttp import hdrs, web
from yarl import URL

from wavry_cp.app.refusal import RefusedError
from wavry_peer.protocol.http.codes import ErrorCode

__all__ = ["origin_marker", "preflight_middleware", "require_known_origin"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Marker = Callable[[web.Request, web.StreamResponse], Awaitable[None]]
Middleware = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]


def preflight_middleware(origins: Collection[str]) -> Middleware:
    """Answer preflights of the origins of the allow-list."""
    allowed = frozenset(origins)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method != hdrs.METH_OPTIONS or request.headers.get(hdrs.ORIGIN) not in allowed:
            return await handler(request)
        return web.Response(
            status=204,
            headers={
                hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST, DELETE",
                hdrs.ACCESS_CONTROL_ALLOW_HEADERS: "authorization, content-type",
                hdrs.ACCESS_CONTROL_MAX_AGE: "600",
            },
        )

    return middleware


def origin_marker(origins: Collection[str]) -> Marker:
    """Signal ``on_response_prepare`` that lets pages of the allow-list read answers, errors too."""
    allowed = frozenset(origins)

    async def mark(request: web.Request, response: web.StreamResponse) -> None:
        if allowed:
            response.headers[hdrs.VARY] = hdrs.ORIGIN
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and origin in allowed:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = hdrs.RETRY_AFTER

    return mark


def require_known_origin(request: web.Request, origins: Collection[str]) -> None:
    """Refuse a WebSocket that a page of a foreign origin opens; programs send no Origin.

    Raises:
        RefusedError: ``origin_not_allowed``.
    """
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None or origin in origins or _is_same_host(origin, request.host):
        return
    raise RefusedError(
        ErrorCode.ORIGIN_NOT_ALLOWED, "the operator has not allowed pages of this origin"
    )


def _is_same_host(origin: str, host: str) -> bool:
    try:
        return URL(origin).authority == host
    except ValueError:
        return False
