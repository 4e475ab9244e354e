"""The gateway as an aiohttp application."""

from aiohttp import web

from wavry_cp.app.client_address import is_within
from wavry_cp.app.http import CONNECTION_BOUNDS, NOTE_REFUSAL, TLS, new_application
from wavry_cp.app.requests import AccessLog, AccessLogMode, observe_requests
from wavry_cp.app.routes import bind
from wavry_cp.operators.lockdown import lockdown_middleware
from wavry_peer.service.http_listener import ConnectionBounds

from .access import GatewayAccess
from .cors import origin_marker, preflight_middleware
from .gateway import Gateway
from .routes import ROUTES

__all__ = ["make_app"]


def make_app(gateway: Gateway) -> web.Application:
    """Return the application of an open gateway; on shutdown it says goodbye to every client."""
    config = gateway.config
    proxies = config.trusted_proxy_networks
    app = new_application(
        preflight_middleware(config.cors_origins),
        lockdown_middleware(
            gateway.switches,
            open_routes={route.path for route in ROUTES if route.in_lockdown},
            is_admin=lambda _request: False,  # every admin call is below /v1/admin/
            refused=gateway.metrics.lockdown_refused,
        ),
    )
    if gateway.tls is not None:
        app[TLS] = gateway.tls
    app[CONNECTION_BOUNDS] = ConnectionBounds(
        config.idle_connections_per_address,
        is_proxy=lambda host: is_within(host, proxies),
    )
    app[NOTE_REFUSAL] = gateway.refusals.of_request
    app.on_response_prepare.append(origin_marker(config.cors_origins))
    observe_requests(
        app,
        gateway.metrics.count_http,
        AccessLog(AccessLogMode(config.access_log), proxies),
        gateway.clock.monotonic_s,
    )
    app.add_routes(bind(ROUTES, gateway, GatewayAccess(gateway)))

    async def stop(_app: web.Application) -> None:
        gateway.stop()

    app.on_shutdown.append(stop)
    return app
