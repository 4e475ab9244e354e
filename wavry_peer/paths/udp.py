"""The thin shell: one connected UDP socket in an asyncio loop.

The socket is connected, so the kernel drops what does not come from the relay's address.  It
reads through `add_reader` and takes many datagrams for each wake-up: asyncio's own datagram
transport takes one, and buffers without bound what cannot be sent, where a datagram
path should drop.
"""

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from wavry_peer.errors import SessionFailedError
from wavry_peer.protocol.constants import RECEIVE_BUFFER_BYTES
from wavry_peer.service.settings import parse_address

__all__ = ["SOCKET_BUFFER_BYTES", "UdpSocket", "UdpStatistics", "connect_udp", "usable_addresses"]

SOCKET_BUFFER_BYTES: Final = 4 << 20
"""What we ask the kernel for in each direction; it may give less (net.core.rmem_max).  The
default of 208 KiB holds 90 full datagrams, a few milliseconds of a fast stream."""

READ_BATCH: Final = 64
"""Datagrams per wake-up: enough to spread the cost of one, few enough that timers and other
sockets of the loop are not kept waiting (about 2 ms)."""

_NO_ROUTE: Final = frozenset({errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EINVAL})
"""What the kernel says of a socket whose own address or last route is gone."""


@dataclass(slots=True)
class UdpStatistics:
    """Counters of one socket.

    Attributes:
        sent_bytes: UDP payload handed to the kernel.
        received_bytes: UDP payload.
        send_drops: datagrams that the kernel did not take (full buffer, no route, too big).
        receive_errors: ICMP errors and the like, told by the kernel; hints, not acted on.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    send_drops: int = 0
    receive_errors: int = 0


class UdpSocket:
    """A connected UDP socket that hands over what it reads in batches.

    Args:
        sock: connected, non-blocking.
        on_datagrams: called in the loop with one or more datagrams; longer ones than
            2048 bytes arrive cut at that size, which is over what any packet may have.

    Attributes:
        statistics: counters, for reading only.
        has_lost_route: True if the kernel could not send the last datagram from the socket's own
            address: the machine has another address now, or none.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_datagrams: Callable[[Sequence[bytes]], None],
        statistics: UdpStatistics | None = None,
    ) -> None:
        self.statistics = statistics or UdpStatistics()
        self.has_lost_route = False
        self._socket = sock
        self._on_datagrams = on_datagrams
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._read)
        self._closed = False

    def send(self, datagram: bytes) -> None:
        """Send at once, or drop and count."""
        if self._closed:
            return
        try:
            self._socket.send(datagram)
        except OSError as error:
            # A full buffer, a route that is gone, an ICMP error of an earlier packet: the
            # datagram is lost, as on the network, and whoever cares sends again.
            self.statistics.send_drops += 1
            self.has_lost_route = error.errno in _NO_ROUTE
        else:
            self.has_lost_route = False
            self.statistics.sent_bytes += len(datagram)

    def close(self) -> None:
        """Close the socket; again it does nothing."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket)
            self._socket.close()

    def _read(self) -> None:
        batch: list[bytes] = []
        for _ in range(READ_BATCH):
            try:
                datagram = self._socket.recv(RECEIVE_BUFFER_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                self.statistics.receive_errors += 1
                continue
            self.statistics.received_bytes += len(datagram)
            batch.append(datagram)
        if batch:
            self._on_datagrams(batch)


def usable_addresses(addresses: Sequence[str]) -> list[tuple[str, int]]:
    """Return the (host, port) pairs that a relay can have, in the order given, each once.

    Names, wildcards, multicast, port 0 and whatever has another form are left out.
    """
    usable: dict[tuple[str, int], None] = {}
    for text in addresses:
        try:
            host, port = parse_address(text)
            address = ipaddress.ip_address(host)
        except ValueError:
            continue
        if port and not address.is_unspecified and not address.is_multicast:
            usable[host, port] = None
    return list(usable)


def connect_udp(addresses: Sequence[tuple[str, int]]) -> tuple[socket.socket, int]:
    """Open a socket to the first address that this machine has a route to.

    Args:
        addresses: from `usable_addresses`.

    Returns:
        The socket, connected and non-blocking, and how many addresses were passed over.

    Raises:
        SessionFailedError: there is a route to none of them.
    """
    for index, (host, port) in enumerate(addresses):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError:
            continue
        try:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
            sock.connect((host, port))
        except OSError:
            sock.close()
            continue
        return sock, index
    raise SessionFailedError(
        "there is no route to any address of the relay; check IPv4 and IPv6 connectivity"
    )
