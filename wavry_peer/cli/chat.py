"""``host`` and ``connect``: standard input and output as datagrams of a session."""

import asyncio
import base64
import contextlib
import os
import sys
import threading
from typing import Final

from wavry_peer.errors import SessionClosedError
from wavry_peer.session import Session

from .kinds import DatagramKind, KindStream
from .output import Output

__all__ = ["StandardInput", "chat"]

QUEUE_LINES: Final = 64
STDIN_FILENO: Final = 0
_BLOCK_BYTES: Final = 65536
LAST_WORDS_S: Final = 0.5
"""After the end of input, answers may still come for so long."""


class StandardInput:
    """Lines of standard input, read by a thread.

    A thread, because files and terminals cannot be waited for alike; a daemon, because
    a read from a terminal cannot be ended.
    """

    def __init__(self) -> None:
        self._lines: asyncio.Queue[bytes] = asyncio.Queue()
        self._room = threading.Semaphore(QUEUE_LINES)
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, daemon=True, name="wavry-stdin").start()

    async def line(self) -> bytes:
        """Wait for the next line with its end; empty at the end of input (again and again)."""
        line = await self._lines.get()
        self._room.release()
        if not line:
            self._lines.put_nowait(b"")
        return line

    def _read(self) -> None:
        # Not through sys.stdin: its lock, held by this thread while it waits, would abort the
        # interpreter at exit.
        rest = b""
        while block := os.read(STDIN_FILENO, _BLOCK_BYTES):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                self._put(line + b"\n")
            if len(rest) >= _BLOCK_BYTES:
                self._put(rest)
                rest = b""
        if rest:
            self._put(rest)
        self._put(b"")

    def _put(self, line: bytes) -> None:
        self._room.acquire()
        # A closed loop means that the command is over.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._lines.put_nowait, line)


async def chat(
    session: Session, standard_input: StandardInput, output: Output, *, ends_with_input: bool
) -> None:
    """Join standard input and output to a session until one of them ends.

    Args:
        session: not closed here.
        standard_input: lines to send; each is one datagram, or several if it is long.
        output: where received datagrams go.
        ends_with_input: whether the end of input is the end.

    Raises:
        WrongToolError: the other side runs another subcommand.
        SessionClosedError: the session ended, and nobody wanted that.
    """
    stream = KindStream(session, DatagramKind.TEXT)
    tasks = {
        asyncio.create_task(_show(stream, session.remote_username, output)),
        asyncio.create_task(_send(stream, standard_input, ends=ends_with_input)),
    }
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    except SessionClosedError as error:
        if not error.by_remote:
            raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _send(stream: KindStream, standard_input: StandardInput, *, ends: bool) -> None:
    size = stream.max_datagram_bytes
    while line := await standard_input.line():
        for at in range(0, len(line), size):
            await stream.send(line[at : at + size])
    if ends:
        await asyncio.sleep(LAST_WORDS_S)
    else:
        await asyncio.Event().wait()


async def _show(stream: KindStream, username: str, output: Output) -> None:
    while True:
        data = await stream.receive()
        if output.as_json:
            fields = {"from_username": username}
            try:
                fields["text"] = data.decode()
            except UnicodeDecodeError:
                fields["data_base64"] = base64.b64encode(data).decode()
            output.event("datagram", "", **fields)
        else:
            sys.stdout.buffer.write(_printable(data) if sys.stdout.isatty() else data)
            sys.stdout.buffer.flush()


def _printable(data: bytes) -> bytes:
    # A terminal obeys control sequences; somebody else's text must not give it orders.
    text = data.decode(errors="replace")
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    ).encode()
