"""`connect` and `listen`: one call from a gateway's URL to a session."""

from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from wavry_peer.gateway.calls import AcceptPolicy
from wavry_peer.home.identity import Identity
from wavry_peer.home.known_peers import KnownPeers

from .listener import Listener
from .peer import SETUP_TIMEOUT_S, Peer
from .session import Session

__all__ = ["Opening", "connect", "listen"]


class _Closable(Protocol):
    async def aclose(self) -> None: ...


Opened = TypeVar("Opened", bound=_Closable)


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


def connect(
    gateway_url: str,
    username: str,
    *,
    token: str | None = None,
    credentials: tuple[str, str] | None = None,
    home: Path | None = None,
    identity: Identity | None = None,
    known_peers: KnownPeers | None = None,
    allow_http: bool = False,
    timeout_s: float = SETUP_TIMEOUT_S,
) -> Opening[Session]:
    """Calls a user: to be used with ``async with``, or awaited.

    Args:
        gateway_url: ``https://HOST[:PORT]``.
        username: whom to call.
        token: of a login.
        credentials: user name and password, to log in with.  Without both, the login kept
            by ``wavry-peer login`` is used.
        home: directory of the peer's files.
        identity: default: the one in `home`, made on first use.
        known_peers: pinned keys; default: those in `home`.
        allow_http: let ``http://`` pass for other machines than this one.
        timeout_s: for the answer, and again for relay and handshake.

    Raises:
        PeerError, LocalError: see `Peer.start` and `Peer.connect`.
    """

    async def open_it() -> Session:
        peer = Peer(
            gateway_url,
            token=token,
            credentials=credentials,
            home=home,
            identity=identity,
            known_peers=known_peers,
            allow_http=allow_http,
        )
        await peer.start()
        try:
            session = await peer.connect(username, timeout_s=timeout_s)
        except BaseException:
            await peer.aclose()
            raise
        session.add_cleanup(peer.aclose)
        return session

    return Opening(open_it)


def listen(
    gateway_url: str,
    *,
    accept: AcceptPolicy,
    token: str | None = None,
    credentials: tuple[str, str] | None = None,
    home: Path | None = None,
    identity: Identity | None = None,
    known_peers: KnownPeers | None = None,
    allow_http: bool = False,
) -> Opening[Listener]:
    """Takes calls: to be used with ``async with``, or awaited.

    Args:
        gateway_url: ``https://HOST[:PORT]``.
        accept: whose calls: ``"all"``, user names, or a function of `IncomingCall`.
        token: of a login.
        credentials: user name and password, to log in with.  Without both, the login kept
            by ``wavry-peer login`` is used.
        home: directory of the peer's files.
        identity: default: the one in `home`, made on first use.
        known_peers: pinned keys; default: those in `home`.
        allow_http: let ``http://`` pass for other machines than this one.

    Raises:
        PeerError, LocalError: see `Peer.start`.
    """

    async def open_it() -> Listener:
        peer = Peer(
            gateway_url,
            token=token,
            credentials=credentials,
            home=home,
            identity=identity,
            known_peers=known_peers,
            allow_http=allow_http,
        )
        await peer.start()
        listener = peer.listen(accept=accept)
        listener.set_cleanup(peer.aclose)
        return listener

    return Opening(open_it)
