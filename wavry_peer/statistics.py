"""What a session counted, for people and for ``--json``."""

import dataclasses
from dataclasses import dataclass

from wavry_peer.protocol.channel.events import ChannelStatistics
from wavry_peer.protocol.constants import FORWARD_SEQUENCE_BYTES

__all__ = ["LossEstimate", "SessionStatistics"]


@dataclass(slots=True)
class SessionStatistics:
    """Counters of a session; `Session.statistics` gives copies.

    Attributes:
        path: what carries the session, or carried it last: ``relay <id>``; ``none`` before.
        datagrams_sent: given to `send`.
        datagrams_received: delivered by the channel, `queue_drops` included.
        bytes_sent: application bytes.
        bytes_received: application bytes.
        packets_sent: channel packets, handshake and keepalives included.
        packets_received: channel packets, dropped ones included.
        wire_bytes_sent: UDP payload.
        wire_bytes_received: UDP payload.
        lost_estimate: packets of the peer that never came, from gaps in its sequence; a packet
            still on its way counts as lost until it comes.
        duplicates: packets that came twice (or were replayed) and were dropped.
        rejected_packets: other packets that the channel dropped, forged ones for example.
        queue_drops: oldest datagrams dropped because nobody took them.
        send_drops: datagrams that the kernel did not take.
        path_round_trip_ms: to the relay and back, or None; see ``wavry-peer ping`` for the way
            to the other peer.
        handshakes: completed; more than 1 after a restart of the peer.
        handshake_retransmits: handshake packets sent again.
        renewals: leases renewed at the relay.
        renewal_failures: tries to renew that did not work.
        path_changes: moves to another relay.
        lease_packets_sent: LEASE_PRESENT and LEASE_RENEW, repetitions included.
        lease_rejects: LEASE_REJECTs received, believed or not.
        path_challenges: PATH_CHALLENGEs received.
        relay_drops: datagrams from the relay's address that did not fit, by reason.
    """

    path: str
    datagrams_sent: int = 0
    datagrams_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    packets_sent: int = 0
    packets_received: int = 0
    wire_bytes_sent: int = 0
    wire_bytes_received: int = 0
    lost_estimate: int = 0
    duplicates: int = 0
    rejected_packets: int = 0
    queue_drops: int = 0
    send_drops: int = 0
    path_round_trip_ms: float | None = None
    handshakes: int = 0
    handshake_retransmits: int = 0
    renewals: int = 0
    renewal_failures: int = 0
    path_changes: int = 0
    lease_packets_sent: int = 0
    lease_rejects: int = 0
    path_challenges: int = 0
    relay_drops: dict[str, int] = dataclasses.field(default_factory=dict)


class LossEstimate:
    """Estimates lost packets from the sequences of authentic ones."""

    def __init__(self) -> None:
        self._highest = 0
        self._first: int | None = None
        self._accepted_before = 0
        self._lost_before = 0

    def saw(self, body: bytes, channel: ChannelStatistics) -> None:
        """Note an authentic packet."""
        sequence = int.from_bytes(body[:FORWARD_SEQUENCE_BYTES], "big")
        if self._first is None:
            self._first = sequence
            self._accepted_before = _accepted(channel) - 1
        self._highest = max(self._highest, sequence)

    def restart(self, channel: ChannelStatistics) -> None:
        """Begin anew: the peer counts from the beginning again."""
        self._lost_before = self.lost(channel)
        self._first = None
        self._highest = 0

    def lost(self, channel: ChannelStatistics) -> int:
        """Return how many packets never came, as far as one can tell."""
        if self._first is None:
            return self._lost_before
        expected = self._highest - self._first + 1
        return self._lost_before + max(0, expected - _accepted(channel) + self._accepted_before)


def _accepted(channel: ChannelStatistics) -> int:
    return channel.packets_received - sum(channel.dropped.values())
