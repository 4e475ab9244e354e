"""What ``wavry-peer`` prints, and how it ends: one place for exit statuses and JSON lines."""

import asyncio
import contextlib
import re
import signal
import sys
from collections.abc import Coroutine
from typing import Any, Final, NoReturn

import msgspec
import typer
from rich.console import Console

from wavry_peer.errors import (
    GatewayAuthError,
    GatewayError,
    GatewayUnreachableError,
    PeerKeyChangedError,
    PeerUnavailableError,
    SessionFailedError,
    TransferError,
)
from wavry_peer.protocol.errors import LocalError, WavryError
from wavry_peer.protocol.http.codes import ErrorCode

__all__ = ["EXIT_STATUSES", "Output", "run_command"]

EXIT_STATUSES: Final = {
    0: "done",
    1: "the transfer or session failed",
    2: "wrong use, or a local file that does not fit",
    3: "the gateway cannot be reached",
    4: "not logged in, wrong user name or password, or banned",
    5: "the other user is offline, refused, or did not answer",
    6: "the other user's key has changed",
    7: "no relay, or no handshake with the other user",
}
"""What a script can rely on; 130 and 143 after Ctrl-C and SIGTERM."""

_INNER_CAPITAL: Final = re.compile(r"(?<!^)(?=[A-Z])")

_STATUS_OF: Final[tuple[tuple[type[WavryError], int], ...]] = (
    (GatewayUnreachableError, 3),
    (GatewayAuthError, 4),
    (PeerUnavailableError, 5),
    (PeerKeyChangedError, 6),
    (SessionFailedError, 7),
    (LocalError, 2),
)


class Output:
    """Results on stdout, remarks on stderr; with `as_json` one JSON object a line instead.

    Args:
        as_json: for scripts.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.remarks = Console(stderr=True, highlight=False, soft_wrap=True)

    def event(self, event: str, text: str, /, **fields: object) -> None:
        """Print a result: `text` for people, the fields for scripts."""
        if self.as_json:
            self._line({"event": event, **fields})
        else:
            print(text, flush=True)

    def remark(self, text: str) -> None:
        """Print something for people only."""
        if not self.as_json:
            self.remarks.print(text, markup=False)

    def error(self, error: WavryError) -> None:
        """Say why the command ends."""
        code = error.code if isinstance(error, GatewayError | TransferError) else None
        name = code or _snake_case(type(error).__name__.removesuffix("Error"))
        if self.as_json:
            self._line({"event": "error", "error": name, "message": str(error)})
        else:
            self.remarks.print(f"error: {error}", markup=False)

    def _line(self, fields: dict[str, object]) -> None:
        raw = msgspec.json.encode(fields, enc_hook=str)
        sys.stdout.write(raw.decode() + "\n")
        sys.stdout.flush()


def _snake_case(name: str) -> str:
    return _INNER_CAPITAL.sub("_", name).lower()


def run_command(
    output: Output, work: Coroutine[Any, Any, int], *, status_on_signal: int | None = None
) -> NoReturn:
    """Run a command to its end and leave with its exit status.

    Args:
        output: where errors go.
        work: gives the exit status.
        status_on_signal: after SIGINT or SIGTERM; None for 130 and 143.  Either way the command
            is cancelled first, so that sessions are closed and the other side is told.

    Raises:
        typer.Exit: always.
    """
    received: list[signal.Signals] = []

    async def run() -> int:
        task = asyncio.ensure_future(work)

        def stop(number: signal.Signals) -> None:
            received.append(number)
            task.cancel()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        return await task

    status = 1
    try:
        status = asyncio.run(run())
    except asyncio.CancelledError:
        status = 128 + received[0] if status_on_signal is None else status_on_signal
    except WavryError as error:
        output.error(error)
        status = next((code for kind, code in _STATUS_OF if isinstance(error, kind)), 1)
        if isinstance(error, GatewayError) and error.code == ErrorCode.BANNED:
            status = 4
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    raise typer.Exit(status)
