"""Lines and descriptors over a unix stream socket, and who is at its other end."""

import asyncio
import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from .messages import MAX_LINE_BYTES, TakeOverError

__all__ = [
    "BATCH_DESCRIPTORS",
    "ChannelEndedError",
    "FdChannel",
    "PeerCredentials",
    "ProcessHandle",
    "all_gone",
    "peer_credentials",
    "why_foreign",
]

BATCH_DESCRIPTORS: Final = 128
"""The kernel takes 253 at a time (SCM_MAX_FD); a receive must have room for a whole batch."""
_INT_BYTES: Final = struct.calcsize("i")
_CREDENTIALS: Final = struct.Struct("iII")
_POLL_S: Final = 0.005


class ChannelEndedError(TakeOverError):
    """The other process closed the connection or is gone."""


class PeerCredentials(NamedTuple):
    """Who connected; `pid` is 0 for a process of another PID namespace."""

    pid: int
    uid: int
    gid: int


def peer_credentials(sock: socket.socket) -> PeerCredentials:
    """Ask the kernel which process is at the other end."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return PeerCredentials(*_CREDENTIALS.unpack(raw))


def why_foreign(peer: PeerCredentials, *, own_uid: int, said_pid: int) -> str | None:
    """Tell why a process must not get this relay's descriptors, or None.

    Args:
        peer: from the kernel.
        own_uid: user of this process.
        said_pid: what the peer says its process id is.
    """
    if peer.uid not in (own_uid, 0):
        return f"user {peer.uid} may not take over a relay of user {own_uid}"
    if peer.pid != said_pid:
        # Locks of the shared memory name their owners by process id.
        return "the two relays are in different PID namespaces; let them share one (docker: --pid)"
    return None


class FdChannel:
    """One end of a connection.

    Args:
        sock: connected unix stream socket; owned from here on.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(0)
        self._sock = sock
        self._buffer = bytearray()
        self._fds: list[int] = []

    @property
    def peer(self) -> PeerCredentials:
        """Who is at the other end."""
        return peer_credentials(self._sock)

    async def send(self, line: bytes, fds: Sequence[int] = ()) -> None:
        """Send a line, and descriptors with its first byte.

        Raises:
            ChannelEndedError: nobody is there.
        """
        loop = asyncio.get_running_loop()
        try:
            while fds:
                try:
                    sent = socket.send_fds(self._sock, [line], list(fds))
                except BlockingIOError:
                    await _ready(loop.add_writer, loop.remove_writer, self._sock.fileno())
                else:
                    line, fds = line[sent:], ()
            await loop.sock_sendall(self._sock, line)
        except ConnectionError as error:
            raise ChannelEndedError("the other relay is gone") from error

    async def receive(self) -> bytes:
        """Return the next line.

        Raises:
            ChannelEndedError: the connection ended.
            TakeOverError: the line is too long.
        """
        while b"\n" not in self._buffer:
            if len(self._buffer) > MAX_LINE_BYTES:
                raise TakeOverError("the other relay sends a line without an end")
            await self._read()
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        return line

    async def _read(self) -> None:
        room = socket.CMSG_SPACE(BATCH_DESCRIPTORS * _INT_BYTES)
        loop = asyncio.get_running_loop()
        while True:
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(
                    MAX_LINE_BYTES, room, socket.MSG_CMSG_CLOEXEC
                )
                break
            except BlockingIOError:
                await _ready(loop.add_reader, loop.remove_reader, self._sock.fileno())
            except ConnectionError as error:
                raise ChannelEndedError("the other relay is gone") from error
        for level, kind, raw in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = len(raw) // _INT_BYTES
                self._fds += struct.unpack(f"{whole}i", raw[: whole * _INT_BYTES])
        if flags & socket.MSG_CTRUNC:
            raise TakeOverError(
                "descriptors were lost on the way; raise the limit of open files (ulimit -n)"
            )
        if not data:
            raise ChannelEndedError("the other relay closed the connection")
        self._buffer += data

    def take(self, count: int) -> list[int]:
        """Return the oldest `count` descriptors; the caller owns them from here on.

        Raises:
            TakeOverError: fewer have come.
        """
        if not 0 <= count <= len(self._fds):
            raise TakeOverError(f"{len(self._fds)} descriptors came, {count} were announced")
        taken, self._fds = self._fds[:count], self._fds[count:]
        return taken

    def close(self) -> None:
        """Close the connection and every descriptor that nobody took."""
        self._sock.close()
        for fd in self._fds:
            os.close(fd)
        self._fds = []


async def _ready(
    add: Callable[..., object], remove: Callable[[int], object], descriptor: int
) -> None:
    """Wait until a descriptor is ready (both callables are methods of the running loop)."""
    ready = asyncio.Event()
    add(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        remove(descriptor)


class ProcessHandle:
    """A process that is not our child, held by a descriptor: its number cannot be another's.

    Args:
        pid: of a process of this PID namespace.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._fd = -1

    @property
    def is_gone(self) -> bool:
        """Whether it has ended (a zombie has)."""
        if self._fd < 0:
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    async def wait(self, timeout_s: float) -> bool:
        """Wait until it has ended; False where it has not in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.is_gone:  # noqa: ASYNC110 - one look costs less than a reader
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            return False
        return True

    def kill(self) -> None:
        """Send SIGKILL."""
        if not self.is_gone:
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def close(self) -> None:
        """Give the handle up."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


async def all_gone(pids: Iterable[int], timeout_s: float) -> bool:
    """Wait until none of these processes lives."""
    handles = [ProcessHandle(pid) for pid in pids if pid > 0]
    try:
        return all(await asyncio.gather(*(handle.wait(timeout_s) for handle in handles)))
    finally:
        for handle in handles:
            handle.close()
