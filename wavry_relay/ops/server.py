"""Ops surfaces: /health, /ready and /metrics over HTTP, and the local control socket.

The control socket is a unix socket in the state directory (mode 0600): one JSON object a line in,
one out; ``{"command": "status" | "drain" | "undrain" | "reload" | "upgrade" | "blocks" |
"clear_blocks"}``, the last with a ``subnet`` (all without).  ``upgrade``
answers with any number of ``{"progress": text}`` lines before its outcome.  ``take-over`` turns the
connection over to the hand-over (see takeover.py).
"""

import asyncio
import contextlib
import os
import socket
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from wavry_peer.protocol.errors import LocalError
from wavry_relay.udp.sockets import ListenError, format_endpoint
from wavry_relay.upgrade import messages as takeover
from wavry_relay.upgrade.fd_channel import FdChannel
from wavry_relay.upgrade.handover import Handover

from .http import OpsConnection, errors_as_json, expectations_refused, json_answer
from .metrics import registry
from .status import RelayStatus

__all__ = ["CONTROL_SOCKET_NAME", "ControlSocket", "OpsServer"]

CONTROL_SOCKET_NAME: Final = "control.sock"
_LINE_LIMIT_BYTES: Final = 4096
_FRESH_NAME: Final = ".ctl.new"
"""Not longer than the real one: a path that fits must fit here too."""
_LAST_ANSWER_S: Final = 1.0
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
        self._listening: socket.socket | None = None
        self.url = ""

    @property
    def listening(self) -> socket.socket:
        """The listening socket, for a successor."""
        if self._listening is None:
            raise RuntimeError("the ops server is not started")
        return self._listening

    async def start(self, host: str, port: int, passed: socket.socket | None = None) -> None:
        """Begin to serve; port 0 takes any free one, a passed socket (already bound) wins.

        Raises:
            ListenError: the address cannot be used.
        """
        try:
            listening = passed or socket.create_server(
                (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
            )
        except OSError as error:
            raise ListenError(
                f"ops address {format_endpoint(host, port)} cannot be opened ({error.strerror});"
                " set WAVRY_RELAY_OPS_LISTEN"
            ) from error
        await self.serve(listening)

    async def serve(self, listening: socket.socket) -> None:
        """Begin to serve on a socket that listens already."""
        await self._runner.setup()
        handler = self._runner.server
        assert handler is not None  # noqa: S101  # setup() made it; for the type checker
        handler.request_handler = expectations_refused(handler.request_handler)
        loop = asyncio.get_running_loop()
        self._listening = listening
        self._server = await loop.create_server(
            lambda: OpsConnection(handler, loop=loop, access_log=None, auto_decompress=False),
            sock=listening,
        )
        bound_host, bound_port = listening.getsockname()[:2]
        self.url = f"http://{format_endpoint(bound_host, bound_port)}"

    async def stop(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()


class ControlSocket:
    """The local control socket.

    Attributes:
        handover: executes upgrades, once there is one.
    """

    def __init__(self, status: RelayStatus, directory: Path) -> None:
        self._status = status
        self._path = directory / CONTROL_SOCKET_NAME
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()
        self._upgrades: set[asyncio.Task[None]] = set()
        self.handover: Handover | None = None

    async def start(self) -> None:
        """Begin to listen, in place of whoever had the path before.

        A path that the system refuses is logged and not fatal.
        """
        fresh = self._path.with_name(_FRESH_NAME)
        try:
            fresh.unlink(missing_ok=True)
            server = await asyncio.start_unix_server(self._serve, fresh, limit=_LINE_LIMIT_BYTES)
            fresh.chmod(0o600)
            fresh.replace(self._path)
        except OSError as error:
            _log.warning(
                "control_socket_unavailable",
                reason=str(error),
                next_step="use a shorter WAVRY_RELAY_STATE_DIR; everything else works",
            )
            return
        if self._server is not None:
            self._server.close()
        self._server = server

    async def stop(self, *, keep_path: bool = False) -> None:
        """Stop listening and remove the socket; `keep_path` where it is a successor's."""
        if self._server is None:
            return
        self._server.close()
        if self._upgrades:  # Whoever asked for it must hear the outcome.
            await asyncio.wait(self._upgrades, timeout=_LAST_ANSWER_S)
        for writer in list(self._clients):
            writer.close()
        await self._server.wait_closed()
        if not keep_path:
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            while line := await reader.readline():
                command = _command(line)
                if command == takeover.COMMAND:
                    await self._hand_over(line, writer)
                    break
                if command == "upgrade":
                    await self._upgrade(writer)
                else:
                    await _say(writer, self._answer(line))
        except (ValueError, ConnectionError):
            pass  # A line over the limit, or a client that went away: its connection ends.
        finally:
            self._clients.discard(writer)
            writer.close()

    async def _upgrade(self, writer: asyncio.StreamWriter) -> None:
        if self.handover is None:
            await _say(writer, {"error": "upgrade_refused", "message": "the relay is starting"})
            return
        handover = self.handover

        async def work() -> None:
            outcome = await handover.upgrade(lambda text: _say(writer, {"progress": text}))
            with contextlib.suppress(ConnectionError):
                await _say(writer, outcome)

        # A task of its own: the upgrade goes on where the client goes away.
        task = asyncio.create_task(work())
        self._upgrades.add(task)
        task.add_done_callback(self._upgrades.discard)
        await asyncio.wait({task})

    async def _hand_over(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            hello = takeover.decode_hello(line)
        except LocalError as error:
            await _say(writer, takeover.Refused(str(error)))
            return
        if self.handover is None:
            await _say(writer, takeover.Refused("the relay is starting"))
            return
        # Descriptors need the bare socket; the successor waits for our answer, so nothing of its
        # words is left in the reader.
        connection = socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno()))
        writer.close()
        await self.handover.serve(FdChannel(connection), hello)

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            order = msgspec.json.decode(line, type=dict[str, str])
            return self._status.command(order.get("command", ""), order.get("subnet"))
        except msgspec.MsgspecError:
            return {"error": "invalid_json", "message": 'send {"command": "status"}'}
        except LocalError as error:
            return {"error": "unknown_command", "message": str(error)}


def _command(line: bytes) -> object:
    try:
        order = msgspec.json.decode(line)
    except (msgspec.MsgspecError, RecursionError):
        return None
    return order.get("command") if isinstance(order, dict) else None


async def _say(writer: asyncio.StreamWriter, answer: object) -> None:
    writer.write(msgspec.json.encode(answer) + b"\n")
    await writer.drain()
