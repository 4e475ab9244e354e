"""Admission: control packets in, answers out; the only writer of sessions' identities.

Checks, in this order, cheapest first (protocol.md section 3); the first "no" names the reason:

    size, magic                engine
    limits of host, network    `Admission._lease`, `_limits_allow`
    [cookie under load], ban   `Gate`, `_check_cookie`
    token shape … horizon      `LeaseVerifier`
    revoked                    `Gate`
    proof                      `check_proof`
    jti / counter replay       `_check_replay`
    [slot given back]          `_release`
    identity limit             `_place`
    drain, shedding, capacity  `_check_room`
    identity lock, path        `_check_slot`
    → accepted                 `_accept`

From the replay check on, everything runs under the table lock, so two workers that see the same
packet cannot both accept it.  A lease without `cnf` is a bearer lease: its datagram is accepted
once, and it never moves to another address.

Every step of a slot's state goes through `LeaseTransitions`.
"""

from typing import Final

import msgspec

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import stun
from wavry_peer.protocol.errors import LeaseError, PacketError
from wavry_peer.protocol.lease import LeaseClaims, check_proof
from wavry_peer.protocol.packets import (
    Header,
    LeaseAck,
    LeasePresent,
    build_ack,
    build_challenge,
    build_reject,
    parse_header,
    parse_present,
)

from .address import Address
from .clock import Instant
from .cookie import PathCookies
from .engine.base import ControlKind, ControlPacket
from .gate import Gate, OpenGate
from .lease_states import LeaseState
from .lease_transitions import LeaseTransitions, state_of
from .limited_bytes import LimitedBytes
from .shm.control import ControlBlock
from .shm.counters import CounterRow
from .shm.layout import SESSION_ACTIVE, SESSION_WAITING
from .shm.lease_origins import LeaseOrigins
from .shm.locks import LockBusyError, Locks
from .shm.rate_limit import RateTable
from .shm.segment import Segment
from .shm.sessions import SessionRecord, SessionTable, SlotRecord, session_words
from .shm.tags import Tags
from .shm.used_leases import DENIED, UsedLeases
from .strikes import VIOLATIONS, Strikes
from .verifier import LeaseVerifier

__all__ = ["Admission", "Answer"]

_PURPOSE_CONTROL: Final = 1
_PURPOSE_PATH: Final = 2
"""A roaming peer's stream must not use up the allowance that its next LEASE_PRESENT needs.

Each port has its own: who knows a session id can spoof the address that its peer is about to come
from, but not the port that a NAT has yet to choose.  A challenge is no larger than its cause.
"""
_PORT_SHIFT: Final = 16

_LAST_COUNTER: Final = (1 << 64) - 1
"""Never accepted: nothing could come after it, and the word for "denied" is the same."""
_BEARER_REPEAT_MS: Final = c.BEARER_REACK_S * 1000
_U32: Final = 0xFFFFFFFF
_NETWORK_FACTOR: Final = 20
"""Of one address's limit, where no limit is set for its network."""


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A datagram to send."""

    datagram: bytes
    to: Address


class _PathChallengeError(Exception):
    """The peer must first prove that it receives at its new address."""


class _Lease(msgspec.Struct, frozen=True, gc=False):
    """A verified lease in the words of a slot.

    `counter` is None for a bearer lease, and only then `datagram` is the packet's tag.
    """

    role: c.Role
    jti: int
    sub: int
    cnf: int
    kid: int
    issued_s: int
    counter: int | None
    datagram: int
    cookie: bytes
    expires_ms: int
    soft_kbps: int
    hard_kbps: int
    renews: bool


def _refuse(reason: c.RejectReason, why: str) -> LeaseError:
    return LeaseError(reason, why)


class Admission:
    """Answers control packets of one worker.

    Args:
        segment: shared memory.
        locks: of the engine.
        counters: row of this worker.
        gate: bans, revocations and load.
        transitions: counts the steps of slots.
    """

    def __init__(
        self,
        segment: Segment,
        locks: Locks,
        counters: CounterRow,
        gate: Gate | None = None,
        transitions: LeaseTransitions | None = None,
    ) -> None:
        self._transitions = transitions or LeaseTransitions(segment, counters)
        self._segment = segment
        self._locks = locks
        self._counters = counters
        self._gate: Gate = gate or OpenGate()
        self._control = ControlBlock(segment)
        self._tags = Tags(segment)
        self._sessions = SessionTable(segment, self._tags)
        self._used = UsedLeases(segment)
        self._origins = LeaseOrigins(segment)
        self._verifier = LeaseVerifier(self._control, counters)
        self._cookies = PathCookies(self._control.cookie_key)
        self._strikes = Strikes(segment, locks, counters)
        self._limited_bytes = LimitedBytes(counters)
        limits, regions = self._control.limits, segment.geometry.regions
        self._host_rates = RateTable(
            segment, regions["ip_rates"], locks, per_s=limits.ip_per_s, burst=limits.ip_burst
        )
        self._network_rates = RateTable(
            segment,
            regions["network_rates"],
            locks,
            per_s=limits.network_per_s or limits.ip_per_s * _NETWORK_FACTOR,
            burst=limits.network_burst or limits.ip_burst * _NETWORK_FACTOR,
        )
        self._identity_rates = RateTable(
            segment,
            regions["identity_rates"],
            locks,
            per_s=limits.identity_per_s,
            burst=limits.identity_burst,
        )

    def handle(self, packet: ControlPacket, now: Instant) -> Answer | None:
        """Answer one control packet.

        Args:
            packet: from the engine.
            now: present moment.

        Returns:
            What to send, or None where the packet is dropped (and counted).
        """
        try:
            datagram: bytes | None
            if packet.kind is ControlKind.STUN:
                datagram = self._stun(packet, now)
            elif packet.kind is ControlKind.UNKNOWN_PATH:
                datagram = self._unknown_path(packet, now)
            else:
                datagram = self._lease(packet, now)
        except PacketError as error:
            if error.reason == "ip_rate":
                self._limited_bytes.note_refused(len(packet.datagram))
            self._counters.add_drop(error.reason, len(packet.datagram))
            return None
        except LockBusyError:
            self._counters.add_drop("lock_busy", len(packet.datagram))
            return None
        return Answer(datagram, packet.source) if datagram else None

    def _limits_allow(self, source: Address, purpose: int, now: Instant) -> bool:
        """Take one packet from the allowances of an address and of its network.

        The network is looked at first, so that many addresses of one that is used up do not even
        reach the table of addresses; it is charged last, so that one address which is over its own
        limit does not use up its neighbours'.
        """
        control, pair, now_ns = self._control, self._tags.pair, now.mono_ns
        network, family = source.network_key
        network_key = pair(network, family << 8 | purpose & 0xFF)  # without a port
        per_s, burst = control.ip_per_s, control.ip_burst
        self._network_rates.set_limit(
            control.network_per_s or per_s * _NETWORK_FACTOR,
            control.network_burst or burst * _NETWORK_FACTOR,
        )
        if not self._network_rates.is_limited(network_key, now_ns):
            if not self._host_allows(source, purpose, now):
                self._counters.add("limited_host")
                return False
            if self._network_rates.allow(network_key, now_ns):
                return True
        self._counters.add("limited_network")
        return False

    def _host_allows(self, source: Address, purpose: int, now: Instant) -> bool:
        pair = self._tags.pair
        self._host_rates.set_limit(self._control.ip_per_s, self._control.ip_burst)
        key = pair(pair(source.high, source.low), purpose)
        return self._host_rates.allow(key, now.mono_ns)

    def _identity_allows(self, sub: int, now: Instant) -> bool:
        control = self._control
        self._identity_rates.set_limit(control.identity_per_s, control.identity_burst)
        return self._identity_rates.allow(sub, now.mono_ns)

    # -- STUN and new paths --------------------------------------------------------------------

    def _stun(self, packet: ControlPacket, now: Instant) -> bytes | None:
        if not self._limits_allow(packet.source, _PURPOSE_CONTROL, now):
            raise PacketError("ip_rate")
        self._drop_blocked(packet.source, now)
        answer = stun.build_binding_response(
            packet.datagram, packet.source.packed, packet.source.port
        )
        self._counters.add("stun_answers")
        if answer is not None and len(answer) > len(packet.datagram):
            # A bare 20-byte request of a standard client.  Only this answer, and the ACK of a
            # keepalive to the address that holds the slot, are larger than their cause.
            self._counters.add("stun_answers_larger")
        return answer

    def _unknown_path(self, packet: ControlPacket, now: Instant) -> bytes:
        # Not its network's: whoever spoofs its neighbours must not use up its challenges.
        purpose = _PURPOSE_PATH | packet.source.port << _PORT_SHIFT
        if not self._host_allows(packet.source, purpose, now):
            self._counters.add("limited_host")
            raise PacketError("ip_rate")
        self._drop_blocked(packet.source, now)
        self._counters.add_drop("unknown_address", len(packet.datagram))
        return self._challenge(parse_header(packet.datagram), packet.source, now)

    def _drop_blocked(self, source: Address, now: Instant) -> None:
        """A blocked source gets no answer but BANNED to its leases."""
        try:
            self._gate.check_source(source, now)
        except LeaseError as error:
            raise PacketError("blocked") from error

    def _challenge(self, header: Header, source: Address, now: Instant) -> bytes:
        self._counters.add("sent_challenges")
        cookie = self._cookies.make(header.session_id, source, now.mono_ns)
        return build_challenge(header.session_id, cookie)

    # -- Leases ----------------------------------------------------------------------------------

    def _lease(self, packet: ControlPacket, now: Instant) -> bytes:
        header = parse_header(packet.datagram)
        present = parse_present(packet.datagram, header)
        allowed = self._limits_allow(packet.source, _PURPOSE_CONTROL, now)
        if present is None:
            if not allowed:
                raise PacketError("ip_rate")
            return self._keepalive(header, packet.source, now)
        self._counters.add("lease_presented")
        try:
            if not allowed:
                raise _refuse(c.RejectReason.RATE_LIMITED, "too many packets from this address")
            if self._gate.wants_cookie(now):
                self._check_cookie(header, present, packet.source, now)
            self._gate.check_source(packet.source, now)
            claims = self._verifier.verify(header, present, now.wall_ms)
            self._gate.check_claims(claims, now)
            check_proof(claims, present)
            lease = self._in_words(header, present, claims, packet.datagram)
            with self._locks.table():
                # Again, because a revocation may have come since; see `RevocationScan`.
                self._gate.check_claims(claims, now)
                return self._place(header, lease, packet.source, now)
        except LeaseError as error:
            self._counters.add(f"reject_{error.reason.name.lower()}")
            if error.reason is c.RejectReason.RATE_LIMITED:
                self._limited_bytes.note_refused(len(packet.datagram))
            if error.reason in VIOLATIONS:
                self._strike(header, present, packet, error.reason, now)
            return build_reject(header.session_id, error.reason)
        except _PathChallengeError:
            return self._challenge(header, packet.source, now)

    def _check_cookie(
        self, header: Header, present: LeasePresent, source: Address, now: Instant
    ) -> None:
        """Under load: no signature is checked for a source that may be spoofed.

        Whoever holds a slot of the session at this very address goes on without a cookie: a
        stranger knows neither the session's id nor who is where, and renewals must not wait.
        """
        record = self._sessions.find(*session_words(header.session_id))
        if record is not None and any(slot.is_at(source) for slot in record.slots()):
            return
        if self._has_cookie(header, present, source, now):
            return
        self._counters.add("cookie_demanded")
        if present.proof is None:
            raise _refuse(c.RejectReason.RATE_LIMITED, "a bearer lease can carry no cookie")
        raise _PathChallengeError

    def _has_cookie(
        self, header: Header, present: LeasePresent, source: Address, now: Instant
    ) -> bool:
        """Whether the packet shows that its sender receives at its address."""
        if present.proof is None or present.proof.cookie == c.NO_COOKIE:
            return False
        cookie = present.proof.cookie
        return self._cookies.is_good(cookie, header.session_id, source, now.mono_ns)

    def _strike(
        self,
        header: Header,
        present: LeasePresent,
        packet: ControlPacket,
        reason: c.RejectReason,
        now: Instant,
    ) -> None:
        if self._has_cookie(header, present, packet.source, now):
            try:
                self._strikes.strike(packet.source, reason, now)
            except LockBusyError:
                self._counters.add_drop("lock_busy", len(packet.datagram))

    def _in_words(
        self, header: Header, present: LeasePresent, claims: LeaseClaims, datagram: bytes
    ) -> _Lease:
        key, proof = claims.proof_key, present.proof
        tag = self._tags.tag
        counter = proof.counter if key is not None and proof is not None else None
        return _Lease(
            present.role,
            tag(b"jti", claims.jti.encode()),
            tag(b"sub", claims.sub.encode()),
            (tag(b"cnf", key) & _U32 or 1) if key is not None else 0,
            self._tags.key_id(claims.kid),
            claims.issued_s,
            counter,
            tag(b"datagram", datagram) if counter is None else 0,
            proof.cookie if proof is not None else c.NO_COOKIE,
            claims.expires_ms,
            claims.slimit,
            claims.hlimit,
            header.type is c.PacketType.LEASE_RENEW,
        )

    def _place(self, header: Header, lease: _Lease, source: Address, now: Instant) -> bytes:
        """Decide where a verified lease goes; needs the table lock.

        A RENEW of a session that this relay does not have (any more) is taken as its PRESENT: it
        brings the same lease and the same proof.
        """
        high, low = session_words(header.session_id)
        record = self._sessions.find(high, low)
        slot = record.slot(lease.role) if record is not None else None
        if slot is not None and not slot.jti:
            slot = None
        repeated = self._check_replay(lease, slot, source, now)
        if repeated and slot is not None:
            self._counters.add("lease_repeated")
            return self._ack(header, lease, slot, source)
        if lease.cookie == c.RELEASE_COOKIE:
            if record is not None and slot is not None and slot.jti == lease.jti:
                self._release(record, slot, lease, now)
            return b""  # Nobody waits for an answer: the peer's socket is closed.
        same_lease = slot is not None and slot.jti == lease.jti
        if not same_lease:
            self._transitions.take(
                LeaseState.ISSUED, LeaseState.PRESENTED, (high, low), now, role=lease.role
            )
        if not self._identity_allows(lease.sub, now):
            self._counters.add("limited_identity")
            raise _refuse(c.RejectReason.RATE_LIMITED, "too many leases of this identity")
        self._check_room(new_session=record is None, new_lease=not same_lease)
        if slot is not None:
            self._check_slot(header, lease, slot, source, now)
        if record is None:
            record = self._sessions.claim(high, low, self._segment.milliseconds(now.mono_ns))
            if record is None:
                raise _refuse(c.RejectReason.SESSION_FULL, "session table is full")
            self._counters.add("session_created")
        slot = record.slot(lease.role)
        with self._locks.session(record.number):
            self._accept(record, slot, lease, source, now)
        return self._ack(header, lease, slot, source)

    def _check_room(self, *, new_session: bool, new_lease: bool) -> None:
        """Refuse what a relay that drains or is nearly full does not take."""
        if new_session:
            if self._control.drain:
                raise _refuse(c.RejectReason.DRAINING, "relay takes no new sessions")
            if self._control.shedding:
                self._counters.add("sessions_shed")
                raise _refuse(c.RejectReason.SESSION_FULL, "relay sheds load")
        if new_lease and not self._used.has_room():
            raise _refuse(c.RejectReason.SESSION_FULL, "used-lease table is full")

    def _check_replay(
        self, lease: _Lease, slot: SlotRecord | None, source: Address, now: Instant
    ) -> bool:
        """Refuse a used lease without a fresh proof; True for a bearer datagram to ACK again."""
        if lease.counter == _LAST_COUNTER:
            raise _refuse(c.RejectReason.PROOF_REQUIRED, "proof counter is the reserved last one")
        if slot is not None and slot.jti == lease.jti:
            if lease.counter is not None:
                if lease.counter < slot.mark:
                    raise _refuse(c.RejectReason.REPLAYED, "proof counter did not grow")
                return False
            stamp = self._segment.milliseconds(now.mono_ns)
            age_ms = self._segment.elapsed_ms(stamp, slot.accepted_ms)
            if slot.mark == lease.datagram and slot.is_at(source) and age_ms < _BEARER_REPEAT_MS:
                return True
            raise _refuse(c.RejectReason.REPLAYED, "bearer lease was already used")
        high_water = self._used.find(lease.jti)
        if high_water is not None and (lease.counter is None or lease.counter < high_water):
            raise _refuse(c.RejectReason.REPLAYED, "lease was already used")
        return False

    def _check_slot(
        self, header: Header, lease: _Lease, slot: SlotRecord, source: Address, now: Instant
    ) -> None:
        """Identity lock and path of a slot that is taken."""
        if slot.sub != lease.sub or slot.cnf != lease.cnf:
            raise _refuse(c.RejectReason.INVALID_SIGNATURE, "slot belongs to another identity")
        if slot.is_at(source):
            return
        if lease.counter is None:
            raise _refuse(c.RejectReason.PROOF_REQUIRED, "a bearer lease cannot move")
        if not self._cookies.is_good(lease.cookie, header.session_id, source, now.mono_ns):
            raise _PathChallengeError

    # -- Transitions (all under the table lock and the record's) -----------------------------------

    def _accept(
        self,
        record: SessionRecord,
        slot: SlotRecord,
        lease: _Lease,
        source: Address,
        now: Instant,
    ) -> None:
        """Presented → Accepted, or Active → Renewed: fill the slot; `jti` goes last."""
        stamp = self._segment.milliseconds(now.mono_ns)
        held = slot.jti
        same = held == lease.jti
        counter = lease.counter
        if held:
            if not same:
                self._used.put(held, DENIED, slot.expires_ms)
            if not slot.is_at(source):
                self._counters.add("nat_rebind")
        if counter is not None and not lease.renews:
            slot.reset_window()
        slot.fill(
            source,
            expires_ms=lease.expires_ms,
            soft_kbps=lease.soft_kbps,
            hard_kbps=lease.hard_kbps,
            sub=lease.sub,
            cnf=lease.cnf,
            mark=lease.datagram if counter is None else counter + 1,
            received_ms=stamp,
        )
        self._origins.put(record.number, lease.role, lease.kid, lease.issued_s)
        if not same:
            slot.accepted_ms = stamp
        self._count_accepted(lease, taken=held != 0, same=same)
        slot.jti = lease.jti
        if not same:
            self._take_steps(record, lease.role, now, renews=held != 0)
        if record.state != SESSION_ACTIVE:
            self._activate(record, now)

    def _release(
        self, record: SessionRecord, slot: SlotRecord, lease: _Lease, now: Instant
    ) -> None:
        """Active → Waiting, or Waiting → Closed: the peer is done with this relay.

        Its lease is denied from now on; a session that both peers left is over.
        """
        if slot.sub != lease.sub or slot.cnf != lease.cnf or lease.counter is None:
            raise _refuse(c.RejectReason.INVALID_SIGNATURE, "slot belongs to another identity")
        words, before = (record.id_high, record.id_low), state_of(record)
        take = self._transitions.take
        with self._locks.session(record.number):
            self._used.put(slot.jti, DENIED, slot.expires_ms)
            slot.clear()
            self._counters.add("lease_released")
            take(before, LeaseState.CLOSED, words, now, role=lease.role, cause="released")
            if any(other.jti for other in record.slots()):
                if before is LeaseState.ACTIVE:
                    take(before, LeaseState.ACCEPTED, words, now, role=1 - lease.role)
                record.state = SESSION_WAITING
                record.created_ms = self._segment.milliseconds(now.mono_ns)
            else:
                self._sessions.release(record)
                self._counters.add("session_closed_released")

    def _take_steps(self, record: SessionRecord, role: int, now: Instant, *, renews: bool) -> None:
        words, take = (record.id_high, record.id_low), self._transitions.take
        if not renews:
            take(LeaseState.PRESENTED, LeaseState.ACCEPTED, words, now, role=role)
            return
        state = state_of(record)
        take(state, LeaseState.RENEWED, words, now, role=role)
        take(LeaseState.RENEWED, state, words, now, role=role)

    def _count_accepted(self, lease: _Lease, *, taken: bool, same: bool) -> None:
        if same:
            self._counters.add("lease_reproved")
        elif taken and lease.renews:
            self._counters.add("lease_renewed")
        else:
            self._counters.add("lease_accepted")

    def _activate(self, record: SessionRecord, now: Instant) -> None:
        """Waiting → Active, once both slots are taken."""
        client, server = record.slots()
        if client.jti and server.jti:
            record.state = SESSION_ACTIVE
            self._counters.add("session_activated")
            words = record.id_high, record.id_low
            for role in c.Role:
                self._transitions.take(
                    LeaseState.ACCEPTED, LeaseState.ACTIVE, words, now, role=role
                )

    def _ack(self, header: Header, lease: _Lease, slot: SlotRecord, source: Address) -> bytes:
        self._counters.add("sent_acks")
        reflexive = None if lease.counter is None else (source.packed, source.port)
        ack = LeaseAck(slot.expires_ms, slot.soft_kbps, slot.hard_kbps, reflexive)
        return build_ack(header.session_id, ack)

    def _keepalive(self, header: Header, source: Address, now: Instant) -> bytes:
        """Empty LEASE_RENEW: the unchanged expiry for the slot's own address, else nothing.

        The ACK is larger than the 20 bytes it answers, but goes only where an accepted lease
        came from.
        """
        high, low = session_words(header.session_id)
        record = self._sessions.find(high, low)
        if record is None:
            raise PacketError("keepalive_unknown")
        with self._locks.session(record.number):
            if not self._sessions.holds(record, high, low):
                raise PacketError("keepalive_unknown")
            slot = next((slot for slot in record.slots() if slot.is_at(source)), None)
            if slot is None:
                raise PacketError("keepalive_unknown")
            if now.wall_ms >= slot.expires_ms:
                raise PacketError("lease_expired")
            slot.received_ms = self._segment.milliseconds(now.mono_ns)
            ack = LeaseAck(slot.expires_ms, slot.soft_kbps, slot.hard_kbps)
        self._counters.add("keepalives")
        self._counters.add("sent_acks")
        return build_ack(header.session_id, ack)
