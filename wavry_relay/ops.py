"""Ops surfaces: /health, /ready and /metrics over HTTP, and the local control socket.

The control socket is a unix socket in the state directory (mode 0600): one JSON object a line in,
one out; ``{"command": "status" | "drain" | "undrain" | "reload"}``.
"""

import asyncio
import socket
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from wavry_peer.protocol.errors import LocalError

from .metrics import registry
from .ops_http import OpsConnection, errors_as_json, expectations_refused, json_answer
from .sockets import ListenError, format_endpoint
from .status import RelayStatus

__all__ = ["CONTROL_SOCKET_NAME", "ControlSocket", "OpsServer"]

CONTROL_SOCKET_NAME: Final = "control.sock"
_LINE_LIMIT_BYTES: Final = 4096
_STATUS: Final = web.AppKey("status", RelayStatus)
_REGISTRY: Final = web.AppKey("registry", CollectorRegistry)

_log = structlog.get_logger(__name__)


async def _health(request: web.Request) -> web.Response:
    return json_answer(request.app[_STATUS].health())


async def _ready(request: web.Request) -> web.Response:
    reasons = request.app[_STATUS].not_ready()
    if not reasons:
        return json_answer({"ready": True})
    return json_answer({"ready": False, "reason": reasons[0], "reasons": reasons}, 503)


async def _metrics(request: web.Request) -> web.Response:
    return web.Response(
        body=generate_latest(request.app[_REGISTRY]), headers={"Content-Type": CONTENT_TYPE_LATEST}
    )


class OpsServer:
    """The HTTP server."""

    def __init__(self, status: RelayStatus) -> None:
        app = web.Application(middlewares=[errors_as_json], client_max_size=1024)
        app[_STATUS] = status
        app[_REGISTRY] = registry(status)
        app.router.add_get("/health", _health)
        app.router.add_get("/ready", _ready)
        app.router.add_get("/metrics", _metrics)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        self._server: asyncio.Server | None = None
        self.url = ""

    async def start(self, host: str, port: int, passed: socket.socket | None = None) -> None:
        """Begin to serve; port 0 takes any free one, a passed socket (already bound) wins.

        Raises:
            ListenError: the address cannot be used.
        """
        await self._runner.setup()
        handler = self._runner.server
        assert handler is not None  # noqa: S101  # setup() made it; for the type checker
        handler.request_handler = expectations_refused(handler.request_handler)
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: OpsConnection(handler, loop=loop, access_log=None, auto_decompress=False),
                **({"sock": passed} if passed is not None else {"host": host, "port": port}),
            )
        except OSError as error:
            raise ListenError(
                f"ops address {format_endpoint(host, port)} cannot be opened ({error.strerror});"
                " set WAVRY_RELAY_OPS_LISTEN"
            ) from error
        bound_port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://{format_endpoint(host, bound_port)}"

    async def stop(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()


class ControlSocket:
    """The local control socket."""

    def __init__(self, status: RelayStatus, directory: Path) -> None:
        self._status = status
        self._path = directory / CONTROL_SOCKET_NAME
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Begin to listen; a path that the system refuses is logged and not fatal."""
        self._path.unlink(missing_ok=True)
        try:
            self._server = await asyncio.start_unix_server(
                self._serve, self._path, limit=_LINE_LIMIT_BYTES
            )
            self._path.chmod(0o600)
        except OSError as error:
            _log.warning(
                "control_socket_unavailable",
                reason=str(error),
                next_step="use a shorter WAVRY_RELAY_STATE_DIR; everything else works",
            )

    async def stop(self) -> None:
        """Stop listening and remove the socket."""
        if self._server is None:
            return
        self._server.close()
        for writer in list(self._clients):
            writer.close()
        await self._server.wait_closed()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            while line := await reader.readline():
                writer.write(msgspec.json.encode(self._answer(line)) + b"\n")
                await writer.drain()
        except (ValueError, ConnectionError):
            pass  # A line over the limit, or a client that went away: its connection ends.
        finally:
            self._clients.discard(writer)
            writer.close()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            order = msgspec.json.decode(line, type=dict[str, str])
            return self._status.command(order.get("command", ""))
        except msgspec.MsgspecError:
            return {"error": "invalid_json", "message": 'send {"command": "status"}'}
        except LocalError as error:
            return {"error": "unknown_command", "message": str(error)}
