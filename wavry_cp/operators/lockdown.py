"""Lockdown: only admin calls pass, and what the operator needs to see and to keep alive.

Every route is closed unless its row says that it stays open, so that a new route is closed
without anybody thinking of it.
"""

from collections.abc import Awaitable, Callable, Collection
from typing import Final

from aiohttp import web
from prometheus_client import Counter

from wavry_cp.app.http import Handler, route_template
from wavry_cp.app.refusal import RefusedError
from wavry_peer.protocol.http.codes import ErrorCode

from .switches import SwitchTable

__all__ = ["lockdown_middleware"]

ADMIN_PREFIX: Final = "/v1/admin/"
"""Every call below it asks for a token of its own."""
RETRY_AFTER_S: Final = 10


def lockdown_middleware(
    table: SwitchTable,
    *,
    open_routes: Collection[str],
    is_admin: Callable[[web.Request], bool],
    refused: Counter,
) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
    """Return the middleware of a service.

    Args:
        table: where the switch stands.
        open_routes: route templates that stay open beside the admin calls.
        is_admin: whether a request to any other route shows an admin token.
        refused: counts calls turned away.
    """
    open_templates = frozenset(open_routes)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if table.lockdown:
            template = route_template(request)
            passes = template in open_templates or template.startswith(ADMIN_PREFIX)
            if not passes and not is_admin(request):
                refused.inc()
                raise RefusedError(
                    ErrorCode.LOCKDOWN,
                    "the operator has closed the service for now; try again later",
                    retry_after_s=RETRY_AFTER_S,
                )
        return await handler(request)

    return middleware
