"""Accepting connections with a bounded number of descriptors.

asyncio accepts whatever comes, and where the process has no descriptor left it writes a traceback
for each try.  Here some descriptors are always left for the service itself, and where they run
short, connections that wait for a request make room: the oldest of the address that has most of
them, so that nobody is kept out by somebody who only holds connections open.  One that is in the
middle of a request, or a WebSocket, is never closed for another.
"""

import asyncio
import contextlib
import errno
import resource
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, Protocol, Self

import structlog

__all__ = ["HttpListener", "WaitingConnection"]

BACKLOG: Final = 1024
ACCEPTED_AT_ONCE: Final = 64
"""Before other work gets its turn."""
PAUSE_S: Final = 0.1
"""Until somebody has given up a descriptor."""
LOG_EVERY_S: Final = 60.0
_LEFT_FOR_THE_SERVICE: Final = 32
_SHORTAGE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_log = structlog.get_logger(__name__)


class WaitingConnection(Protocol):
    """What the listener asks of a connection, the protocol of its transport."""

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request."""

    def give_up(self) -> None:
        """Close it at once."""


class HttpListener:
    """A listening socket whose connections are bounded by the descriptors of the process.

    Args:
        sock: listens already; closed by `close`.
        connect: makes the protocol of a connection, which is also a `WaitingConnection`.
    """

    def __init__(self, sock: socket.socket, connect: Callable[[], Any]) -> None:
        self.sock = sock
        self._connect = connect
        self._loop = asyncio.get_running_loop()
        self._open: dict[WaitingConnection, str] = {}
        self._under_way: set[asyncio.Task[None]] = set()
        self._closed_since_log = 0
        self._logged_s = -LOG_EVERY_S
        sock.settimeout(0)
        sock.listen(BACKLOG)
        self._loop.add_reader(sock, self._accept)

    @classmethod
    def on(cls, host: str, port: int, connect: Callable[[], Any]) -> Self:
        """Listen on an address.

        Raises:
            OSError: it cannot be listened on.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4]
        return cls(socket.create_server(address, family=family, backlog=BACKLOG), connect)

    def close(self) -> None:
        """Accept no more; connections go on."""
        if self.sock.fileno() >= 0:
            self._loop.remove_reader(self.sock)
            self.sock.close()

    def forget(self, connection: WaitingConnection) -> None:
        """Count a connection that has ended no longer."""
        self._open.pop(connection, None)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                accepted, address = self.sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in _SHORTAGE:
                    continue  # about that connection: it has gone already
                if not self._make_room():
                    self._pause()
                return  # what was given up is free in the next round of the loop
            accepted.settimeout(0)
            # Without another connection the service itself is short, and /health must say so.
            short = bool(self._open) and accepted.fileno() >= _descriptors()
            if short and not self._make_room():
                accepted.close()
                self._pause()
                return
            task = self._loop.create_task(self._begin(accepted, str(address[0])))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            if short:
                return  # the next one when what was given up is free

    async def _begin(self, accepted: socket.socket, address: str) -> None:
        connection = self._connect()
        self._open[connection] = address
        try:
            if accepted.fileno() >= _descriptors():  # What was given up for it is free by now.
                accepted = _renumbered(accepted)
            await self._loop.connect_accepted_socket(lambda: connection, accepted)
        except OSError:  # it has gone already
            self.forget(connection)
            accepted.close()

    def _make_room(self) -> bool:
        """Close idle connections, the oldest of the address that has most of them, if any."""
        idle = [(one, address) for one, address in self._open.items() if one.is_idle]
        if idle:
            holder, count = Counter(address for _, address in idle).most_common(1)[0]
            given_up = [one for one, address in idle if address == holder][: 1 + count // 4]
            for one in given_up:
                self.forget(one)
                one.give_up()
            self._closed_since_log += len(given_up)
        now_s = time.monotonic()
        if now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            _log.warning(
                "connections_short",
                cause=f"{len(self._open)} connections, {len(idle)} of them idle, use up the"
                " descriptors of this process",
                closed=self._closed_since_log,
                effect="idle connections are closed; where there is none, new ones wait",
                next_step="raise the limit of open files (LimitNOFILE=), or let a proxy in front"
                " bound connections per address",
            )
            self._closed_since_log = 0
        return bool(idle)

    def _pause(self) -> None:
        self._loop.remove_reader(self.sock)
        self._loop.call_later(PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        with contextlib.suppress(ValueError):  # closed meanwhile
            self._loop.add_reader(self.sock, self._accept)


def _renumbered(accepted: socket.socket) -> socket.socket:
    """Return the same connection with the lowest number that is free, if there is one."""
    try:
        lower = accepted.dup()
    except OSError:  # the service itself is short
        return accepted
    accepted.close()
    return lower


def _descriptors() -> int:
    """Return the first number of a descriptor that is left for the service itself."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return 1 << 31
    return limit - min(_LEFT_FOR_THE_SERVICE, limit // 8)
