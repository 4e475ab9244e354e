"""What the relay paths of one session tell their owner, and what they count together."""

from dataclasses import dataclass, field

from wavry_peer.errors import PeerError
from wavry_peer.protocol.channel.wire import ProbeStage

from .relay_events import PathStatistics
from .relay_link import RelayLink
from .udp import UdpStatistics

__all__ = [
    "BodyReceived",
    "PathChanged",
    "PathsEnded",
    "PathsEvent",
    "PathsStatistics",
    "ProbeDue",
]


@dataclass(frozen=True, slots=True)
class BodyReceived:
    """A FORWARD body came; the owner tells `RelayPaths.heard` what it proved.

    Attributes:
        link: the path it came on.
        body: sequence included; for the channel to judge.
    """

    link: RelayLink
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ProbeDue:
    """Send a probe on this path, if the channel has keys to make one with.

    Attributes:
        link: the path.
        stage: what the probe must say.
    """

    link: RelayLink
    stage: ProbeStage


@dataclass(frozen=True, slots=True)
class PathChanged:
    """Another path carries the session from now on; the first one counts as well."""


@dataclass(frozen=True, slots=True)
class PathsEnded:
    """The session cannot go on.

    Attributes:
        error: why.
    """

    error: PeerError


PathsEvent = BodyReceived | ProbeDue | PathChanged | PathsEnded


@dataclass(slots=True)
class PathsStatistics:
    """Counters of all paths of a session, closed ones included.

    The names are those of `wavry_peer.SessionStatistics`, which documents them.
    """

    renewals: int = 0
    renewal_failures: int = 0
    path_changes: int = 0
    lease_packets_sent: int = 0
    lease_rejects: int = 0
    path_challenges: int = 0
    wire_bytes_sent: int = 0
    wire_bytes_received: int = 0
    send_drops: int = 0
    relay_drops: dict[str, int] = field(default_factory=dict)

    def add(self, path: PathStatistics, udp: UdpStatistics) -> None:
        """Add the counters of one path and its socket."""
        self.lease_packets_sent += path.presents_sent
        self.lease_rejects += path.rejects
        self.path_challenges += path.challenges
        self.wire_bytes_sent += udp.sent_bytes
        self.wire_bytes_received += udp.received_bytes
        self.send_drops += udp.send_drops
        for reason, count in path.dropped.items():
            self.relay_drops[reason] = self.relay_drops.get(reason, 0) + count
