"""Strikes: violations that lead to a block of their host, an IPv4 address or an IPv6 /64.

Only a source that has shown the cookie of its path is struck: anybody can send bad packets in
somebody else's name, and whoever holds a good lease can even put a slot at a spoofed address, so a
live slot proves nothing.  A cookie is only known to who receives at the address.  Strikes are a
GCRA word for each host: `block_after` at once, one more a second.  Where a bucket of the table
is full, further hosts are not struck: none is ever blocked for another's strikes.

A host with a live slot is not blocked: others are behind its address too, and its own slots'
packets are limited anyway.  Whether there is one needs a walk over all sessions, so a worker walks
at most a hundredth of its time; who is not looked at now is at his next strike.
"""

import time
from typing import Final

from wavry_peer.protocol.constants import RejectReason
from wavry_peer.service.clock import Instant
from wavry_relay.shm.address import Address
from wavry_relay.shm.counters import CounterRow
from wavry_relay.shm.tables import Tables
from wavry_relay.worker_log import worker_log

__all__ = ["VIOLATIONS", "Strikes"]

VIOLATIONS: Final = frozenset(
    (
        RejectReason.INVALID_SIGNATURE,
        RejectReason.PROOF_REQUIRED,
        RejectReason.REPLAYED,
        RejectReason.RATE_LIMITED,
    )
)
"""What no well-made peer does a hundred times.  An unknown key, a revoked or an expired lease is
the system's own affair and never a strike."""

_FORGIVEN_PER_S: Final = 1
_WALK_SHARE: Final = 100


class Strikes:
    """The strikes that one worker gives.

    Args:
        tables: shared with the other workers.
        counters: row of this worker.
    """

    def __init__(self, tables: Tables, counters: CounterRow) -> None:
        self._control = tables.control
        self._locks = tables.locks
        self._counters = counters
        self._tags = tables.tags
        self._sessions = tables.sessions
        self._walk_from_ns = 0
        self._blocks = tables.blocks
        self._rates = tables.rates(
            "strike_rates",
            per_s=_FORGIVEN_PER_S,
            burst=max(1, self._control.block_after),
            shares_overflow=False,
        )

    def strike(self, source: Address, reason: RejectReason, now: Instant) -> None:
        """Note a violation of a source that has proven its path; block its host at the last.

        Raises:
            LockBusyError: a lock is held by a stopped process.
        """
        control = self._control
        if not control.block_after:
            return
        self._counters.add("block_strikes")
        self._rates.set_limit(_FORGIVEN_PER_S, control.block_after)
        if self._rates.allow(self._tags.pair(*source.host_key), now.mono_ns):
            return
        if self._may_be_live(source, now.mono_ns):
            return
        until_ms = now.wall_ms + control.block_s * 1000
        with self._locks.table():
            if self._blocks.has(source, now.wall_ms):
                return
            entered = self._blocks.add(source, now.wall_ms, until_ms, reason)
        if not entered:
            self._counters.add("blocks_not_entered")
            return
        self._counters.add("hosts_blocked")
        worker_log(control.log_level).warning(
            "host_blocked",
            family=source.family,
            cause=reason.name.lower(),
            block_s=control.block_s,
            next_step="wavry-relay blocks shows it; `blocks clear` lifts it",
        )

    def _may_be_live(self, source: Address, now_ns: int) -> bool:
        """Return whether a live slot is at this host, or it is too early to look again."""
        if now_ns < self._walk_from_ns:
            return True
        began_ns = time.thread_time_ns()
        found = self._sessions.has_slot_at(source)
        took_ns = time.thread_time_ns() - began_ns
        self._walk_from_ns = now_ns + _WALK_SHARE * took_ns
        return found
