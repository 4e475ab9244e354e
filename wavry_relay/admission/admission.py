"""Admission: control packets in, answers out.

Checks, in this order, cheapest first (protocol.md section 3); the first "no" names the reason:

    size, magic                engine
    limits of the source       engine (`SourceLimits`)
    [cookie under load], ban   `AdmissionPolicy`, `_check_cookie`
    token shape … horizon      `LeaseVerifier`
    revoked                    `AdmissionPolicy`
    proof                      `proof_check`
    jti / counter replay       `LeaseSlots` from here on
    [slot given back]
    identity limit
    drain, shedding, capacity
    identity lock, path
    → accepted
"""

from collections.abc import Callable, Sequence

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import stun
from wavry_peer.protocol.errors import LeaseError, PacketError
from wavry_peer.protocol.lease import LeaseClaims, proof_check, require_proof
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
from wavry_peer.service.clock import Instant
from wavry_relay.engine.base import Answer, ControlKind, ControlPacket, Engine, SenderClass
from wavry_relay.engine.cookie import PathCookies
from wavry_relay.engine.verified_lease import tagged_lease
from wavry_relay.shm.address import Address
from wavry_relay.shm.counters import CounterRow
from wavry_relay.shm.locks import LockBusyError
from wavry_relay.shm.sessions import session_words
from wavry_relay.shm.tables import Tables

from .policy import AdmissionPolicy, OpenPolicy
from .signature_rounds import Steps, run_all, run_one
from .slots import LeaseSlots, PathChallengeError
from .strikes import VIOLATIONS, Strikes
from .transitions import LeaseTransitions
from .verifier import LeaseVerifier

__all__ = ["Admission"]


def _refuse(reason: c.RejectReason, why: str) -> LeaseError:
    return LeaseError(reason, why)


class Admission:
    """Answers control packets of one worker.

    Args:
        tables: shared with the other workers.
        engine: may take the ordinary cases.
        counters: row of this worker.
        policy: bans, revocations and load.
        transitions: counts the steps of slots.
    """

    def __init__(
        self,
        tables: Tables,
        engine: Engine,
        counters: CounterRow,
        policy: AdmissionPolicy | None = None,
        transitions: LeaseTransitions | None = None,
    ) -> None:
        self._segment = tables.segment
        self._locks = tables.locks
        self._tags = tables.tags
        self._sessions = tables.sessions
        self._counters = counters
        self._policy: AdmissionPolicy = policy or OpenPolicy()
        self._verifier = LeaseVerifier(tables.control, counters)
        self._cookies = PathCookies(tables.control.cookie_key)
        self._strikes = Strikes(tables, counters)
        self._transitions = transitions or LeaseTransitions(tables, counters)
        self._slots = LeaseSlots(tables, engine, counters, self._cookies, self._transitions)

    def handle(self, packet: ControlPacket, now: Instant) -> Answer:
        """Answer one control packet.

        Args:
            packet: from the engine.
            now: present moment.

        Returns:
            What to send; nothing where the packet is dropped (and counted).
        """
        return run_one(self._steps(packet, now))

    def handle_all(
        self,
        packets: Sequence[ControlPacket],
        now: Instant,
        on_defect: Callable[[Exception], None],
    ) -> list[Answer]:
        """Answer the control packets of a batch, as `handle` would answer each.

        Their signatures are checked in rounds; see `run_all`.

        Args:
            packets: from the engine.
            now: present moment.
            on_defect: told of a packet that a defect of the relay has cost.
        """
        return run_all([self._steps(packet, now) for packet in packets], on_defect)

    def _steps(self, packet: ControlPacket, now: Instant) -> Steps:
        """Take the way of one packet; stop where a signature has to be checked."""
        try:
            if packet.kind is ControlKind.LEASE:
                return (yield from self._lease(packet, now))
            if packet.kind is ControlKind.STUN:
                answer = self._stun(packet, now)
                return (answer,) if answer else ()
            return (self._unknown_path(packet, now),)
        except PacketError as error:
            self._counters.add_drop(error.reason, len(packet.datagram))
        except LockBusyError:
            self._counters.add_drop("lock_busy", len(packet.datagram))
        return ()

    # -- STUN and new paths --------------------------------------------------------------------

    def _stun(self, packet: ControlPacket, now: Instant) -> bytes | None:
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
        self._drop_blocked(packet.source, now)
        self._counters.add_drop("unknown_address", len(packet.datagram))
        return self._challenge(parse_header(packet.datagram), packet.source, now)

    def _drop_blocked(self, source: Address, now: Instant) -> None:
        """Give a blocked source no answer but BANNED to its leases."""
        try:
            self._policy.check_source(source, now)
        except LeaseError as error:
            raise PacketError("blocked") from error

    def _challenge(self, header: Header, source: Address, now: Instant) -> bytes:
        self._counters.add("sent_challenges")
        cookie = self._cookies.make(header.session_id, source, now.mono_ns)
        return build_challenge(header.session_id, cookie)

    # -- Leases ----------------------------------------------------------------------------------

    def _lease(self, packet: ControlPacket, now: Instant) -> Steps:
        header = parse_header(packet.datagram)
        present = parse_present(packet.datagram, header)
        if present is None:
            return (self._keepalive(header, packet.source, now),)
        self._counters.add("lease_presented")
        claims: LeaseClaims | None = None
        try:
            if self._policy.wants_cookie(now):
                self._check_cookie(present, packet.sender)
            if packet.sender is not SenderClass.SLOT:
                self._policy.check_source(packet.source, now)
            claims = yield from self._verifier.verify(header, present, now.wall_ms)
            self._policy.check_claims(claims, now)
            proof, check = proof_check(claims, present)
            require_proof(holds=bool((yield check)))
            proves = self._has_cookie(header, present, packet, now)
            lease = tagged_lease(self._tags, header, present, claims, proof=proof, proves=proves)
            with self._locks.table():
                # Again, because a revocation may have come since; see `RevocationScan`.
                self._policy.check_claims(claims, now)
                answer = self._slots.place(header, lease, packet.source, now)
        except LeaseError as error:
            if claims is not None:
                reason = error.reason.name.lower()
                self._transitions.tell_admission(header, present.role, claims.req, now, reason)
            self._counters.add(f"reject_{error.reason.name.lower()}")
            if error.reason is c.RejectReason.RATE_LIMITED:
                self._counters.add("limited_bytes_identity", len(packet.datagram))
            if error.reason in VIOLATIONS:
                self._strike(packet, error.reason, now)
            return (build_reject(header.session_id, error.reason),)
        except PathChallengeError:
            return (self._challenge(header, packet.source, now),)
        self._transitions.tell_admission(header, present.role, claims.req, now)
        return answer

    def _check_cookie(self, present: LeasePresent, sender: SenderClass) -> None:
        """Check no signature, under load, for a source that may be spoofed.

        Whoever holds a slot of the session at this very address goes on without a cookie: a
        stranger knows neither the session's id nor who is where, and renewals must not wait.
        """
        if sender is not SenderClass.STRANGER:
            return
        if present.proof is None:
            raise _refuse(c.RejectReason.PROOF_REQUIRED, "packet has no proof, so no cookie")
        self._counters.add("cookie_demanded")
        raise PathChallengeError

    def _has_cookie(
        self, header: Header, present: LeasePresent, packet: ControlPacket, now: Instant
    ) -> bool:
        """Return whether the sender receives at its address, whichever allowance had room."""
        if packet.sender is not SenderClass.SLOT or present.proof is None:
            return packet.sender is SenderClass.PROVED
        cookie = present.proof.cookie
        return self._cookies.is_good(cookie, header.session_id, packet.source, now.mono_ns)

    def _strike(self, packet: ControlPacket, reason: c.RejectReason, now: Instant) -> None:
        if packet.sender is SenderClass.PROVED:
            try:
                self._strikes.strike(packet.source, reason, now)
            except LockBusyError:
                self._counters.add_drop("lock_busy", len(packet.datagram))

    def _keepalive(self, header: Header, source: Address, now: Instant) -> bytes:
        """Answer an empty LEASE_RENEW: the expiry, unchanged, to the slot's own address.

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
            datagram = build_ack(header.session_id, ack)
            slot.credit(c.HEADER_BYTES)
            slot.spend(len(datagram))
        self._counters.add("keepalives")
        self._counters.add("sent_acks")
        return datagram
