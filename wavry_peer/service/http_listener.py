"""Accepting connections, bounded per address, in all, and by the descriptors of the process.

asyncio accepts whatever comes, and where the process has no descriptor left it writes a traceback
for each try.  Here an address that holds too many connections gives up its own oldest one that
waits for a request.  Some descriptors are always left for the service itself; where they run short
the oldest waiting ones of the address that has most of them go, so that nobody is kept out by
somebody who only holds connections open.  One that is in the middle of a request, or a WebSocket,
is never closed for another: where there is nothing else, the new one is refused.
"""

import asyncio
import contextlib
import errno
import resource
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol, Self

import structlog

from .address_key import address_key

__all__ = ["ConnectionBounds", "HttpListener", "WaitingConnection"]

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


@dataclass(frozen=True, slots=True)
class ConnectionBounds:
    """How many connections may be open at once.

    Attributes:
        per_address: of one IPv4 address or IPv6 /64.
        total: of all.
        is_proxy: whether an address is that of a trusted proxy, which speaks for many clients:
            `per_address` does not count there.
    """

    per_address: int = 256
    total: int = 16_384
    is_proxy: Callable[[str], bool] = lambda _host: False


class HttpListener:
    """A listening socket whose connections are bounded.

    Args:
        sock: listens already; closed by `close`.
        connect: makes the protocol of a connection, which is also a `WaitingConnection`.
        bounds: of what is open at once.
    """

    given_up: ClassVar[int] = 0
    """Connections of this process that were closed or refused for others."""

    def __init__(
        self, sock: socket.socket, connect: Callable[[], Any], bounds: ConnectionBounds
    ) -> None:
        self.sock = sock
        self._connect = connect
        self._bounds = bounds
        self._loop = asyncio.get_running_loop()
        self._keys: dict[WaitingConnection, str] = {}
        self._open: dict[str, dict[WaitingConnection, None]] = {}  # in the order they came in
        self._under_way: set[asyncio.Task[None]] = set()
        self._logged_s = -LOG_EVERY_S
        self._given_up_at_log = 0
        sock.settimeout(0)
        sock.listen(BACKLOG)
        self._loop.add_reader(sock, self._accept)

    @classmethod
    def on(cls, host: str, port: int, connect: Callable[[], Any], bounds: ConnectionBounds) -> Self:
        """Listen on an address.

        Raises:
            OSError: it cannot be listened on.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4]
        sock = socket.create_server(address, family=family, backlog=BACKLOG)
        return cls(sock, connect, bounds)

    def close(self) -> None:
        """Accept no more; connections go on."""
        if self.sock.fileno() >= 0:
            self._loop.remove_reader(self.sock)
            self.sock.close()

    def forget(self, connection: WaitingConnection) -> None:
        """Count a connection that has ended no longer."""
        key = self._keys.pop(connection, None)
        if key is not None:
            del self._open[key][connection]
            if not self._open[key]:
                del self._open[key]

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
            key = self._key(address)
            # Without another connection the service itself is short, and /health must say so.
            short = bool(self._keys) and (
                accepted.fileno() >= _descriptors() or len(self._keys) >= self._bounds.total
            )
            if short and not self._make_room():
                self._refuse(accepted)
                self._pause()
                return
            many = len(self._open.get(key, ())) >= self._bounds.per_address
            if many:
                self._say(f"{key} has {self._bounds.per_address} connections")
                if not self._give_up(self._idle(key)[:1]):
                    self._refuse(accepted)
                    continue
            connection = self._connect()
            self._keys[connection] = key
            self._open.setdefault(key, {})[connection] = None
            task = self._loop.create_task(self._begin(accepted, connection))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            if short:
                return  # the next one when what was given up is free

    def _key(self, address: tuple[Any, ...]) -> str:
        """Return whose a connection is; each of a trusted proxy stands for itself."""
        host = str(address[0])
        return f"{host} {address[1]}" if self._bounds.is_proxy(host) else address_key(host)

    async def _begin(self, accepted: socket.socket, connection: Any) -> None:
        try:
            if accepted.fileno() >= _descriptors():  # What was given up for it is free by now.
                accepted = _renumbered(accepted)
            await self._loop.connect_accepted_socket(lambda: connection, accepted)
        except OSError:  # it has gone already
            self.forget(connection)
            accepted.close()

    def _refuse(self, accepted: socket.socket) -> None:
        accepted.close()
        HttpListener.given_up += 1

    def _idle(self, key: str) -> list[WaitingConnection]:
        return [one for one in self._open[key] if one.is_idle]

    def _give_up(self, connections: list[WaitingConnection]) -> bool:
        for one in connections:
            self.forget(one)
            one.give_up()
        HttpListener.given_up += len(connections)
        return bool(connections)

    def _make_room(self) -> bool:
        """Close idle connections, the oldest of the address that has most of them, if any."""
        most = max((self._idle(key) for key in self._open), key=len, default=[])
        self._say(
            f"{len(self._keys)} connections use up what this process may have open;"
            f" one address has {len(most)} idle ones"
        )
        return self._give_up(most[: (len(most) + 3) // 4])

    def _say(self, cause: str) -> None:
        now_s = time.monotonic()
        if now_s - self._logged_s < LOG_EVERY_S:
            return
        self._logged_s = now_s
        _log.warning(
            "connections_short",
            cause=cause,
            given_up=HttpListener.given_up - self._given_up_at_log,
            effect="idle connections are closed; where there is none, new ones are or wait",
            next_step="if these are honest clients: name the proxy they come through as trusted,"
            " raise the limit of open files (LimitNOFILE=)",
        )
        self._given_up_at_log = HttpListener.given_up

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
