"""Limits of control packets by their source: an address, and the network around it.

The last limit, of an identity, is of the lease: `LeaseSlots` asks for it.
"""

from typing import Final

from wavry_peer.protocol.relay_terms import LimitLayer
from wavry_peer.service.clock import Instant
from wavry_relay.shm.address import Address
from wavry_relay.shm.counters import CounterRow
from wavry_relay.shm.layout import CONTROL
from wavry_relay.shm.tables import Tables

__all__ = ["PURPOSE_CONTROL", "PURPOSE_PATH", "LimitedBytes", "SourceLimits"]

PURPOSE_CONTROL: Final = 1
PURPOSE_PATH: Final = 2
"""A roaming peer's stream must not use up the allowance that its next LEASE_PRESENT needs."""

_NETWORK_FACTOR: Final = 20
"""Of one address's limit, where no limit is set for its network."""
_LIMITS: Final = (
    "ip_per_s", "ip_burst", "identity_per_s", "identity_burst", "network_per_s", "network_burst",
)  # fmt: skip
"""Neighbours in the control block."""
_LAYERS: Final = (LimitLayer.HOST, LimitLayer.NETWORK, LimitLayer.IDENTITY)


class SourceLimits:
    """The limits as one worker asks for them.

    Args:
        tables: shared with the other workers.
        counters: row of this worker.
    """

    def __init__(self, tables: Tables, counters: CounterRow) -> None:
        self._counters = counters
        self._tags = tables.tags
        # Looked at for every packet: read without the way over attributes.
        self._halves = tables.segment.u32
        first = (tables.control.base + CONTROL[_LIMITS[0]].offset) // 4
        self._limits_at = slice(first, first + len(_LIMITS))
        self._limits: list[int] = []
        self._hosts = tables.rates("ip_rates", per_s=1, burst=1)
        self._networks = tables.rates("network_rates", per_s=1, burst=1)
        self._follow_limits()

    def _follow_limits(self) -> None:
        """Read the limits, which may change at any time; one comparison where they did not."""
        limits = self._halves[self._limits_at].tolist()
        if limits == self._limits:
            return
        self._limits = limits
        per_s, burst, _, _, network_per_s, network_burst = limits
        self._hosts.set_limit(per_s, burst)
        self._networks.set_limit(
            network_per_s or per_s * _NETWORK_FACTOR, network_burst or burst * _NETWORK_FACTOR
        )

    def allows(self, source: Address, purpose: int, now: Instant) -> bool:
        """Take one packet from the allowances of an address and of its network.

        The network is charged first, so that many addresses of one that is used up do not even
        reach the table of addresses; it gets its unit back where the address is over its own limit,
        so that one address does not use up its neighbours'.

        Args:
            source: of the packet.
            purpose: `PURPOSE_CONTROL` or `PURPOSE_PATH`: each has allowances of its own.
            now: present moment.

        Raises:
            LockBusyError: a lock is held by a stopped process.
        """
        network, family = source.network_key
        key = self._tags.pair(network, family << 8 | purpose & 0xFF)  # without a port
        self._follow_limits()
        if not self._networks.allow(key, now.mono_ns):
            self._counters.add("limited_network")
            return False
        if self._host_allows(source, purpose, now):
            return True
        self._networks.give_back(key, now.mono_ns)
        return False

    def host_allows(self, source: Address, purpose: int, now: Instant) -> bool:
        """Take one packet from the allowance of the address alone.

        Raises:
            LockBusyError: a lock is held by a stopped process.
        """
        self._follow_limits()
        return self._host_allows(source, purpose, now)

    def _host_allows(self, source: Address, purpose: int, now: Instant) -> bool:
        pair = self._tags.pair
        if self._hosts.allow(pair(pair(source.high, source.low), purpose), now.mono_ns):
            return True
        self._counters.add("limited_host")
        return False


class LimitedBytes:
    """Bytes of what the limits hold back, by layer.

    The limits themselves count packets, wherever they are decided (Python or C).  The row of a
    worker has one writer, so the layer whose count grew is the one that has just refused.

    Args:
        counters: row of the worker, which goes on where its predecessor ended.
    """

    def __init__(self, counters: CounterRow) -> None:
        self._counters = counters
        self._seen = {layer: counters[f"limited_{layer}"] for layer in _LAYERS}

    def note_refused(self, size_bytes: int) -> None:
        """Add the bytes of a datagram that a limit refused to the layer that counted it."""
        for layer in _LAYERS:
            count = self._counters[f"limited_{layer}"]
            if count != self._seen[layer]:
                self._seen[layer] = count
                self._counters.add(f"limited_bytes_{layer}", size_bytes)
