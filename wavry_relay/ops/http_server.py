"""The ops port: /health, /ready and /metrics over HTTP."""

import socket
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from wavry_peer.protocol.errors import ListenError
from wavry_peer.protocol.http.ops import RelayReady
from wavry_peer.service.http_listener import ConnectionBounds, HttpListener
from wavry_peer.service.http_server import (
    add_secure_headers,
    errors_as_json,
    json_response,
    open_server,
    server_url,
)
from wavry_peer.service.listen_address import socket_address, why_not_bound

from .figures import RelayFigures
from .metrics import SampleSource, registry

__all__ = ["OpsServer", "open_ops_socket"]

_FIGURES: Final = web.AppKey("figures", RelayFigures)
_REGISTRY: Final = web.AppKey("registry", CollectorRegistry)


async def _health(request: web.Request) -> web.Response:
    body = request.app[_FIGURES].health()
    return json_response(body, 503 if body.status == "down" else 200)


async def _ready(request: web.Request) -> web.Response:
    reasons = request.app[_FIGURES].not_ready()
    if not reasons:
        return json_response(RelayReady(ready=True))
    body = RelayReady(ready=False, reason=reasons[0], reasons=tuple(reasons))
    return json_response(body, 503)


async def _metrics(request: web.Request) -> web.Response:
    return web.Response(
        body=generate_latest(request.app[_REGISTRY]), headers={"Content-Type": CONTENT_TYPE_LATEST}
    )


def open_ops_socket(host: str, port: int) -> socket.socket:
    """Open the listening socket of the ops port; port 0 takes any free one.

    Raises:
        ListenError: the address cannot be used.
    """
    try:
        family, address = socket_address(host, port, socket.SOCK_STREAM)
        return socket.create_server(address, family=family)
    except OSError as error:
        reason = why_not_bound(error, host, port, "WAVRY_RELAY_OPS_LISTEN")
        raise ListenError(f"ops address {reason}") from error


class OpsServer:
    """The HTTP server."""

    def __init__(self, figures: RelayFigures, samples: SampleSource) -> None:
        app = web.Application(middlewares=[errors_as_json], client_max_size=1024)
        app.on_response_prepare.append(add_secure_headers)
        app[_FIGURES] = figures
        app[_REGISTRY] = registry(samples)
        app.router.add_get("/health", _health)
        app.router.add_get("/ready", _ready)
        app.router.add_get("/metrics", _metrics)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        self._server: HttpListener | None = None
        self._listening: socket.socket | None = None
        self.url = ""

    @property
    def listening(self) -> socket.socket:
        """The listening socket, for a successor."""
        if self._listening is None:
            raise RuntimeError("the ops server is not started")
        return self._listening

    async def serve(self, listening: socket.socket) -> None:
        """Begin to serve on a socket that listens already."""
        self._listening = listening
        self._server = await open_server(self._runner, listening, ConnectionBounds())
        self.url = server_url(listening)

    async def stop(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()
