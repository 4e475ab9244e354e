"""``send`` and ``receive``: a file over a session, with a progress bar."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from wavry_peer.errors import SessionClosedError, TransferError
from wavry_peer.files import transfer
from wavry_peer.listener import Listener
from wavry_peer.peer import Peer
from wavry_peer.session import Session

from .kinds import DatagramKind, KindStream
from .output import Output

__all__ = ["receive_files", "send_one"]


@contextlib.contextmanager
def _progress_bar(output: Output, title: str) -> Iterator[transfer.Progress]:
    """Show a bar on a terminal; nothing for scripts and log files."""
    if output.as_json or not output.remarks.is_terminal:
        yield lambda _done, _total: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=output.remarks, transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


async def send_one(peer: Peer, username: str, path: Path, name: str | None, output: Output) -> int:
    """Call a user and send a file; return the exit status."""
    session = await peer.connect(username)
    async with session:
        output.remark(f"connected to {username} ({session.statistics().path})")
        with _progress_bar(output, path.name) as on_progress:
            sent = await transfer.send_file(
                KindStream(session, DatagramKind.FILE), path, name=name, on_progress=on_progress
            )
        rate = sent.size_bytes / max(sent.seconds, 1e-9) / 1e6
        output.event(
            "sent",
            f"sent {path.name}: {sent.size_bytes} bytes in {sent.seconds:.1f} s ({rate:.1f} MB/s), "
            f"{sent.chunks_repeated} of {sent.chunks_sent} packets repeated",
            name=path.name,
            to_username=username,
            **asdict(sent),
            statistics=asdict(session.statistics()),
        )
    return 0


class _Inbox:
    """Receives one file from each session that comes."""

    def __init__(
        self, directory: Path, *, force: bool, max_bytes: int | None, output: Output
    ) -> None:
        self._directory = directory
        self._force = force
        self._max_bytes = max_bytes
        self._output = output

    async def take(self, session: Session) -> bool:
        """Receive one file; False if the caller left without sending one.

        Raises:
            TransferError: it was refused or failed.
        """
        username = session.remote_username
        stream = KindStream(session, DatagramKind.FILE)
        began: list[str] = []

        def wants(name: str, _size: int) -> bool:
            began.append(name)
            return True

        async with session:
            with _progress_bar(self._output, f"from {username}") as on_progress:
                try:
                    received = await transfer.receive_file(
                        stream,
                        self._directory,
                        force=self._force,
                        max_bytes=self._max_bytes,
                        wants=wants,
                        on_progress=on_progress,
                    )
                except SessionClosedError as error:
                    if not began:
                        return False
                    raise TransferError("closed", f"no whole file came: {error}") from error
            rate = received.size_bytes / max(received.seconds, 1e-9) / 1e6
            self._output.event(
                "received",
                f"received {received.path} from {username}: {received.size_bytes} bytes in "
                f"{received.seconds:.1f} s ({rate:.1f} MB/s), SHA-256 {received.sha256}",
                from_username=username,
                **asdict(received),
                statistics=asdict(session.statistics()),
            )
        return True


async def receive_files(
    listener: Listener,
    directory: Path,
    *,
    force: bool,
    max_bytes: int | None,
    keep: bool,
    output: Output,
) -> int:
    """Receive one file, or with `keep` one after the other; return the exit status.

    Callers are served side by side: one who connects and says nothing keeps nobody waiting.

    Raises:
        TransferError: without `keep`: the first transfer failed.
        GatewayError: no more calls can come.
    """
    inbox = _Inbox(directory, force=force, max_bytes=max_bytes, output=output)
    accepting = asyncio.create_task(listener.accept())
    taking: set[asyncio.Task[bool]] = set()
    try:
        while True:
            done, _ = await asyncio.wait({accepting, *taking}, return_when=asyncio.FIRST_COMPLETED)
            for task in done & taking:
                taking.discard(task)
                try:
                    arrived = task.result()
                except TransferError as error:
                    if not keep:
                        raise
                    output.error(error)
                    continue
                if arrived and not keep:
                    return 0
            if accepting in done:
                session = accepting.result()
                output.remark(f"{session.remote_username} is connected")
                taking.add(asyncio.create_task(inbox.take(session)))
                accepting = asyncio.create_task(listener.accept())
    finally:
        for task in (accepting, *taking):
            task.cancel()
        await asyncio.gather(accepting, *taking, return_exceptions=True)
