"""The gateway as an aiohttp application."""

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from wavry_cp.app.client_address import is_within
from wavry_cp.app.http import CONNECTION_BOUNDS, Handler, new_application, route_template
from wavry_cp.app.routes import bind
from wavry_cp.operators.lockdown import lockdown_middleware
from wavry_peer.service.http_listener import ConnectionBounds
from wavry_peer.service.metrics import OTHER

from .access import GatewayAccess
from .cors import origin_marker, preflight_middleware
from .gateway import Gateway
from .routes import ROUTES

__all__ = ["make_app"]

_METHODS: Final = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})
_STARTED_S: Final = web.RequestKey("started_s", float)


def make_app(gateway: Gateway) -> web.Application:
    """Return the application of an open gateway; on shutdown it says goodbye to every client."""
    config = gateway.config
    proxies = config.trusted_proxy_networks
    app = new_application(
        _timing(gateway),
        preflight_middleware(config.cors_origins),
        lockdown_middleware(
            gateway.switches,
            open_routes={route.path for route in ROUTES if route.in_lockdown},
            is_admin=lambda _request: False,  # every admin call is below /v1/admin/
            refused=gateway.metrics.lockdown_refused,
        ),
    )
    app[CONNECTION_BOUNDS] = ConnectionBounds(
        config.idle_connections_per_address,
        is_proxy=lambda host: is_within(host, proxies),
    )
    app.on_response_prepare.append(origin_marker(config.cors_origins))
    app.on_response_prepare.append(_counting(gateway))
    app.add_routes(bind(ROUTES, gateway, GatewayAccess(gateway)))

    async def stop(_app: web.Application) -> None:
        gateway.stop()

    app.on_shutdown.append(stop)
    return app


# -- Around every request ------------------------------------------------------------------


def _timing(
    gateway: Gateway,
) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
    @web.middleware
    async def timing(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[_STARTED_S] = gateway.clock.monotonic_s()
        return await handler(request)

    return timing


def _counting(
    gateway: Gateway,
) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    async def count(request: web.Request, response: web.StreamResponse) -> None:
        method = request.method if request.method in _METHODS else OTHER
        route = route_template(request)
        gateway.metrics.http_requests.labels(method, route, str(response.status)).inc()
        started_s = request.get(_STARTED_S)
        if started_s is not None:
            seconds = gateway.clock.monotonic_s() - started_s
            gateway.metrics.http_seconds.labels(route).observe(seconds)

    return count
