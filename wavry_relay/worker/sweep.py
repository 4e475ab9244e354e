"""The sweep: ends sessions that are over and forgets expired used leases.

Each worker looks after the bitmap words of its own number, a slice at a time between two batches,
so that every record is seen about every two seconds.  A look needs no lock; a session that seems
to be over is looked at again under the locks before it is closed.  Expiry itself is not the
sweep's: the engine stops forwarding at the very packet.
"""

from collections.abc import Callable
from typing import Final

from wavry_peer.protocol import constants as c
from wavry_peer.protocol.packets import build_notice
from wavry_peer.service.clock import Instant
from wavry_relay.admission.transitions import LeaseTransitions, state_of
from wavry_relay.shm.address import Address
from wavry_relay.shm.counters import CounterRow
from wavry_relay.shm.layout import SESSION_ACTIVE, SESSION_FREE, SESSION_WAITING
from wavry_relay.shm.lease_states import LeaseState
from wavry_relay.shm.locks import LockBusyError, Locks
from wavry_relay.shm.sessions import SessionRecord, SlotRecord, is_silent
from wavry_relay.shm.tables import Tables

__all__ = ["Sweep", "may_notify"]

_ROUND_NS: Final = 2_000_000_000
_SLICES: Final = 40
"""A round in 50 ms steps: a slice of 100 000 sessions on one worker takes half a millisecond, one
per cent of its time; a session may outlive its time-out by a round, which only holds its
record."""
_MOST_USED_SLOTS: Final = 2048
"""Of one step, a tenth of a millisecond: a large table of used leases may take some rounds."""
_NOTICE_BYTES: Final = c.HEADER_BYTES + 2
_SECOND_PEER_MS: Final = c.SECOND_PEER_TIMEOUT_S * 1000
_GONE_MS: Final = c.GONE_AFTER_S * 1000
_IDLE_MS: Final = c.IDLE_TIMEOUT_S * 1000
_TELL_AGAIN_NS: Final = 10_000_000_000
"""A notice may be lost."""

SendNotice = Callable[[bytes, Address], bool]


def may_notify(locks: Locks, record: SessionRecord, slot: SlotRecord) -> bool:
    """Take a NOTICE from what an unproved address may be sent; False where that is used up."""
    if not slot.jti or not slot.unproved:
        return slot.jti != 0
    try:
        with locks.session(record.number):
            return slot.spend(_NOTICE_BYTES)
    except LockBusyError:
        return False


class Sweep:
    """Sweeps one worker's share of the tables.

    Args:
        tables: shared with the other workers.
        counters: row of this worker.
        worker: number of this worker; number 0 also sweeps the used leases.
        send: sends NOTICE, best effort.
        transitions: counts the ends.
    """

    def __init__(
        self,
        tables: Tables,
        counters: CounterRow,
        worker: int,
        send: SendNotice,
        transitions: LeaseTransitions | None = None,
    ) -> None:
        self._transitions = transitions or LeaseTransitions(tables, counters)
        self._now = Instant(0, 0)
        self._segment = tables.segment
        self._sessions = tables.sessions
        self._locks = tables.locks
        self._counters = counters
        self._tables = tables
        self._used = tables.used_leases
        self._origins = tables.lease_origins
        self._send = send
        self._sweeps_used = worker == 0
        self._used_slots = min(_MOST_USED_SLOTS, -(-self._used.slots // _SLICES))
        self._words = range(worker, self._sessions.bitmap_words, tables.segment.geometry.workers)
        self._next_word = 0
        self._next_used = 0
        self._next_ns = 0
        self._told_ns: dict[int, int] = {}
        """By record: before when nobody is told again; of the records that have a silent peer."""

    def step(self, now: Instant) -> None:
        """Do the next slice if its time has come."""
        self._now = now
        if now.mono_ns < self._next_ns:
            return
        self._next_ns = now.mono_ns + _ROUND_NS // _SLICES
        slice_words = -(-len(self._words) // _SLICES)
        stamp = self._segment.milliseconds(now.mono_ns)
        try:
            for word in self._words[self._next_word : self._next_word + slice_words]:
                for record in self._sessions.doubtful(word, now.wall_ms, stamp, _GONE_MS):
                    self._look_at(record, now)
            if self._sweeps_used:
                self._purge(now)
        except LockBusyError:
            return  # Same slice again next time.
        self._next_word += slice_words
        if self._next_word >= len(self._words):
            self._next_word = 0
            self._told_ns = {n: ns for n, ns in self._told_ns.items() if ns > now.mono_ns}

    def _purge(self, now: Instant) -> None:
        first = self._next_used
        if self._used.has_expired(first, self._used_slots, now.wall_ms):
            with self._locks.table():
                self._used.purge(first, self._used_slots, now.wall_ms)
        self._next_used = first + self._used_slots
        if self._next_used >= self._used.slots:
            self._next_used = 0

    def _look_at(self, record: SessionRecord, now: Instant) -> None:
        if record.state != SESSION_FREE and self._verdict(record, now) is None:
            self._tell_who_is_left(record, now)
            return
        with self._locks.table(), self._locks.session(record.number):
            if record.state == SESSION_FREE:
                # Its bit was set by a worker that died before, or after, the record's life.
                self._sessions.free_bit(record.number)
                return
            verdict = self._verdict(record, now)
            if verdict is not None:
                self.close(record, *verdict)

    def _tell_who_is_left(self, record: SessionRecord, now: Instant) -> None:
        """Tell a peer that the other one is silent; now and again, for a notice may be lost."""
        if record.state != SESSION_ACTIVE or now.mono_ns < self._told_ns.get(record.number, 0):
            return
        stamp = self._segment.milliseconds(now.mono_ns)
        with self._locks.session(record.number):
            if record.state != SESSION_ACTIVE:
                return
            slots = [slot for slot in record.slots() if slot.jti]
            left = [slot for slot in slots if not is_silent(self._segment, slot, stamp)]
            notice, told = build_notice(record.session_id, c.NoticeCode.PEER_GONE), None
            if len(left) < len(slots) and left and left[0].spend(len(notice)):
                told = left[0].address
        if told is not None:
            self._told_ns[record.number] = now.mono_ns + _TELL_AGAIN_NS
            if self._send(notice, told):
                self._counters.add("sent_notices")

    def _verdict(self, record: SessionRecord, now: Instant) -> tuple[str, c.NoticeCode] | None:
        """Return the counter and notice of a session that is over, None while it is not."""
        stamp = self._segment.milliseconds(now.mono_ns)
        elapsed_ms = self._segment.elapsed_ms
        taken = [slot for slot in record.slots() if slot.jti]
        if all(slot.expires_ms <= now.wall_ms for slot in taken) and taken:
            return "session_closed_expired", c.NoticeCode.EXPIRING
        if record.state == SESSION_WAITING:
            if elapsed_ms(stamp, record.created_ms) >= _SECOND_PEER_MS:
                return "session_closed_second_peer", c.NoticeCode.PEER_GONE
            return None
        if all(elapsed_ms(stamp, slot.received_ms) >= _IDLE_MS for slot in taken):
            return "session_closed_idle", c.NoticeCode.PEER_GONE
        return None

    def close(self, record: SessionRecord, counter: str, code: c.NoticeCode) -> None:
        """Close a session: its leases become used ones, its record becomes free.

        Needs the table lock and the record's.
        """
        notice = build_notice(record.session_id, code)
        words, before = (record.id_high, record.id_low), state_of(record)
        cause = counter.removeprefix("session_closed_")
        for role, slot in enumerate(record.slots()):
            if slot.jti:
                self._transitions.take(
                    before, self._end_of(slot, code), words, self._now, role=role, cause=cause
                )
                self._tables.remember_slot(record, role)
                if slot.spend(len(notice)) and self._send(notice, slot.address):
                    self._counters.add("sent_notices")
        self._sessions.release(record)
        self._origins.clear(record.number)
        self._counters.add(counter)

    def _end_of(self, slot: SlotRecord, code: c.NoticeCode) -> LeaseState:
        """Return the state of a slot whose session ends: its lease may be over by itself."""
        if code is c.NoticeCode.REVOKED:
            return LeaseState.REVOKED
        if slot.expires_ms <= self._now.wall_ms:
            return LeaseState.EXPIRED
        return LeaseState.CLOSED

    def announce(self, code: c.NoticeCode) -> None:
        """Send a NOTICE to every peer of this worker's share, e.g. SHUTDOWN."""
        for word in self._words:
            for record in self._sessions.live(word, 1):
                if record.state == SESSION_FREE:
                    continue
                notice = build_notice(record.session_id, code)
                for slot in record.slots():
                    if may_notify(self._locks, record, slot) and self._send(notice, slot.address):
                        self._counters.add("sent_notices")
