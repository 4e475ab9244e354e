"""What a relay path tells its owner, and what it may be told."""

from dataclasses import dataclass, field
from typing import Final

from wavry_peer.protocol.constants import NoticeCode, RejectReason

__all__ = [
    "ForwardReceived",
    "LeaseRenewed",
    "NoticeReceived",
    "PathEvent",
    "PathFailed",
    "PathLimits",
    "PathReady",
    "PathStatistics",
    "RenewalFailed",
]

_MS_NS: Final = 1_000_000
_SECOND_NS: Final = 1000 * _MS_NS


@dataclass(frozen=True, slots=True)
class PathReady:
    """The relay took our lease; comes once.

    Attributes:
        expires_ms: unix milliseconds, never later than our own token says.
        reflexive: our address as the relay saw it (packed address, port), or None.
    """

    expires_ms: int
    reflexive: tuple[bytes, int] | None


@dataclass(frozen=True, slots=True)
class LeaseRenewed:
    """The relay took the new lease.

    Attributes:
        expires_ms: unix milliseconds, never later than our own token says.
    """

    expires_ms: int


@dataclass(frozen=True, slots=True)
class RenewalFailed:
    """The relay did not take the new lease; the one before is still in use.

    Attributes:
        reason: what it answered again and again, or None for no answer.
    """

    reason: RejectReason | int | None


@dataclass(frozen=True, slots=True)
class PathFailed:
    """The relay is of no use any more: no answer, or a refusal that it repeated.

    Attributes:
        reason: what it answered again and again, or None for no answer.
    """

    reason: RejectReason | int | None


@dataclass(frozen=True, slots=True)
class NoticeReceived:
    """A hint, unauthenticated: a reason to ask the gateway, nothing more."""

    code: NoticeCode | int


@dataclass(frozen=True, slots=True)
class ForwardReceived:
    """Body of a FORWARD, sequence included; for the channel to judge."""

    body: bytes = field(repr=False)


PathEvent = PathReady | LeaseRenewed | RenewalFailed | PathFailed | NoticeReceived | ForwardReceived


@dataclass(slots=True)
class PathStatistics:
    """Counters of one path; they only grow, `round_trip_ns` apart.

    Attributes:
        presents_sent: LEASE_PRESENT and LEASE_RENEW, repetitions included.
        acks: LEASE_ACKs that answered one of them.
        rejects: LEASE_REJECTs, believed or not.
        challenges: PATH_CHALLENGEs.
        notices: NOTICEs.
        forwards_sent: FORWARD datagrams.
        forwards_received: FORWARD datagrams.
        round_trip_ns: to the relay and back, from the latest lease packet that was
            answered at once; None before.
        dropped: datagrams dropped, by reason.
    """

    presents_sent: int = 0
    acks: int = 0
    rejects: int = 0
    challenges: int = 0
    notices: int = 0
    forwards_sent: int = 0
    forwards_received: int = 0
    round_trip_ns: int | None = None
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PathLimits:
    """Times and counts of a relay path.

    Attributes:
        retransmit_initial_ns: wait before a lease packet is sent again; then it doubles.
        retransmit_max_ns: cap of the doubling wait.
        deadline_ns: how long one lease packet is tried.  10 s: longer than a worker of the
            relay needs to be replaced, shorter than a person's patience.
        silence_ns: after so long without any packet the lease is presented again, which finds
            a relay that died or forgot us.  25 s: two keepalives of the other side (10 s each)
            may be lost without a false alarm.
        check_interval_ns: time for one such check that strangers' packets can cause: it bounds
            what a forged REJECT or PATH_CHALLENGE costs.
        check_burst: so many of them may come at once: a NAT that changes again within a second
            is followed.
        challenge_wait_ns: so long after its first ACK a relay's challenge counts as lost, and the
            lease is presented again: an address that is not proved is sent next to nothing.
        challenge_interval_ns: least time between two answers to PATH_CHALLENGE while a lease
            packet is outstanding.
        rejects_to_believe: so many different packets of ours must be refused, with no ACK,
            before a refusal counts: REJECT is unauthenticated.
        renews_before_present: LEASE_RENEWs without an answer before the new lease is sent as
            LEASE_PRESENT, which also a relay takes that has lost its session table.
    """

    retransmit_initial_ns: int = 250 * _MS_NS
    retransmit_max_ns: int = 2 * _SECOND_NS
    deadline_ns: int = 10 * _SECOND_NS
    silence_ns: int = 25 * _SECOND_NS
    check_interval_ns: int = _SECOND_NS
    check_burst: int = 4
    challenge_interval_ns: int = 50 * _MS_NS
    challenge_wait_ns: int = _SECOND_NS
    rejects_to_believe: int = 3
    renews_before_present: int = 2
