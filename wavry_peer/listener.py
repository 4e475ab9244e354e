"""Incoming sessions, as an application takes them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Self

from wavry_peer.gateway.calls import AcceptPolicy, IncomingCall, is_accepted
from wavry_peer.protocol.errors import LocalError

from .errors import GatewayError
from .session import Session

__all__ = ["Listener"]


class Listener:
    """Sessions from those who call us; made by `Peer.listen` or `wavry_peer.listen`.

    ::

        async for session in listener: ...

    Attributes:
        username: who others must call.
    """

    def __init__(
        self, username: str, policy: AcceptPolicy, on_close: Callable[["Listener"], None]
    ) -> None:
        self.username = username
        self._policy = policy
        self._on_close = on_close
        self._queue: asyncio.Queue[Session | Exception] = asyncio.Queue()
        self._end: Exception | None = None
        self._cleanup: Callable[[], Awaitable[None]] | None = None

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
        return self._queue.qsize()

    async def accept(self) -> Session:
        """Waits for the next session; close it after use.

        Raises:
            GatewayError: no more calls can come: the login ended (``invalid_token``) or another
                process of the same user took our place (``displaced``).
            LocalError: the listener was closed.
        """
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
        """Takes no more calls, and ends sessions that nobody took."""
        self._on_close(self)
        self._end = self._end or LocalError("the listener was closed")
        while not self._queue.empty():
            item = self._queue.get_nowait()
            if isinstance(item, Session):
                await item.aclose()
        self._queue.put_nowait(self._end)  # wakes whoever waits in `accept`.
        cleanup, self._cleanup = self._cleanup, None
        if cleanup is not None:
            await cleanup()

    async def wants(self, call: IncomingCall) -> bool:
        """Asks the policy."""
        return await is_accepted(self._policy, call)

    def put(self, item: Session | Exception) -> None:
        """A session, or why there will be none."""
        self._queue.put_nowait(item)

    def set_cleanup(self, cleanup: Callable[[], Awaitable[None]]) -> None:
        """Something to close after the listener, by `aclose`."""
        self._cleanup = cleanup
