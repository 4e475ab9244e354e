"""The master as an aiohttp application."""

from aiohttp import web

from wavry_cp.app.client_address import is_within
from wavry_cp.app.http import CONNECTION_BOUNDS, NOTE_REFUSAL, TLS, new_application
from wavry_cp.app.requests import AccessLog, AccessLogMode, observe_requests
from wavry_cp.app.routes import bind
from wavry_cp.operators.lockdown import lockdown_middleware
from wavry_peer.service.http_listener import ConnectionBounds

from .master import Master
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
    app = new_application(lockdown)
    observe_requests(
        app,
        master.metrics.count_http,
        AccessLog(AccessLogMode(master.config.access_log), master.trusted_proxies),
        master.clock.monotonic_s,
    )
    if master.tls is not None:
        app[TLS] = master.tls
    app[CONNECTION_BOUNDS] = ConnectionBounds(
        master.config.idle_connections_per_address,
        is_proxy=lambda host: is_within(host, master.trusted_proxies),
    )
    app[NOTE_REFUSAL] = master.refusals.of_request
    app.router.add_routes(bind(ROUTES, master, master.access))

    async def end_waits(_app: web.Application) -> None:
        master.events.close()
        master.block_service.close()

    app.on_shutdown.append(end_waits)
    return app
