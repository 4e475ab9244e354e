"""What `connect`, `listen` and `Peer` let an application choose; defined once for all three."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from wavry_peer.gateway.signaling import LinkTimes
from wavry_peer.home.identity import Identity
from wavry_peer.home.known_peers import KnownPeers
from wavry_peer.paths.environment import boottime_ns
from wavry_peer.protocol.errors import LocalError

__all__ = ["PeerKeywords", "PeerOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerOptions:
    """Who a peer is, and how it behaves; `connect`, `listen` and `Peer` take these keywords.

    Attributes:
        token: of a login.
        credentials: user name and password, to log in with; used rather than a token, again when
            the login has ended, and the login ends with the peer.  Without both, the login kept by
            ``wavry-peer login`` is used.
        home: directory of the peer's files; default: see `wavry_peer.home.identity.default_home`.
        identity: default: the one in `home`, made on first use.
        known_peers: pinned keys; default: those in `home`.
        allow_http: let ``http://`` pass for other machines than this one.
        clock: monotonic nanoseconds.
        link_times: of the signaling connection.

    Raises:
        LocalError: a value is not usable.
    """

    token: str | None = field(default=None, repr=False)
    credentials: tuple[str, str] | None = field(default=None, repr=False)
    home: Path | None = None
    identity: Identity | None = field(default=None, repr=False)
    known_peers: KnownPeers | None = None
    allow_http: bool = False
    clock: Callable[[], int] = boottime_ns
    link_times: LinkTimes | None = None

    def __post_init__(self) -> None:
        if self.token == "":
            raise LocalError("token is empty; leave it out to use the login of `wavry-peer login`")
        if self.credentials is not None and len(self.credentials) != 2:
            raise LocalError("credentials are a user name and a password")
        if self.home is not None and not isinstance(self.home, Path):
            raise LocalError("home is a pathlib.Path")


class PeerKeywords(TypedDict, total=False):
    """The fields of `PeerOptions` as keyword arguments, for type checkers."""

    token: str | None
    credentials: tuple[str, str] | None
    home: Path | None
    identity: Identity | None
    known_peers: KnownPeers | None
    allow_http: bool
    clock: Callable[[], int]
    link_times: LinkTimes | None
