"""`connect` and `listen`: one call from a gateway's URL to a session."""

from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar, Unpack

from wavry_peer.gateway.calls import AcceptPolicy

from .listener import Listener
from .options import PeerKeywords
from .peer import SETUP_TIMEOUT_S, Peer
from .session import Closable, Session

__all__ = ["Opening", "connect", "listen"]


Opened = TypeVar("Opened", bound=Closable)


class Opening(Generic[Opened]):
    """What `connect` and `listen` give: to be awaited, or used with ``async with``."""

    def __init__(self, open_it: Callable[[], Awaitable[Opened]]) -> None:
        self._open_it = open_it
        self._opened: Opened | None = None

    def __await__(self) -> Generator[Any, None, Opened]:
        return self._open_it().__await__()

    async def __aenter__(self) -> Opened:
        self._opened = await self._open_it()
        return self._opened

    async def __aexit__(self, *_: object) -> None:
        if self._opened is not None:
            await self._opened.aclose()


class _OwnedPeer(Peer):
    """A peer that nobody else holds: it ends with the session or listener that it gave."""

    def _owner(self) -> Closable:
        return self


def connect(
    gateway_url: str,
    username: str,
    *,
    timeout_s: float = SETUP_TIMEOUT_S,
    **options: Unpack[PeerKeywords],
) -> Opening[Session]:
    """Call a user: to be used with ``async with``, or awaited.

    Args:
        gateway_url: ``https://HOST[:PORT]``.
        username: whom to call.
        timeout_s: for the answer, and again for relay and handshake.
        options: ``token``, ``credentials``, ``home`` …: see `PeerOptions`.

    Raises:
        PeerError, LocalError: see `Peer.start` and `Peer.connect`.
    """

    async def open_it() -> Session:
        peer = _OwnedPeer(gateway_url, **options)
        await peer.start()
        try:
            return await peer.connect(username, timeout_s=timeout_s)
        except BaseException:
            await peer.aclose()
            raise

    return Opening(open_it)


def listen(
    gateway_url: str, *, accept: AcceptPolicy, **options: Unpack[PeerKeywords]
) -> Opening[Listener]:
    """Take calls: to be used with ``async with``, or awaited.

    Args:
        gateway_url: ``https://HOST[:PORT]``.
        accept: whose calls: ``"all"``, user names, or a function of `IncomingCall`.
        options: ``token``, ``credentials``, ``home`` …: see `PeerOptions`.

    Raises:
        PeerError, LocalError: see `Peer.start`.
    """

    async def open_it() -> Listener:
        peer = _OwnedPeer(gateway_url, **options)
        await peer.start()
        return peer.listen(accept=accept)

    return Opening(open_it)
