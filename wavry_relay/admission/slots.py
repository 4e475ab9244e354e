"""Where a verified lease goes: the only writer of sessions' identities.

From the replay check on, everything runs under the table lock, so two workers that see the same
packet cannot both accept it.

Every step of a slot's state goes through `LeaseTransitions`.  The ordinary cases (an empty slot, a
renewal from where the peer is) may be taken by `Engine.admit` instead, to the same effect.
"""

from typing import Final

from wavry_peer.protocol import constants as c
from wavry_peer.protocol.errors import LeaseError
from wavry_peer.protocol.packets import Header, LeaseAck, build_ack, build_challenge
from wavry_peer.service.clock import Instant
from wavry_relay.engine.base import Answer, Engine
from wavry_relay.engine.cookie import PathCookies
from wavry_relay.engine.verified_lease import VerifiedLease
from wavry_relay.shm.address import Address
from wavry_relay.shm.counters import CounterRow
from wavry_relay.shm.layout import SESSION_ACTIVE, SESSION_WAITING
from wavry_relay.shm.lease_states import LeaseState
from wavry_relay.shm.leases import LeaseHistory, Leftover
from wavry_relay.shm.sessions import SessionRecord, SlotRecord, is_silent, session_words
from wavry_relay.shm.tables import Tables

from .transitions import LeaseTransitions, state_of

__all__ = ["LeaseSlots", "PathChallengeError"]

_LAST_COUNTER: Final = (1 << 64) - 1
"""Never accepted: nothing could come after it, and the word for "denied" is the same."""


Holder = tuple[SessionRecord, SlotRecord]


class PathChallengeError(Exception):
    """The peer must first prove that it receives at its new address."""


class LeaseSlots:
    """Places the leases that one worker verified.

    Args:
        tables: shared with the other workers.
        engine: may take the ordinary cases.
        counters: row of this worker.
        cookies: prove the path of a slot that moves.
        transitions: counts the steps of slots.
    """

    def __init__(
        self,
        tables: Tables,
        engine: Engine,
        counters: CounterRow,
        cookies: PathCookies,
        transitions: LeaseTransitions,
    ) -> None:
        self._tables = tables
        self._segment = tables.segment
        self._sessions = tables.sessions
        self._locks = tables.locks
        self._engine = engine
        self._counters = counters
        self._cookies = cookies
        self._transitions = transitions
        self._control = control = tables.control
        self._tags = tables.tags
        self._used = tables.used_leases
        self._origins = tables.lease_origins
        self._identity_rates = tables.rates(
            "identity_rates", per_s=control.identity_per_s, burst=control.identity_burst
        )

    def place(self, header: Header, lease: VerifiedLease, source: Address, now: Instant) -> Answer:
        """Decide where a verified lease goes; needs the table lock.

        A RENEW of a session that this relay does not have (any more) is taken as its PRESENT: it
        brings the same lease and the same proof.

        Returns:
            The ACK, a challenge too where the address is not proved; nothing where nobody waits.

        Raises:
            LeaseError: the lease is refused.
            PathChallengeError: the peer is at another address than its slot.
            LockBusyError: a lock is held by a stopped process.
        """
        words = session_words(header.session_id)
        if not lease.releases:
            answer = self._engine.admit(words, lease, source, now.mono_ns)
            if answer is not None:
                return answer
        record = self._sessions.find(*words)
        slot = record.slot(lease.role) if record is not None else None
        holder = (record, slot) if record and slot and slot.jti else None
        history = self._check_replay(words, lease, holder, now)
        if lease.releases:
            if holder is not None and holder[1].jti == lease.jti:
                self._release(*holder, lease, now)
            return ()  # Nobody waits for an answer: the peer's socket is closed.
        same_lease = holder is not None and holder[1].jti == lease.jti
        if not same_lease:
            self._transitions.take(
                LeaseState.ISSUED, LeaseState.PRESENTED, words, now, role=lease.role
            )
        if not self._identity_allows(lease.sub, now):
            self._counters.add("limited_identity")
            raise LeaseError(c.RejectReason.RATE_LIMITED, "too many leases of this identity")
        if record is None:
            self._check_new_session(lease.sub)
        if holder is not None:
            self._check_slot(lease, holder[1], source)
        if record is None:
            record = self._sessions.claim(*words, self._segment.milliseconds(now.mono_ns))
            if record is None:
                raise LeaseError(c.RejectReason.SESSION_FULL, "session table is full")
            self._origins.clear(record.number)
            self._counters.add("session_created")
        with self._locks.session(record.number):
            taken = record.slot(lease.role)
            self._accept(record, taken, lease, source, history, now)
            is_proved = not taken.unproved
        return self._answer(header, lease, source, now, is_proved=is_proved)

    def _answer(
        self,
        header: Header,
        lease: VerifiedLease,
        source: Address,
        now: Instant,
        *,
        is_proved: bool,
    ) -> Answer:
        """Build the ACK of a lease that has its slot, and the challenge of its address."""
        self._counters.add("sent_acks")
        reflexive = source.packed, source.port
        ack = LeaseAck(lease.expires_ms, lease.soft_kbps, lease.hard_kbps, reflexive)
        answer = build_ack(header.session_id, ack)
        if is_proved:
            return (answer,)
        self._counters.add("sent_challenges")
        cookie = self._cookies.make(header.session_id, source, now.mono_ns)
        return answer, build_challenge(header.session_id, cookie)

    # -- Checks --------------------------------------------------------------------------------

    def _identity_allows(self, sub: int, now: Instant) -> bool:
        control = self._control
        self._identity_rates.set_limit(control.identity_per_s, control.identity_burst)
        return self._identity_rates.allow(sub, now.mono_ns)

    def _check_new_session(self, sub: int) -> None:
        """Refuse what a relay that drains or is nearly full does not take.

        The last ninth of the records stays free for those who hold less than an eighth of all,
        however many others ask for.
        """
        if self._control.drain:
            raise LeaseError(c.RejectReason.DRAINING, "relay takes no new sessions")
        if self._control.shedding:
            self._counters.add("sessions_shed")
            raise LeaseError(c.RejectReason.SESSION_FULL, "relay sheds load")
        if self._sessions.is_nearly_full() and self._sessions.has_a_large_share(sub):
            self._counters.add("sessions_over_share")
            raise LeaseError(c.RejectReason.SESSION_FULL, "user has his share of the relay")

    def _check_replay(
        self, words: tuple[int, int], lease: VerifiedLease, holder: Holder | None, now: Instant
    ) -> LeaseHistory:
        """Refuse a used lease without a fresh proof.

        Returns:
            What the slot denies from now on, the lease that it holds left out.
        """
        if lease.counter == _LAST_COUNTER:
            raise LeaseError(
                c.RejectReason.PROOF_REQUIRED, "proof counter is the reserved last one"
            )
        shown = lease.jti, lease.issued_s, lease.counter
        if holder is not None:
            record, slot = holder
            history = self._origins.history(record.number, lease.role)
            if slot.jti == lease.jti:
                if lease.counter < slot.mark:
                    raise LeaseError(c.RejectReason.REPLAYED, "proof counter did not grow")
                return history
            if history.denies(*shown, slot.mark):
                raise LeaseError(c.RejectReason.REPLAYED, "lease was already used")
            return history
        left, floor_s = self._used.find(self._tags.slot(words, lease.role), lease.sub)
        if floor_s > now.wall_ms // 1000 + self._control.skew_s:
            floor_s = 0  # The wall clock was set back: no lease of today is that old.
        if left is None:
            left = Leftover(LeaseHistory(), mark=0)
        history = left.history.bounded(floor_s)
        if left.jti == lease.jti:
            if lease.counter < left.mark:
                raise LeaseError(c.RejectReason.REPLAYED, "lease was already used")
            return history
        if lease.issued_s <= floor_s or left.history.denies(*shown, left.mark):
            raise LeaseError(c.RejectReason.REPLAYED, "lease was already used, or is too old")
        return history.pushed(left.jti, left.issued_s, 0) if left.jti else history

    @staticmethod
    def _check_slot(lease: VerifiedLease, slot: SlotRecord, source: Address) -> None:
        """Check identity and path of a slot that is taken."""
        if slot.sub != lease.sub or slot.cnf != lease.cnf:
            raise LeaseError(c.RejectReason.INVALID_SIGNATURE, "slot belongs to another identity")
        if not slot.is_at(source) and not lease.proves:
            raise PathChallengeError

    # -- Transitions (all under the table lock and the record's) -----------------------------------

    def _accept(
        self,
        record: SessionRecord,
        slot: SlotRecord,
        lease: VerifiedLease,
        source: Address,
        history: LeaseHistory,
        now: Instant,
    ) -> None:
        """Fill the slot, `jti` last: Presented → Accepted, or Active → Renewed."""
        stamp = self._segment.milliseconds(now.mono_ns)
        held = slot.jti
        same = held == lease.jti
        if held:
            if not same:
                _, issued_s = self._origins.get(record.number, lease.role)
                history = history.pushed(held, issued_s, slot.expires_ms)
            if not slot.is_at(source):
                self._counters.add("nat_rebind")
        if not lease.renews:
            slot.reset_window()
        if not held:
            slot.unproved = 1
        if lease.proves:
            slot.unproved = 0
        elif slot.unproved:
            slot.credit(lease.size_bytes)
            slot.unproved -= c.REFLEXIVE_ACK_BYTES + c.PATH_CHALLENGE_BYTES
        slot.fill(
            source,
            expires_ms=lease.expires_ms,
            soft_kbps=lease.soft_kbps,
            hard_kbps=lease.hard_kbps,
            sub=lease.sub,
            cnf=lease.cnf,
            mark=lease.counter + 1,
            received_ms=stamp,
        )
        self._origins.put(record.number, lease.role, lease.kid, lease.issued_s)
        self._origins.put_history(record.number, lease.role, history)
        self._count_accepted(lease, taken=held != 0, same=same)
        slot.jti = lease.jti
        if not same:
            self._take_steps(record, lease.role, now, renews=held != 0)
        if record.state != SESSION_ACTIVE:
            self._activate(record, now)

    def _release(
        self, record: SessionRecord, slot: SlotRecord, lease: VerifiedLease, now: Instant
    ) -> None:
        """Let go a peer that is done with this relay: Active → Waiting, or Waiting → Closed.

        Its lease is denied from now on; a session that both peers left is over.
        """
        if slot.sub != lease.sub or slot.cnf != lease.cnf:
            raise LeaseError(c.RejectReason.INVALID_SIGNATURE, "slot belongs to another identity")
        words, before = (record.id_high, record.id_low), state_of(record)
        take = self._transitions.take
        with self._locks.session(record.number):
            _, issued_s = self._origins.get(record.number, lease.role)
            history = self._origins.history(record.number, lease.role)
            left = Leftover(history.pushed(slot.jti, issued_s, slot.expires_ms), slot.mark)
            self._used.put(self._tags.slot(words, lease.role), slot.sub, left)
            slot.clear()
            self._counters.add("lease_released")
            take(before, LeaseState.CLOSED, words, now, role=lease.role, cause="released")
            other = record.slot(1 - lease.role)
            if other.jti and self._is_gone(other, now):
                # Nobody is left: what that peer may come back with is remembered as at any end.
                take(before, LeaseState.CLOSED, words, now, role=1 - lease.role, cause="gone")
                self._tables.remember_slot(record, 1 - lease.role)
                other.clear()
            if other.jti:
                if before is LeaseState.ACTIVE:
                    take(before, LeaseState.ACCEPTED, words, now, role=1 - lease.role)
                record.state = SESSION_WAITING
                record.created_ms = self._segment.milliseconds(now.mono_ns)
            else:
                self._sessions.release(record)
                self._counters.add("session_closed_released")

    def _is_gone(self, slot: SlotRecord, now: Instant) -> bool:
        return is_silent(self._segment, slot, self._segment.milliseconds(now.mono_ns))

    def _take_steps(self, record: SessionRecord, role: int, now: Instant, *, renews: bool) -> None:
        words, take = (record.id_high, record.id_low), self._transitions.take
        if not renews:
            take(LeaseState.PRESENTED, LeaseState.ACCEPTED, words, now, role=role)
            return
        state = state_of(record)
        take(state, LeaseState.RENEWED, words, now, role=role)
        take(LeaseState.RENEWED, state, words, now, role=role)

    def _count_accepted(self, lease: VerifiedLease, *, taken: bool, same: bool) -> None:
        if same:
            self._counters.add("lease_reproved")
        elif taken and lease.renews:
            self._counters.add("lease_renewed")
        else:
            self._counters.add("lease_accepted")

    def _activate(self, record: SessionRecord, now: Instant) -> None:
        """Take the step from Waiting to Active once both slots are taken."""
        client, server = record.slots()
        if client.jti and server.jti:
            record.state = SESSION_ACTIVE
            self._counters.add("session_activated")
            words = record.id_high, record.id_low
            for role in c.Role:
                self._transitions.take(
                    LeaseState.ACCEPTED, LeaseState.ACTIVE, words, now, role=role
                )
