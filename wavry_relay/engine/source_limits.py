"""Limits of control packets by their source, before the admission sees them.

Allowances are apart, so that what a stranger can spoof never uses up what somebody proved
(protocol.md, "Allowances"):

    STUN                                       of the address and of its network
    a cookie that proves the address           of the address and of its network
    from the address and port of a live slot   of the slot
    every other lease                          of the address and of its network
    FORWARD of a live session from elsewhere   of the address and its port

An address is an IPv4 address or an IPv6 /64, a network an IPv4 /24 or an IPv6 /48.  Each allowance
has the same size.  The last limit, of an identity, is of the lease: `LeaseSlots` asks for it.

The native engine does the same in allowances.c, before Python is reached.
"""

from typing import Final

from wavry_peer.protocol import constants as c
from wavry_peer.protocol.packets import Buffer
from wavry_peer.protocol.relay_terms import LimitLayer
from wavry_peer.service.clock import Instant
from wavry_relay.shm.address import Address
from wavry_relay.shm.counters import CounterRow
from wavry_relay.shm.layout import CONTROL
from wavry_relay.shm.sessions import session_words
from wavry_relay.shm.tables import Tables

from .base import ControlKind, SenderClass
from .cookie import PathCookies, cookie_in

__all__ = [
    "NETWORK_FACTOR",
    "PURPOSE_PATH",
    "PURPOSE_PORT_SHIFT",
    "PURPOSE_PROVED",
    "PURPOSE_SLOT",
    "PURPOSE_STRANGER",
    "PURPOSE_STUN",
    "OverLimitError",
    "SourceLimits",
]

PURPOSE_STUN: Final = 1
PURPOSE_PROVED: Final = 2
PURPOSE_STRANGER: Final = 3
PURPOSE_PATH: Final = 4
"""A roaming peer's stream must not use up the allowance that its next LEASE_PRESENT needs.  Each
port has its own, and the network none: who knows a session id can spoof the address that its peer
is about to come from, but not the port that a NAT has yet to choose."""
PURPOSE_SLOT: Final = 5
"""Of a port too: who shares an address with others does not use up theirs."""
PURPOSE_PORT_SHIFT: Final = 16

NETWORK_FACTOR: Final = 20
"""Of one address's limit, where no limit is set for its network."""
_LIMITS: Final = (
    "ip_per_s", "ip_burst", "identity_per_s", "identity_burst", "network_per_s", "network_burst",
)  # fmt: skip
"""Neighbours in the control block."""


class OverLimitError(Exception):
    """A control packet is over an allowance of its source.

    Args:
        layer: of the allowance.
    """

    def __init__(self, layer: LimitLayer) -> None:
        super().__init__(layer)
        self.layer = layer


class SourceLimits:
    """The limits as one worker asks for them.

    Args:
        tables: shared with the other workers.
        counters: row of this worker.
    """

    def __init__(self, tables: Tables, counters: CounterRow) -> None:
        self._counters = counters
        self._tags = tables.tags
        self._locks = tables.locks
        self._sessions = tables.sessions
        self._cookies = PathCookies(tables.control.cookie_key)
        # Looked at for every packet: read without the way over attributes.
        self._halves = tables.segment.u32
        first = (tables.control.base + CONTROL[_LIMITS[0]].offset) // 4
        self._limits_at = slice(first, first + len(_LIMITS))
        self._limits: list[int] = []
        self._hosts = tables.rates("ip_rates", per_s=1, burst=1)
        self._networks = tables.rates("network_rates", per_s=1, burst=1)
        self._follow_limits()

    def judge(
        self, kind: ControlKind, datagram: Buffer, source: Address, now: Instant
    ) -> SenderClass:
        """Take a control packet from the allowance that it belongs to.

        Returns:
            What is known of its sender.

        Raises:
            OverLimitError: nothing is left of that allowance; counted.
            LockBusyError: a lock is held by a stopped process.
        """
        self._follow_limits()
        try:
            return self._judge(kind, datagram, source, now)
        except OverLimitError as error:
            self._counters.add(f"limited_{error.layer}")
            self._counters.add(f"limited_bytes_{error.layer}", len(datagram))
            raise

    def _judge(
        self, kind: ControlKind, datagram: Buffer, source: Address, now: Instant
    ) -> SenderClass:
        if kind is ControlKind.LEASE:
            return self._judge_lease(datagram, source, now)
        if kind is ControlKind.STUN:
            self._take_source(source, PURPOSE_STUN, now)
        else:
            self._take_host(source, PURPOSE_PATH | source.port << PURPOSE_PORT_SHIFT, now)
        return SenderClass.STRANGER

    def _judge_lease(self, datagram: Buffer, source: Address, now: Instant) -> SenderClass:
        session_id = bytes(datagram[c.SESSION_ID_OFFSET : c.HEADER_BYTES])
        cookie = cookie_in(datagram)
        refused = None
        if cookie and self._cookies.is_good(cookie, session_id, source, now.mono_ns):
            try:
                self._take_source(source, PURPOSE_PROVED, now)
            except OverLimitError as error:
                refused = error
            else:
                return SenderClass.PROVED
        if self._is_slot(session_id, source):
            self._take_host(source, PURPOSE_SLOT | source.port << PURPOSE_PORT_SHIFT, now)
            return SenderClass.SLOT
        if refused is not None:
            raise refused
        self._take_source(source, PURPOSE_STRANGER, now)
        return SenderClass.STRANGER

    def _is_slot(self, session_id: bytes, source: Address) -> bool:
        """Return whether a live slot of the session is at this address and port."""
        high, low = session_words(session_id)
        record = self._sessions.find(high, low)
        if record is None:
            return False
        with self._locks.session(record.number):
            return self._sessions.holds(record, high, low) and any(
                slot.is_at(source) for slot in record.slots()
            )

    def _take_source(self, source: Address, purpose: int, now: Instant) -> None:
        """Take one packet from the allowances of an address and of its network.

        The network is charged first, so that many addresses of one that is used up do not even
        reach the table of addresses; it gets its unit back where the address is over its own limit,
        so that one address does not use up its neighbours'.
        """
        key = self._key(source.network_key, purpose)
        if not self._networks.allow(key, now.mono_ns):
            raise OverLimitError(LimitLayer.NETWORK)
        try:
            self._take_host(source, purpose, now)
        except OverLimitError:
            self._networks.give_back(key, now.mono_ns)
            raise

    def _take_host(self, source: Address, purpose: int, now: Instant) -> None:
        if not self._hosts.allow(self._key(source.host_key, purpose), now.mono_ns):
            is_slot = purpose & 0xFFFF == PURPOSE_SLOT
            raise OverLimitError(LimitLayer.SLOT if is_slot else LimitLayer.HOST)

    def _key(self, place: tuple[int, int], purpose: int) -> int:
        word, family = place
        return self._tags.pair(word, family << 8 | purpose)

    def _follow_limits(self) -> None:
        """Read the limits, which may change at any time; one comparison where they did not."""
        limits = self._halves[self._limits_at].tolist()
        if limits == self._limits:
            return
        self._limits = limits
        per_s, burst, _, _, network_per_s, network_burst = limits
        self._hosts.set_limit(per_s, burst)
        self._networks.set_limit(
            network_per_s or per_s * NETWORK_FACTOR, network_burst or burst * NETWORK_FACTOR
        )
