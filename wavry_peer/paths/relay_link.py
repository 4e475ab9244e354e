"""A relay path and its socket: datagrams in, datagrams out, nothing decided here."""

import socket
from collections.abc import Callable, Sequence
from typing import Final, Self

from wavry_peer.errors import SessionFailedError

from .relay import RelayPath
from .udp import UdpSocket, UdpStatistics, connect_udp, usable_addresses

__all__ = ["RelayLink"]

ROUTE_INTERVAL_NS: Final = 500_000_000
"""Least time between two looks for another route: a machine without any is not kept busy."""


class RelayLink:
    """One `RelayPath` on one connected UDP socket at a time.

    When the machine's own address is gone (another network, IPv6 in place of IPv4), the path goes
    on from a new socket: the relay sees that as the work of a NAT, and asks for the proof.

    Attributes:
        path: the state machine.
        has_hastened_renewal: whether a NOTICE of this relay was acted on already.
    """

    def __init__(
        self,
        path: RelayPath,
        sock: socket.socket,
        usable: Sequence[tuple[str, int]],
        other_addresses: Sequence[str],
        clock: Callable[[], int],
        on_activity: Callable[[], None],
    ) -> None:
        self.path = path
        self.has_hastened_renewal = False
        self.other_addresses = tuple(other_addresses)
        self._usable = usable
        self._next_route_ns: int | None = None
        self._clock = clock
        self._on_activity = on_activity
        self._udp = UdpSocket(sock, self._on_datagrams)

    @classmethod
    def open(
        cls,
        path: RelayPath,
        addresses: Sequence[str],
        *,
        clock: Callable[[], int],
        on_activity: Callable[[], None],
    ) -> Self:
        """Open a socket to the first usable address.

        Args:
            path: not started yet.
            addresses: ``HOST:PORT`` in the order of preference.
            clock: monotonic nanoseconds.
            on_activity: called after datagrams were fed to the path.

        Raises:
            SessionFailedError: there is a route to none of the addresses.
        """
        usable = usable_addresses(addresses)
        sock, index = connect_udp(usable)
        others = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in usable]
        return cls(path, sock, usable, others[index + 1 :], clock, on_activity)

    @property
    def relay_id(self) -> str:
        """Id of the relay."""
        return self.path.lease.relay_id

    @property
    def usable(self) -> bool:
        """True if a new lease can be brought to this relay on this path."""
        return self.path.is_ready

    @property
    def socket_statistics(self) -> UdpStatistics:
        """Counters of the socket."""
        return self._udp.statistics

    def flush(self) -> None:
        """Send what the path has queued."""
        for datagram in self.path.datagrams_to_send():
            self._udp.send(datagram)
            if self._udp.has_lost_route and self._find_route():
                self._udp.send(datagram)

    def close(self) -> None:
        """Close path and socket."""
        self.path.close()
        self._udp.close()

    def _find_route(self) -> bool:
        now_ns = self._clock()
        if self._next_route_ns is not None and now_ns < self._next_route_ns:
            return False
        self._next_route_ns = now_ns + ROUTE_INTERVAL_NS
        try:
            sock, _ = connect_udp(self._usable)
        except SessionFailedError:
            return False
        self._udp.close()
        self._udp = UdpSocket(sock, self._on_datagrams, self._udp.statistics)
        return True

    def _on_datagrams(self, datagrams: Sequence[bytes]) -> None:
        now_ns = self._clock()
        for datagram in datagrams:
            self.path.receive_datagram(datagram, now_ns)
        self._on_activity()
