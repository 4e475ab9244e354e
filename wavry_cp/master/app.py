"""The master as an aiohttp application."""

import time

from aiohttp import web

from wavry_cp.app.client_address import is_within
from wavry_cp.app.http import CONNECTION_BOUNDS, Handler, new_application, route_template
from wavry_cp.app.routes import bind
from wavry_cp.operators.lockdown import lockdown_middleware
from wavry_peer.service.http_listener import ConnectionBounds

from .master import Master
from .metrics import MasterMetrics
from .routes import ROUTES

__all__ = ["make_app"]


def make_app(master: Master) -> web.Application:
    """Return the application of an open master; on shutdown all who wait are told."""
    lockdown = lockdown_middleware(
        master.switches,
        open_routes={route.path for route in ROUTES if route.in_lockdown},
        is_admin=master.access.is_admin,
        refused=master.metrics.lockdown_refused,
    )
    app = new_application(lockdown, observers=[_request_metrics(master.metrics)])
    app[CONNECTION_BOUNDS] = ConnectionBounds(
        master.config.idle_connections_per_address,
        is_proxy=lambda host: is_within(host, master.trusted_proxies),
    )
    app.router.add_routes(bind(ROUTES, master, master.access))

    async def end_waits(_app: web.Application) -> None:
        master.events.close()
        master.block_service.close()

    app.on_shutdown.append(end_waits)
    return app


def _request_metrics(metrics: MasterMetrics) -> object:
    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        begin_s = time.perf_counter()
        response = await handler(request)
        metrics.count_http(
            route_template(request),
            request.method,
            response.status,
            time.perf_counter() - begin_s,
        )
        return response

    return observe
