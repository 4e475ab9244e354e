"""A session with one other peer, as an application uses it."""

from typing import Final, Protocol, Self

from wavry_peer.protocol.channel.channel import MAX_DATAGRAM_BYTES

from .connection import Connection
from .errors import SessionClosedError
from .statistics import SessionStatistics

__all__ = ["Closable", "Session"]


class Closable(Protocol):
    """What ends together with a session or a listener."""

    async def aclose(self) -> None:
        """End it; again it does nothing."""


class Session:
    """An end-to-end encrypted datagram session.

    Datagrams may be lost or arrive out of order, as with UDP; none arrives twice, altered, or
    from anybody else.  Up to 2048 received datagrams wait to be taken; then the oldest is dropped
    and counted.  Made by `connect` or `listen`, not directly.

    Attributes:
        session_id: UUID, the same on both sides.
        remote_username: the other peer, as the gateway names it.
        max_datagram_bytes: the largest datagram that `send` takes.
    """

    max_datagram_bytes: Final = MAX_DATAGRAM_BYTES

    def __init__(self, connection: Connection, owner: Closable | None = None) -> None:
        self.session_id = connection.terms.session_id
        self.remote_username = connection.terms.remote_username
        self._connection = connection
        self._owner = owner

    def __repr__(self) -> str:
        return f"<Session with {self.remote_username}{' (closed)' if self.is_closed else ''}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self.receive()
        except SessionClosedError:
            raise StopAsyncIteration from None

    @property
    def is_closed(self) -> bool:
        """True once the session is over; datagrams received before can still be taken."""
        return self._connection.is_over

    async def send(self, data: bytes) -> None:
        """Send one datagram; it never waits for the network and may be lost.

        Args:
            data: at most `max_datagram_bytes`.

        Raises:
            LocalError: `data` is too long.
            SessionClosedError: the session is over.
        """
        await self._connection.send(data)

    async def receive(self) -> bytes:
        """Wait for the next datagram.

        Raises:
            SessionClosedError: the session is over and every datagram was taken.
        """
        return await self._connection.receive()

    async def aclose(self) -> None:
        """End the session and tell the other peer; again it does nothing."""
        await self._connection.aclose()
        owner, self._owner = self._owner, None
        if owner is not None:
            await owner.aclose()

    async def wait_closed(self) -> None:
        """Wait until the session is over, whichever side ended it."""
        await self._connection.wait_closed()

    def statistics(self) -> SessionStatistics:
        """Return the counters up to now, as a copy that does not change."""
        return self._connection.statistics()
