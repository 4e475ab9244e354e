"""What is probed, and what one probe of one endpoint found."""

from dataclasses import dataclass

from wavry_peer.protocol.relay_terms import ProbeFault

__all__ = ["ProbeOutcome", "ProbeTarget"]


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """One session, both of whose peers were the master.

    Attributes:
        endpoint: where it went.
        fault: None where payload of every size came through in both directions.
        text: for people, empty without a fault.
        reason: name of the relay's reject reason, empty where it did not refuse.
        sent: payload datagrams, both directions.
        arrived: of these, whole at the other end.
        rtt_ms: middle time from the master through the relay and back; None where none arrived.
        is_conclusive: False where nothing may be concluded: this process was late itself, or
            has no route there.
        has_route: False where this host cannot send to the address at all.
    """

    endpoint: str
    fault: ProbeFault | None
    text: str = ""
    reason: str = ""
    sent: int = 0
    arrived: int = 0
    rtt_ms: float | None = None
    is_conclusive: bool = True
    has_route: bool = True

    @property
    def passed(self) -> bool:
        """Payload came through, both ways, small and large."""
        return self.fault is None and self.is_conclusive


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """A relay to be probed: its endpoints, and which of them never let a session through."""

    relay_id: str
    endpoints: tuple[str, ...]
    unproved: frozenset[str]
