"""Wavry for applications: end-to-end encrypted datagram sessions between two users.

The called side::

    async with wavry_peer.listen(url, credentials=("bob", password), accept={"alice"}) as calls:
        async for session in calls:
            await session.send(b"hello, " + await session.receive())

The calling side::

    async with wavry_peer.connect(url, "bob", credentials=("alice", password)) as session:
        await session.send(b"alice")
        print(await session.receive())

Everything that can go wrong is in `wavry_peer.errors`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wavry_peer.files.transfer import receive_file, send_file
    from wavry_peer.gateway.calls import AcceptPolicy, IncomingCall
    from wavry_peer.home.identity import Identity
    from wavry_peer.home.known_peers import KnownPeers
    from wavry_peer.protocol.errors import LocalError, WavryError

    from .errors import (
        GatewayAuthError,
        GatewayError,
        GatewayUnreachableError,
        LeaseMismatchError,
        PeerError,
        PeerKeyChangedError,
        PeerUnavailableError,
        PrivateFileError,
        SessionClosedError,
        SessionFailedError,
        TransferError,
    )
    from .listener import Listener
    from .opening import connect, listen
    from .options import PeerOptions
    from .peer import Peer
    from .session import Session
    from .statistics import SessionStatistics

__all__ = [
    "AcceptPolicy",
    "GatewayAuthError",
    "GatewayError",
    "GatewayUnreachableError",
    "Identity",
    "IncomingCall",
    "KnownPeers",
    "LeaseMismatchError",
    "Listener",
    "LocalError",
    "Peer",
    "PeerError",
    "PeerKeyChangedError",
    "PeerOptions",
    "PeerUnavailableError",
    "PrivateFileError",
    "Session",
    "SessionClosedError",
    "SessionFailedError",
    "SessionStatistics",
    "TransferError",
    "WavryError",
    "connect",
    "listen",
    "receive_file",
    "send_file",
]

# Loaded on first use: relays and the control plane import `wavry_peer.protocol`, and must not pay
# for an HTTP client that they do not need.
_HOMES = {
    "AcceptPolicy": "gateway.calls",
    "IncomingCall": "gateway.calls",
    "Identity": "home.identity",
    "KnownPeers": "home.known_peers",
    "connect": "opening",
    "listen": "opening",
    "Listener": "listener",
    "Peer": "peer",
    "PeerOptions": "options",
    "LocalError": "protocol.errors",
    "WavryError": "protocol.errors",
    "Session": "session",
    "SessionStatistics": "statistics",
    "receive_file": "files.transfer",
    "send_file": "files.transfer",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}")
    value = globals()[name] = getattr(module, name)
    return value
