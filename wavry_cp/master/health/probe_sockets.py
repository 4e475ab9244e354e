"""UDP sockets of all probes: two for each address family, one for each peer of a session.

A session is found by bytes 4 to 20 of a datagram: the session id of a relay's packet, or cookie
and transaction id of a STUN answer.  Both are random, and the source must be the endpoint that
was asked, so nobody else's datagram is taken for an answer.
"""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from typing import Final

from wavry_peer.protocol import constants as c
from wavry_peer.protocol.constants import RECEIVE_BUFFER_BYTES
from wavry_peer.service.settings import parse_address

__all__ = ["ProbeSockets"]

READ_BATCH: Final = 256
SOCKET_BUFFER_BYTES: Final = 1 << 20
_NAME: Final = slice(4, 20)
_NO_WAY: Final = frozenset(
    {
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
        errno.EINVAL,
    }
)

Receive = Callable[[c.Role, bytes], None]


class ProbeSockets:
    """Sends and receives for all sessions; sockets are made when they are first needed."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets: dict[tuple[socket.AddressFamily, c.Role], socket.socket] = {}
        self._receivers: dict[bytes, tuple[tuple[str, int], Receive]] = {}

    def listen(self, names: tuple[bytes, ...], endpoint: str, receive: Receive) -> None:
        """Hand over what comes from `endpoint` for a session; `names` are of 16 bytes."""
        for name in names:
            self._receivers[name] = parse_address(endpoint), receive

    def forget(self, names: tuple[bytes, ...]) -> None:
        """End a `listen`."""
        for name in names:
            self._receivers.pop(name, None)

    def send(self, role: c.Role, endpoint: str, datagram: bytes) -> bool:
        """Send, or drop where the kernel's buffer is full; False where there is no way there."""
        address = parse_address(endpoint)
        try:
            self._socket(address[0], role).sendto(datagram, address)
        except OSError as error:
            return error.errno not in _NO_WAY
        return True

    def read_all(self) -> None:
        """Hand over what waits in the kernel, before anybody judges that nothing came."""
        for (_, role), sock in self._sockets.items():
            self._read(sock, role)

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets.values():
            self._loop.remove_reader(sock)
            sock.close()
        self._sockets.clear()

    def _socket(self, host: str, role: c.Role) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = self._sockets.get((family, role))
        if sock is None:
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            try:
                if family is socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
                self._loop.add_reader(sock, self._read, sock, role)
            except BaseException:
                sock.close()
                raise
            self._sockets[family, role] = sock
        return sock

    def _read(self, sock: socket.socket, role: c.Role) -> None:
        for _ in range(READ_BATCH):
            try:
                datagram, source = sock.recvfrom(RECEIVE_BUFFER_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                continue
            expected = self._receivers.get(datagram[_NAME])
            if expected is not None and expected[0] == source[:2]:
                expected[1](role, datagram)
