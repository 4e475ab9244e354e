"""Incoming sessions, as an application takes them."""

import asyncio
from typing import Self

from wavry_peer.gateway.calls import AcceptPolicy, IncomingCall, is_accepted
from wavry_peer.protocol.errors import LocalError

from .errors import GatewayError
from .session import Closable, Session

__all__ = ["AcceptQueue", "Listener"]


class AcceptQueue:
    """Sessions that were set up and wait for `Listener.accept`, as in a listening socket.

    Args:
        policy: whose calls to accept.

    Attributes:
        is_closed: True once the listener was closed.
    """

    def __init__(self, policy: AcceptPolicy) -> None:
        self.is_closed = False
        self._policy = policy
        self._queue: asyncio.Queue[Session | Exception] = asyncio.Queue()
        self._end: Exception | None = None

    @property
    def waiting(self) -> int:
        """Sessions that nobody has taken yet."""
        return self._queue.qsize()

    async def wants(self, call: IncomingCall) -> bool:
        """Ask the policy."""
        return await is_accepted(self._policy, call)

    def put(self, item: Session | Exception) -> None:
        """Add a session, or why there will be none."""
        self._queue.put_nowait(item)

    async def take(self) -> Session:
        """Wait for the next session; see `Listener.accept`."""
        if self._end is not None:
            raise self._end
        item = await self._queue.get()
        if isinstance(item, Session):
            return item
        if isinstance(item, GatewayError | LocalError):
            self._end = item
            self._queue.put_nowait(item)  # for others who wait too.
        raise item

    async def aclose(self) -> None:
        """End sessions that nobody took, and wake all that wait."""
        self.is_closed = True
        self._end = self._end or LocalError("the listener was closed")
        while not self._queue.empty():
            item = self._queue.get_nowait()
            if isinstance(item, Session):
                await item.aclose()
        self._queue.put_nowait(self._end)


class Listener:
    """Sessions from those who call us; made by `Peer.listen` or `wavry_peer.listen`.

    ::

        async for session in listener: ...

    Attributes:
        username: who others must call.
    """

    def __init__(self, username: str, queue: AcceptQueue, owner: Closable | None = None) -> None:
        self.username = username
        self._queue = queue
        self._owner = owner

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Session:
        try:
            return await self.accept()
        except LocalError:
            raise StopAsyncIteration from None

    @property
    def waiting(self) -> int:
        """Sessions that nobody has taken yet."""
        return self._queue.waiting

    async def accept(self) -> Session:
        """Wait for the next session; close it after use.

        Raises:
            GatewayError: no more calls can come: the login ended (``invalid_token``) or another
                process of the same user took our place (``displaced``).
            LocalError: the listener was closed.
        """
        return await self._queue.take()

    async def aclose(self) -> None:
        """Take no more calls, and end sessions that nobody took."""
        await self._queue.aclose()
        owner, self._owner = self._owner, None
        if owner is not None:
            await owner.aclose()
