"""Accepting connections: bounded per address, and in all by the descriptors of the process.

asyncio accepts whatever comes, and where the process has no descriptor left it writes a traceback
for each try.  What is bounded here are connections that wait for their client: for a request, for
the rest of one, for somebody to read the answer, or for a token.  An address that holds too many
of them loses its own oldest ones.  Some descriptors are always left for the service itself; where
they run short the oldest ones of the address that has most of them go.  So nobody is kept out by
somebody who only holds connections open, and many honest clients behind one address are never
refused: what the service is working on, and the WebSocket of a known client, is never closed for
another.
"""

import asyncio
import contextlib
import errno
import functools
import resource
import socket
import ssl
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol, Self

import structlog

from .address_key import address_key
from .listen_address import socket_address

__all__ = [
    "IDLE_PER_ADDRESS",
    "ConnectionBounds",
    "HttpListener",
    "TlsContext",
    "WaitingConnection",
    "connections_at_most",
]

BACKLOG: Final = 1024
ACCEPTED_AT_ONCE: Final = 64
"""Before other work gets its turn."""
HANDSHAKE_S: Final = 10.0
"""As long as a first request may take: see `http_server`."""
PAUSE_S: Final = 0.1
"""Until somebody has given up a descriptor."""
LOG_EVERY_S: Final = 60.0
IDLE_PER_ADDRESS: Final = 1024
"""More than a load test or an office behind one address leaves open between its requests."""
_LEFT_FOR_THE_SERVICE: Final = 32
_MOST_DESCRIPTORS: Final = 65_536
"""Where the limit of open files is none to speak of, memory is: a connection takes about 20 KB."""
_SHARE_GIVEN_UP: Final = 4
"""A quarter of an address's waiting connections goes at once: a flood costs few searches."""
_SHARE_SEARCHED: Final = 64
"""Where each address has a few, one of so many goes at once, for the same reason."""
_SHORTAGE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_log = structlog.get_logger(__name__)


TlsContext = Callable[[], ssl.SSLContext]


class WaitingConnection(Protocol):
    """What the listener asks of a connection, the protocol of its transport."""

    @property
    def awaits_client(self) -> bool:
        """Whether nothing happens on it until its client sends or reads something."""

    def give_up(self) -> None:
        """Close it at once."""


@dataclass(frozen=True, slots=True)
class ConnectionBounds:
    """How many connections may wait for their clients.

    Attributes:
        per_address: of one IPv4 address or IPv6 /64.  Each takes about 20 KB.
        is_proxy: whether an address is that of a trusted proxy, which speaks for many clients:
            `per_address` does not count there.
    """

    per_address: int = IDLE_PER_ADDRESS
    is_proxy: Callable[[str], bool] = lambda _host: False


class HttpListener:
    """A listening socket whose connections are bounded.

    Args:
        sock: listens already; closed by `close`.
        connect: makes the protocol of a connection, which is also a `WaitingConnection`.
        bounds: of what is open at once.
        tls: gives what the next connection is served with; None where there is no TLS.
    """

    given_up: ClassVar[int] = 0
    """Connections of this process that were closed or refused for others."""

    def __init__(
        self,
        sock: socket.socket,
        connect: Callable[[], Any],
        bounds: ConnectionBounds,
        tls: TlsContext | None = None,
    ) -> None:
        self.sock = sock
        self._connect = connect
        self._bounds = bounds
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._keys: dict[WaitingConnection, str] = {}
        self._open: dict[str, dict[WaitingConnection, None]] = {}  # in the order they came in
        self._under_way: dict[WaitingConnection, asyncio.Task[None]] = {}
        """Until TCP and TLS are done with; a client that delays its handshake is waited for too."""
        self._logged_s = -LOG_EVERY_S
        self._given_up_at_log = 0
        sock.settimeout(0)
        sock.listen(BACKLOG)
        self._loop.add_reader(sock, self._accept)

    @classmethod
    def on(
        cls,
        host: str,
        port: int,
        connect: Callable[[], Any],
        bounds: ConnectionBounds,
        tls: TlsContext | None = None,
    ) -> Self:
        """Listen on an address.

        Raises:
            OSError: it cannot be listened on.
        """
        family, address = socket_address(host, port, socket.SOCK_STREAM)
        sock = socket.create_server(address, family=family, backlog=BACKLOG)
        return cls(sock, connect, bounds, tls)

    def close(self) -> None:
        """Accept no more; connections go on."""
        if self.sock.fileno() >= 0:
            self._loop.remove_reader(self.sock)
            self.sock.close()
        if self._tls is not None:
            for task in self._under_way.values():
                task.cancel()

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
            short = bool(self._keys) and accepted.fileno() >= connections_at_most()
            if short and not self._make_room():
                self._refuse(accepted)
                self._pause()
                return
            self._bound(key)
            connection = self._connect()
            self._keys[connection] = key
            self._open.setdefault(key, {})[connection] = None
            task = self._loop.create_task(self._begin(accepted, connection))
            self._under_way[connection] = task
            task.add_done_callback(functools.partial(self._begun, connection, accepted))
            if short:
                return  # the next one when what was given up is free

    def _key(self, address: tuple[Any, ...]) -> str:
        """Return whose a connection is; each of a trusted proxy stands for itself."""
        host = str(address[0])
        return f"{host} {address[1]}" if self._bounds.is_proxy(host) else address_key(host)

    def _bound(self, key: str) -> None:
        """Close the oldest waiting connections of an address that has too many of them."""
        if len(self._open.get(key, ())) >= self._bounds.per_address:
            waiting = self._waiting(key)
            if len(waiting) >= self._bounds.per_address:
                self._say(f"{key} has {len(waiting)} connections that wait for it")
                self._give_up(waiting[: 1 + len(waiting) // _SHARE_GIVEN_UP])

    async def _begin(self, accepted: socket.socket, connection: Any) -> None:
        try:
            if (
                accepted.fileno() >= connections_at_most()
            ):  # What was given up for it is free by now.
                accepted = _renumbered(accepted)
            await self._loop.connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=self._tls() if self._tls is not None else None,
                ssl_handshake_timeout=HANDSHAKE_S if self._tls is not None else None,
            )
        except OSError:  # it has gone already, or speaks no TLS, or takes too long for it
            self.forget(connection)
            accepted.close()
        except asyncio.CancelledError:  # given up
            accepted.close()
            raise

    def _begun(
        self, connection: WaitingConnection, accepted: socket.socket, task: asyncio.Task[None]
    ) -> None:
        del self._under_way[connection]
        if task.cancelled():  # perhaps before it did anything
            accepted.close()

    def _refuse(self, accepted: socket.socket) -> None:
        accepted.close()
        HttpListener.given_up += 1

    def _waiting(self, key: str) -> list[WaitingConnection]:
        handshakes: Collection[WaitingConnection] = self._under_way if self._tls else ()
        return [one for one in self._open[key] if one.awaits_client or one in handshakes]

    def _give_up(self, connections: list[WaitingConnection]) -> None:
        for one in connections:
            self.forget(one)
            if one in self._under_way:
                self._under_way[one].cancel()
            else:
                one.give_up()
        HttpListener.given_up += len(connections)

    def _make_room(self) -> bool:
        """Close waiting connections, the oldest of the address that has most of them, if any."""
        by_key = sorted((self._waiting(key) for key in self._open), key=len, reverse=True)
        waiting = sum(map(len, by_key))
        self._say(
            f"{len(self._keys)} connections use up the descriptors of this process;"
            f" {waiting} of them wait for their clients, {len(by_key[0]) if by_key else 0} for one"
        )
        given_up: list[WaitingConnection] = []
        for ones in by_key:
            given_up += ones[: (len(ones) + _SHARE_GIVEN_UP - 1) // _SHARE_GIVEN_UP]
            if len(given_up) > waiting // _SHARE_SEARCHED:
                break
        self._give_up(given_up)
        return bool(given_up)

    def _say(self, cause: str) -> None:
        now_s = time.monotonic()
        if now_s - self._logged_s < LOG_EVERY_S:
            return
        self._logged_s = now_s
        _log.warning(
            "connections_short",
            cause=cause,
            given_up=HttpListener.given_up - self._given_up_at_log,
            effect="the oldest of those that wait are closed; where there is none, new ones are",
            next_step="block the address if it is a stranger's; name the proxy that honest clients"
            " come through as trusted, or raise the limit of open files (LimitNOFILE=)",
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


def connections_at_most() -> int:
    """Return how many descriptors may be open before the rest is left for the service itself."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY or limit > _MOST_DESCRIPTORS:
        return _MOST_DESCRIPTORS
    return limit - min(_LEFT_FOR_THE_SERVICE, limit // 8)
