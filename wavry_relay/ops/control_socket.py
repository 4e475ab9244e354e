"""The local control socket: orders to a running relay.

It is a unix socket in the state directory (mode 0600): one JSON object a line in, one out;
``{"command": "status" | "drain" | "undrain" | "reload" | "upgrade" | "blocks" | "clear_blocks"}``,
the last with a ``subnet`` (all without).  ``upgrade`` answers with any number of
``{"progress": text}`` lines before its outcome.  ``take-over`` turns the connection over to the
hand-over (see `wavry_relay.upgrade`).
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from wavry_peer.protocol.errors import LocalError
from wavry_peer.protocol.http.ops import RelayHealth
from wavry_relay.shm.control import Drain
from wavry_relay.upgrade.fd_channel import FdChannel
from wavry_relay.upgrade.handover import Handover
from wavry_relay.upgrade.messages import COMMAND, Refused, decode_hello

from .figures import RelayFigures
from .orders import RelayOrders

__all__ = ["CONTROL_SOCKET_NAME", "ControlSocket"]

CONTROL_SOCKET_NAME: Final = "control.sock"
_LINE_LIMIT_BYTES: Final = 4096
_FRESH_NAME: Final = ".ctl.new"
"""Not longer than the real one: a path that fits must fit here too."""
_LAST_ANSWER_S: Final = 1.0

_log = structlog.get_logger(__name__)


class ControlSocket:
    """The local control socket.

    Args:
        figures: what ``status`` answers.
        orders: carries out what is ordered.
        directory: where the socket lies.

    Attributes:
        handover: carries out upgrades, once there is one.
        reload: reads the settings again, once the relay serves.
    """

    def __init__(self, figures: RelayFigures, orders: RelayOrders, directory: Path) -> None:
        self._figures = figures
        self._orders = orders
        self._path = directory / CONTROL_SOCKET_NAME
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()
        self._upgrades: set[asyncio.Task[None]] = set()
        self.handover: Handover | None = None
        self.reload: Callable[[], dict[str, Any]] | None = None

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
                cause=str(error),
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
                if command == COMMAND:
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
            hello = decode_hello(line)
        except LocalError as error:
            await _say(writer, Refused(str(error)))
            return
        if self.handover is None:
            await _say(writer, Refused("the relay is starting"))
            return
        # Descriptors need the bare socket; the successor waits for our answer, so nothing of its
        # words is left in the reader.
        connection = socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno()))
        writer.close()
        await self.handover.serve(FdChannel(connection), hello)

    def _answer(self, line: bytes) -> dict[str, Any] | RelayHealth:
        try:
            order = msgspec.json.decode(line, type=dict[str, str])
            return self._carry_out(order.get("command", ""), order.get("subnet"))
        except msgspec.MsgspecError:
            return {"error": "invalid_json", "message": 'send {"command": "status"}'}
        except LocalError as error:
            return {"error": "unknown_command", "message": str(error)}

    def _carry_out(self, name: str, subnet: str | None) -> dict[str, Any] | RelayHealth:
        match name:
            case "reload":
                if self.reload is None:
                    raise LocalError("the relay is still starting; try again")
                return self.reload()
            case "blocks":
                return {"blocks": self._figures.blocks()}
            case "clear_blocks":
                return {"cleared": self._orders.clear_blocks(subnet)}
            case "drain" | "undrain":
                self._orders.set_drain(Drain.LOCAL, drain=name == "drain")
            case "status":
                pass
            case _:
                raise LocalError(
                    "unknown command; use status, drain, undrain, reload, blocks,"
                    " clear_blocks or upgrade"
                )
        return self._figures.health()


def _command(line: bytes) -> object:
    try:
        order = msgspec.json.decode(line)
    except (msgspec.MsgspecError, RecursionError):
        return None
    return order.get("command") if isinstance(order, dict) else None


async def _say(writer: asyncio.StreamWriter, answer: object) -> None:
    writer.write(msgspec.json.encode(answer) + b"\n")
    await writer.drain()
