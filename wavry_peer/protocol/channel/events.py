"""What a channel tells its owner: events, reasons, statistics, and what it may be told: limits."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from wavry_peer.protocol.errors import LocalError

from .wire import ProbeStage

__all__ = [
    "ChannelClosed",
    "ChannelFailed",
    "ChannelLimits",
    "ChannelStatistics",
    "DataReceived",
    "DropReason",
    "Event",
    "FailureReason",
    "HandshakeCompleted",
    "ProbeReceived",
]

_SECOND_NS: Final = 1_000_000_000
_HOUR_NS: Final = 3600 * _SECOND_NS


class DropReason(Enum):
    """Why a received packet was dropped."""

    MALFORMED = "malformed"
    """Too short, too long, or of an unknown kind."""
    UNEXPECTED = "unexpected"
    """A kind that this role or state has no use for."""
    BAD_HANDSHAKE = "bad_handshake"
    """A handshake message that is forged, damaged or of another handshake."""
    WRONG_IDENTITY = "wrong_identity"
    """A correct handshake by somebody who is not the expected peer."""
    NO_KEYS = "no_keys"
    """A transport packet before the handshake."""
    EPOCH_OUT_OF_RANGE = "epoch_out_of_range"
    UNAUTHENTIC = "unauthentic"
    REPLAYED = "replayed"
    TOO_OLD = "too_old"
    """Behind the replay window."""
    SUPERSEDED = "superseded"
    """A CLOSE from the process that ran before the peer was restarted."""
    CLOSED = "closed"
    """The channel had ended, or had not been started."""


class FailureReason(Enum):
    """Why a channel failed."""

    HANDSHAKE_TIMEOUT = "handshake_timeout"
    """No peer completed the handshake before the deadline."""
    WRONG_IDENTITY = "wrong_identity"
    """As before, and somebody with another static key tried."""


@dataclass(frozen=True, slots=True)
class HandshakeCompleted:
    """Both sides hold the keys: datagrams may be sent.

    Comes once for the first handshake and again whenever the peer's process was started
    anew; a renewal of keys with the same process makes no event.

    Attributes:
        remote_static: the peer's authenticated X25519 public key, 32 bytes; the same each time.
        is_restart: True from the second time on: what the peer knew before is gone.
    """

    remote_static: bytes
    is_restart: bool = False


@dataclass(frozen=True, slots=True)
class DataReceived:
    """One application datagram, authentic and delivered at most once.

    Attributes:
        data: what the peer gave to `send`.
    """

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ProbeReceived:
    """An authentic probe of the path that it came on.

    Attributes:
        stage: how far the other side is.
    """

    stage: ProbeStage


@dataclass(frozen=True, slots=True)
class ChannelFailed:
    """The channel could not be set up and is over.

    Attributes:
        reason: what to tell the user.
    """

    reason: FailureReason


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """The channel is over, as one side wished.

    Attributes:
        by_remote: True if the peer closed it.
    """

    by_remote: bool


Event = HandshakeCompleted | DataReceived | ProbeReceived | ChannelFailed | ChannelClosed


@dataclass(slots=True)
class ChannelStatistics:
    """Counters of one channel; they only grow.

    Attributes:
        packets_sent: all channel packets, handshake included.
        packets_received: all that came in, dropped ones included.
        datagrams_sent: application datagrams.
        datagrams_received: application datagrams delivered.
        handshakes_completed: 1 after the first; later ones renew keys or follow a restart.
        handshake_retransmits: handshake messages and knocks that were sent again.
        rekeys_sent: epochs that this side began.
        rekeys_received: epochs of the peer that were followed.
        dropped: packets received and dropped, by reason.
    """

    packets_sent: int = 0
    packets_received: int = 0
    datagrams_sent: int = 0
    datagrams_received: int = 0
    handshakes_completed: int = 0
    handshake_retransmits: int = 0
    rekeys_sent: int = 0
    rekeys_received: int = 0
    dropped: dict[DropReason, int] = field(default_factory=lambda: dict.fromkeys(DropReason, 0))


@dataclass(frozen=True, slots=True)
class ChannelLimits:
    """Times and counts of a channel; the defaults fit a relayed path.

    Attributes:
        handshake_deadline_ns: a handshake that takes longer fails.  30 s, as long as a relay
            waits for the second peer.
        retransmit_initial_ns: wait before the first retransmission.  250 ms is more than the
            round trip of nearly every path.
        retransmit_max_ns: cap of the doubling wait: how late a peer that arrives late is seen.
        restart_interval_ns: least time between handshakes that knocks can cause.  It bounds
            what forged knocks cost.
        rekey_after_packets: packets of one epoch; at most 2^48 (protocol.md section 4).
        rekey_after_ns: age of one epoch at which the next packet begins a new one; at most 24 h.
        previous_keys_ns: how long keys are good for receiving once newer ones have been
            used: more than a packet lives on its way.

    Raises:
        LocalError: a value is out of its range.
    """

    handshake_deadline_ns: int = 30 * _SECOND_NS
    retransmit_initial_ns: int = _SECOND_NS // 4
    retransmit_max_ns: int = 2 * _SECOND_NS
    restart_interval_ns: int = 5 * _SECOND_NS
    rekey_after_packets: int = 1 << 40
    rekey_after_ns: int = 12 * _HOUR_NS
    previous_keys_ns: int = 30 * _SECOND_NS

    def __post_init__(self) -> None:
        if not 0 < self.rekey_after_packets <= 1 << 48:
            raise LocalError("rekey_after_packets must be from 1 to 2^48")
        if not 0 < self.rekey_after_ns <= 24 * _HOUR_NS:
            raise LocalError("rekey_after_ns must be from 1 ns to 24 h")
        if not 0 < self.retransmit_initial_ns <= self.retransmit_max_ns:
            raise LocalError("retransmit_initial_ns must be positive, at most retransmit_max_ns")
        if self.handshake_deadline_ns <= 0 or self.previous_keys_ns <= 0:
            raise LocalError("handshake_deadline_ns and previous_keys_ns must be positive")
        if self.restart_interval_ns < 0:
            raise LocalError("restart_interval_ns must not be negative")
