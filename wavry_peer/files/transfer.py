"""Send and receive files over a session: `send_file`, `receive_file`.

The rules are in `wavry_peer.files` (sans I/O); here they meet the session, the disk and the clock.
Files are read and written in the event loop: a chunk is a kilobyte, and the page cache answers
faster than a thread would.  Hashing whole files does go to a thread.
"""

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from wavry_peer.errors import SessionClosedError, TransferError
from wavry_peer.protocol.errors import LocalError

from .frames import ID_BYTES, FrameError, ResultCode, TransferOffer, parse_frame
from .incoming import IncomingFile, safe_name
from .receiver import FileReceiver
from .sender import FileSender, chunk_bytes_for

__all__ = ["DatagramSession", "Progress", "Received", "Sent", "receive_file", "send_file"]

Progress = Callable[[int, int], None]
"""Called now and then with the bytes done and the bytes in all."""

_HASH_BLOCK_BYTES: Final = 1 << 20
_FRAMES_PER_TURN: Final = 64

_RESULT_TEXTS: Final = {
    ResultCode.REFUSED: "the receiver does not want this file",
    ResultCode.EXISTS: "the receiver has a file of this name already",
    ResultCode.TOO_LARGE: "the file is larger than the receiver takes",
    ResultCode.NO_SPACE: "the receiver's disk is too full",
    ResultCode.BAD_NAME: "the receiver cannot store a file of this name",
    ResultCode.HASH_MISMATCH: "the file changed while it was sent; send it again",
    ResultCode.DISK_ERROR: "the receiver's disk failed",
    ResultCode.CANCELLED: "the transfer was cancelled",
}
_CODE_OF: Final = {
    "exists": ResultCode.EXISTS,
    "too_large": ResultCode.TOO_LARGE,
    "no_space": ResultCode.NO_SPACE,
    "bad_name": ResultCode.BAD_NAME,
    "disk_error": ResultCode.DISK_ERROR,
    "refused": ResultCode.REFUSED,
}


class DatagramSession(Protocol):
    """What a transfer needs: `wavry_peer.Session` has it."""

    @property
    def max_datagram_bytes(self) -> int:
        """Largest datagram."""

    async def send(self, data: bytes) -> None:
        """Send one datagram."""

    async def receive(self) -> bytes:
        """Wait for one datagram; raises `SessionClosedError` at the end."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A file that arrived.

    Attributes:
        size_bytes: of its content.
        seconds: from the offer to the receiver's word that the hash is right.
        chunks_sent: repetitions included.
        chunks_repeated: sent again.
        round_trip_ms: smoothed round-trip time between the peers.
        sha256: of its content, in hex.
    """

    size_bytes: int
    seconds: float
    chunks_sent: int
    chunks_repeated: int
    round_trip_ms: float
    sha256: str


@dataclass(frozen=True, slots=True)
class Received:
    """A file that is complete and checked.

    Attributes:
        path: where it is.
        size_bytes: of its content.
        seconds: from the offer on.
        duplicates: chunks that came more than once.
        sha256: of its content, in hex.
    """

    path: Path
    size_bytes: int
    seconds: float
    duplicates: int
    sha256: str


async def send_file(
    session: DatagramSession,
    path: Path,
    *,
    name: str | None = None,
    on_progress: Progress | None = None,
    clock: Callable[[], int] = time.monotonic_ns,
) -> Sent:
    """Send a file and wait until the receiver has stored and checked it.

    Args:
        session: nothing else may receive from it meanwhile.
        path: a regular file.
        name: told to the receiver; default: the file's.
        on_progress: see `Progress`.
        clock: monotonic nanoseconds.

    Raises:
        LocalError: the file cannot be read.
        TransferError: refused, failed, or no answer any more.
        SessionClosedError: the session ended before.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise LocalError(f"{path} cannot be read: {error.strerror}") from error
    try:
        if not path.is_file():
            raise LocalError(f"{path} is not a regular file")
        size_bytes, digest = await asyncio.to_thread(_measure, descriptor)
        offer = TransferOffer(
            os.urandom(ID_BYTES),
            size_bytes,
            chunk_bytes_for(session.max_datagram_bytes),
            digest,
            safe_name(name or path.name),
        )
        began_ns = clock()
        sender = FileSender(offer, lambda at, size: os.pread(descriptor, size, at), began_ns)

        def tell() -> None:
            if on_progress is not None:
                on_progress(sender.statistics.acked_bytes, size_bytes)

        try:
            await _drive(session, sender, tell, clock)
        except SessionClosedError:
            if sender.result is None:
                raise
    finally:
        os.close(descriptor)
    if sender.has_stalled:
        raise TransferError("stalled", "the receiver does not answer any more; try again")
    result = ResultCode.CANCELLED if sender.result is None else sender.result
    if result is not ResultCode.OK:
        raise TransferError(result.name.lower(), _RESULT_TEXTS[result])
    return Sent(
        size_bytes=size_bytes,
        seconds=(clock() - began_ns) / 1e9,
        chunks_sent=sender.statistics.chunks_sent,
        chunks_repeated=sender.statistics.chunks_repeated,
        round_trip_ms=sender.round_trip_ns / 1e6,
        sha256=digest.hex(),
    )


async def receive_file(
    session: DatagramSession,
    directory: Path,
    *,
    force: bool = False,
    max_bytes: int | None = None,
    wants: Callable[[str, int], bool] | None = None,
    on_progress: Progress | None = None,
    clock: Callable[[], int] = time.monotonic_ns,
) -> Received:
    """Wait for a file and store it; until it is complete and checked it has no name.

    Args:
        session: nothing else may receive from it meanwhile.
        directory: where the file goes; must exist.
        force: replace an existing file of the same name.
        max_bytes: refuse larger files.
        wants: asked with the safe name and the size; False refuses.
        on_progress: see `Progress`.
        clock: monotonic nanoseconds.

    Raises:
        TransferError: refused (the sender is told), failed, or cancelled.
        SessionClosedError: the session ended before.
    """
    offer = await _wait_for_offer(session)
    began_ns = clock()
    try:
        name = _wanted_name(offer, max_bytes, wants)
        incoming = IncomingFile(
            directory, name, offer.size_bytes, unique=offer.transfer_id.hex(), force=force
        )
    except TransferError as error:
        refusal = FileReceiver.refusal(offer, _CODE_OF[error.code], began_ns)
        await _drive_to_end(session, refusal, lambda: None, clock)
        raise
    receiver = FileReceiver(offer, incoming.write, began_ns)
    check = _Check(receiver, incoming, clock)

    def turn() -> None:
        check.begin_if_complete()
        if on_progress is not None:
            on_progress(receiver.received_bytes, offer.size_bytes)

    try:
        await _drive_to_end(session, receiver, turn, clock, check.done)
    finally:
        await check.aclose()
        incoming.discard()
    if check.error is not None:
        raise check.error
    if receiver.result is not ResultCode.OK:
        result = receiver.result or ResultCode.CANCELLED
        raise TransferError(result.name.lower(), _RESULT_TEXTS[result])
    return Received(
        path=incoming.path,
        size_bytes=offer.size_bytes,
        seconds=(clock() - began_ns) / 1e9,
        duplicates=receiver.duplicates,
        sha256=offer.sha256.hex(),
    )


def _wanted_name(
    offer: TransferOffer, max_bytes: int | None, wants: Callable[[str, int], bool] | None
) -> str:
    name = safe_name(offer.name)
    if max_bytes is not None and offer.size_bytes > max_bytes:
        text = f"{name} has {offer.size_bytes} bytes, over the limit of {max_bytes}"
        raise TransferError("too_large", text)
    if wants is not None and not wants(name, offer.size_bytes):
        raise TransferError("refused", f"{name} is not wanted")
    return name


class _Check:
    """The last step: hash the file in a thread, give it its name, tell the receiver."""

    def __init__(
        self, receiver: FileReceiver, incoming: IncomingFile, clock: Callable[[], int]
    ) -> None:
        self.error: TransferError | None = None
        self.done = asyncio.Event()
        self._receiver = receiver
        self._incoming = incoming
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    def begin_if_complete(self) -> None:
        if self._receiver.is_complete and self._task is None:
            self._task = asyncio.create_task(self._check())

    async def aclose(self) -> None:
        if self._task is not None:
            await self._task

    async def _check(self) -> None:
        try:
            if not await asyncio.to_thread(self._incoming.matches, self._receiver.offer.sha256):
                code = ResultCode.HASH_MISMATCH
            else:
                await asyncio.to_thread(self._incoming.commit)
                code = ResultCode.OK
        except OSError:
            code = ResultCode.DISK_ERROR
        except TransferError as error:
            self.error, code = error, _CODE_OF[error.code]
        self._receiver.finish(code, self._clock())
        self.done.set()


async def _wait_for_offer(session: DatagramSession) -> TransferOffer:
    while True:
        try:
            frame = parse_frame(await session.receive())
        except FrameError:
            continue
        if isinstance(frame, TransferOffer):
            return frame


async def _drive_to_end(
    session: DatagramSession,
    receiver: FileReceiver,
    turn: Callable[[], None],
    clock: Callable[[], int],
    also: asyncio.Event | None = None,
) -> None:
    try:
        await _drive(session, receiver, turn, clock, also)
    except SessionClosedError:
        if receiver.is_complete and also is not None:
            await also.wait()
        # The file may be complete although the sender left without hearing so.
        if receiver.result is None:
            raise


async def _drive(
    session: DatagramSession,
    core: FileSender | FileReceiver,
    turn: Callable[[], None],
    clock: Callable[[], int],
    also: asyncio.Event | None = None,
) -> None:
    """Move frames between the session and a state machine until it is over."""
    wake = asyncio.Event()
    loop = asyncio.get_running_loop()
    reader = asyncio.create_task(_read(session, core, wake, clock))
    reader.add_done_callback(lambda _: wake.set())
    extra = None if also is None else asyncio.create_task(_forward(also, wake))
    try:
        while True:
            now_ns = clock()
            core.handle_timer(now_ns)
            for frame in core.frames_to_send(now_ns):
                await session.send(frame)
            turn()
            if core.is_over:
                return
            if reader.done():
                await reader  # raises what ended it.
            timer_ns = core.get_timer()
            if timer_ns is not None:
                delay_s = max(timer_ns - clock(), 0) / 1e9
                handle = loop.call_later(delay_s, wake.set)
                await wake.wait()
                handle.cancel()
            wake.clear()
    except asyncio.CancelledError:
        if isinstance(core, FileSender):
            core.cancel()
        else:
            core.finish(ResultCode.CANCELLED, clock())
        with contextlib.suppress(SessionClosedError):
            for frame in core.frames_to_send(clock()):
                await session.send(frame)
        raise
    finally:
        for task in (reader, extra):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


async def _read(
    session: DatagramSession,
    core: FileSender | FileReceiver,
    wake: asyncio.Event,
    clock: Callable[[], int],
) -> None:
    frames = 0
    while True:
        core.receive(await session.receive(), clock())
        wake.set()
        frames += 1
        if frames % _FRAMES_PER_TURN == 0:
            # `receive` does not wait while datagrams are queued: answers must go out too.
            await asyncio.sleep(0)


async def _forward(event: asyncio.Event, wake: asyncio.Event) -> None:
    await event.wait()
    wake.set()


def _measure(descriptor: int) -> tuple[int, bytes]:
    digest = hashlib.sha256()
    offset = 0
    while block := os.pread(descriptor, _HASH_BLOCK_BYTES, offset):
        digest.update(block)
        offset += len(block)
    return offset, digest.digest()
