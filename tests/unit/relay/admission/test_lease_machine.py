"""A relay and a model of it, side by side: whatever peers, thieves, time and operators do.

The model is written from protocol.md sections 2 and 3 and knows nothing of the relay's tables.
After each act it says what the answer must be, who may forward, and how often each step was taken.
"""

import contextlib
import tempfile
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.relay.revocation import GivenOrders
from support.relay.world import Peer, World, v4

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import lease, packets
from wavry_peer.protocol.constants import RejectReason as R
from wavry_relay.admission.admission import Admission
from wavry_relay.admission.policy import RelayPolicy
from wavry_relay.admission.revocation_view import RevocationView
from wavry_relay.engine import open_engine
from wavry_relay.engine.base import ControlKind, ControlPacket, Drop, Forward
from wavry_relay.shm.address import Address
from wavry_relay.shm.control import Drain, EngineKind
from wavry_relay.shm.counters import totals
from wavry_relay.shm.layout import SESSION_ACTIVE
from wavry_relay.shm.lease_states import TRANSITIONS, LeaseState, counter_name
from wavry_relay.shm.tables import Tables
from wavry_relay.worker.revocation_scan import RevocationScan
from wavry_relay.worker.sweep import Sweep

S = LeaseState
SECOND_PEER_MS, GONE_MS, IDLE_MS = 30_000, 45_000, 60_000
CHALLENGE, ACK, NOTHING = "challenge", "ack", "nothing"
Outcome = R | str


def role_of(own: lease.LeaseClaims) -> c.Role:
    return c.Role[own.role.upper()]


@dataclass
class Held:
    """A slot of the model."""

    lease: lease.LeaseClaims
    address: Address
    mark: int
    received_ms: int


@dataclass
class Session:
    """A session of the model."""

    created_ms: int
    slots: dict[c.Role, Held] = field(default_factory=dict)
    active: bool = False

    @property
    def state(self) -> LeaseState:
        return S.ACTIVE if self.active else S.ACCEPTED


class Model:
    """What protocol.md says."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.used: dict[str, int | None] = {}
        """High-water counter of a lease that lost its slot; None: denied."""
        self.revoked: dict[tuple[str, str], int] = {}
        self.draining = False
        self.steps: Counter[tuple[LeaseState, LeaseState]] = Counter()

    def is_revoked(self, own: lease.LeaseClaims) -> bool:
        named = {"jti": own.jti, "session": own.sid, "sub": own.sub, "kid": own.kid}
        return any(own.issued_s <= self.revoked.get(key, -1) for key in named.items())

    def present(
        self,
        own: lease.LeaseClaims,
        proof: packets.Proof | None,
        source: Address,
        now_ms: int,
        *,
        good_key: bool,
        good_cookie: bool,
        release: bool,
    ) -> Outcome:
        if own.expires_ms <= now_ms:
            return R.EXPIRED
        if self.is_revoked(own):
            return R.REVOKED
        if proof is None or not good_key:
            return R.PROOF_REQUIRED
        session = self.sessions.get(own.sid)
        held = session.slots.get(role_of(own)) if session else None
        same = held is not None and held.lease.jti == own.jti
        if held is not None and same:
            if proof.counter <= held.mark:
                return R.REPLAYED
        elif own.jti in self.used:
            mark = self.used[own.jti]
            if mark is None or proof.counter <= mark:
                return R.REPLAYED
        if release:
            if session is not None and same:
                self._release(own, session, now_ms)
            return NOTHING
        if not same:
            self.steps[S.ISSUED, S.PRESENTED] += 1
        if session is None and self.draining:
            return R.DRAINING
        if held is not None:
            if (held.lease.sub, held.lease.cnf) != (own.sub, own.cnf):
                return R.INVALID_SIGNATURE
            if held.address != source and not good_cookie:
                return CHALLENGE
        if session is None:
            session = self.sessions[own.sid] = Session(now_ms)
        if held is None:
            self.steps[S.PRESENTED, S.ACCEPTED] += 1
        elif not same:
            self.used[held.lease.jti] = None
            self.steps[session.state, S.RENEWED] += 1
            self.steps[S.RENEWED, session.state] += 1
        session.slots[role_of(own)] = Held(own, source, proof.counter, now_ms)
        if len(session.slots) == 2 and not session.active:
            session.active = True
            self.steps[S.ACCEPTED, S.ACTIVE] += 2
        return ACK

    def _release(self, own: lease.LeaseClaims, session: Session, now_ms: int) -> None:
        self.steps[session.state, S.CLOSED] += 1
        del session.slots[role_of(own)]
        self.used[own.jti] = None
        for role, left in list(session.slots.items()):
            if now_ms - left.received_ms >= GONE_MS:  # nobody is left
                self.steps[session.state, S.CLOSED] += 1
                self.used[left.lease.jti] = left.mark
                del session.slots[role]
        if not session.slots:
            del self.sessions[own.sid]
            return
        if session.active:
            self.steps[S.ACTIVE, S.ACCEPTED] += 1
        session.active, session.created_ms = False, now_ms

    def forward(self, sid: str, source: Address, now_ms: int) -> object:
        session = self.sessions.get(sid)
        if session is None:
            return Drop("unknown_session")
        role = next((r for r, held in session.slots.items() if held.address == source), None)
        if role is None:
            return ControlKind.UNKNOWN_PATH
        if not session.active:
            return Drop("not_active")
        if session.slots[role].lease.expires_ms <= now_ms:
            return Drop("lease_expired")
        session.slots[role].received_ms = now_ms
        return Forward(session.slots[c.Role(1 - role)].address)

    def keepalive(self, sid: str, source: Address, now_ms: int) -> int | None:
        session = self.sessions.get(sid)
        for held in session.slots.values() if session else ():
            if held.address == source:
                if held.lease.expires_ms <= now_ms:
                    return None
                held.received_ms = now_ms
                return held.lease.expires_ms
        return None

    def sweep(self, now_ms: int) -> None:
        for sid, session in list(self.sessions.items()):
            held = session.slots.values()
            over = (
                all(one.lease.expires_ms <= now_ms for one in held)
                or (not session.active and now_ms - session.created_ms >= SECOND_PEER_MS)
                or (session.active and all(now_ms - one.received_ms >= IDLE_MS for one in held))
            )
            if over:
                self._close(sid, now_ms, revoked=False)

    def cut_revoked(self, now_ms: int) -> None:
        for sid, session in list(self.sessions.items()):
            if any(self.is_revoked(held.lease) for held in session.slots.values()):
                self._close(sid, now_ms, revoked=True)

    def _close(self, sid: str, now_ms: int, *, revoked: bool) -> None:
        session = self.sessions.pop(sid)
        for held in session.slots.values():
            end = S.EXPIRED if held.lease.expires_ms <= now_ms else S.CLOSED
            self.steps[session.state, S.REVOKED if revoked else end] += 1
            self.used[held.lease.jti] = held.mark


class LeaseMachine(RuleBasedStateMachine):
    """Acts on both; `kind` is the engine."""

    kind: ClassVar[EngineKind]

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.world = World(kind=self.kind)
        self.world.control.log_level = 50  # The log has tests of its own.
        self.stack.callback(self.world.close)
        directory = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.orders = GivenOrders(self.world, directory / "state")
        self.model = Model()
        self.peers: list[Peer] = []
        self.sent: list[tuple[Peer, bytes, Address]] = []
        self.sequence = 0
        self.ports = 5000

    def teardown(self) -> None:
        self.stack.close()

    # -- Sides -------------------------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        return self.world.now.wall_ms

    def claims(self, token: bytes) -> lease.LeaseClaims:
        return lease.open_lease(token, self.world.mint.trusted())

    def new_session(self) -> None:
        sid = uuid.uuid4()
        for role in c.Role:
            where = v4(2 + len(self.peers) % 200)
            name = f"user-{len(self.peers)}"
            self.peers.append(self.world.peer(role, sid=sid, address=where, sub=name))

    def peer_of(self, number: int) -> Peer:
        return self.peers[number % len(self.peers)]

    def send(
        self,
        peer: Peer,
        datagram: bytes,
        source: Address,
        *,
        good_key: bool = True,
        good_cookie: bool = False,
        release: bool = False,
    ) -> bytes | None:
        """One lease packet to both; they must agree.  The cookie, if there is one."""
        present = packets.parse_packet(datagram).body
        assert isinstance(present, packets.LeasePresent)
        expected = self.model.present(
            self.claims(present.token),
            present.proof,
            source,
            self.now_ms,
            good_key=good_key,
            good_cookie=good_cookie,
            release=release,
        )
        answer = self.world.raw_answer(datagram, source)
        if good_key and not release:
            self.sent.append((peer, datagram, source))
        if answer is None:
            assert expected == NOTHING
            return None
        assert len(answer.datagram) <= len(datagram)
        body = packets.parse_packet(answer.datagram).body
        if isinstance(body, packets.LeaseAck):
            assert expected == ACK, expected
            assert body.expires_ms == self.claims(present.token).expires_ms
        elif isinstance(body, packets.LeaseReject):
            assert expected == R(body.reason), (expected, R(body.reason))
        else:
            assert isinstance(body, packets.PathChallenge)
            assert expected == CHALLENGE
            return body.cookie
        return None

    # -- Peers -------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.new_session()
        self.new_session()

    @precondition(lambda self: len(self.peers) < 16)
    @rule()
    def another_session(self) -> None:
        self.new_session()

    @rule(number=st.integers(0, 15), renew=st.booleans())
    def present(self, number: int, renew: bool) -> None:
        peer = self.peer_of(number)
        self.send(peer, peer.datagram(renew=renew), peer.address)

    @rule(first=st.integers(0, 7))
    def both_present(self, first: int) -> None:
        for number in (2 * first, 2 * first + 1):
            self.present(number, False)

    @rule(number=st.integers(0, 15), renew=st.booleans(), ttl_s=st.sampled_from([60, 300]))
    def renew_with_a_new_lease(self, number: int, renew: bool, ttl_s: int) -> None:
        peer = self.peer_of(number)
        peer.token = peer.new_token(ttl_s=ttl_s)
        self.send(peer, peer.datagram(renew=renew), peer.address)

    @precondition(lambda self: self.sent)
    @rule(at=st.integers(0, 1000))
    def duplicate(self, at: int) -> None:
        """The same bytes again from the same address; their cookie, if any, may be stale by now,
        which matters only where the packet is no duplicate for the relay."""
        peer, datagram, source = self.sent[at % len(self.sent)]
        present = packets.parse_packet(datagram).body
        assert isinstance(present, packets.LeasePresent)
        if present.proof is None or present.proof.cookie == c.NO_COOKIE:
            self.send(peer, datagram, source)

    @rule(number=st.integers(0, 15))
    def bare_renew_never_extends(self, number: int) -> None:
        peer = self.peer_of(number)
        expected = self.model.keepalive(str(peer.sid), peer.address, self.now_ms)
        answer = self.world.answer(b"W\x01\x04\0" + peer.sid.bytes, peer.address)
        if expected is None:
            assert answer is None
        else:
            assert answer is not None
            assert isinstance(answer.body, packets.LeaseAck)
            assert answer.body.expires_ms == expected

    @rule(number=st.integers(0, 15))
    def forward(self, number: int) -> None:
        peer = self.peer_of(number)
        self.sequence += 1
        expected = self.model.forward(str(peer.sid), peer.address, self.now_ms)
        found = peer.forward(self.sequence)
        assert (found.kind if isinstance(found, ControlPacket) else found) == expected

    @rule(number=st.integers(0, 15), proves=st.booleans())
    def rebind(self, number: int, proves: bool) -> None:
        peer = self.peer_of(number)
        self.ports += 1
        old, new = peer.address, v4(peer.address.packed[3], self.ports)
        peer.address = new
        cookie = self.send(peer, peer.datagram(), new)
        if cookie is not None and proves:
            self.send(peer, peer.datagram(cookie=cookie), new, good_cookie=True)
        held = self.model.sessions.get(str(peer.sid))
        if held is None or all(one.address != new for one in held.slots.values()):
            peer.address = old

    @rule(number=st.integers(0, 15))
    def thief_with_a_copied_lease_moves_nothing(self, number: int) -> None:
        peer = self.peer_of(number)
        thief = self.world.peer(peer.role, sid=peer.sid, address=v4(250))
        thief.token = peer.token
        thief.counter = peer.counter + 1000
        self.send(thief, thief.datagram(), thief.address, good_key=False)

    @rule(number=st.integers(0, 15))
    def another_identity_takes_no_taken_slot(self, number: int) -> None:
        victim = self.peer_of(number)
        session = self.model.sessions.get(str(victim.sid))
        if session is None or victim.role not in session.slots:
            return
        other = self.world.peer(victim.role, sid=victim.sid, address=v4(251), sub="mallory")
        self.send(other, other.datagram(), other.address)
        self.sent.pop()

    @rule(number=st.integers(0, 15))
    def give_back(self, number: int) -> None:
        peer = self.peer_of(number)
        datagram = peer.datagram(renew=True, cookie=c.RELEASE_COOKIE)
        self.send(peer, datagram, peer.address, release=True)

    # -- Time and operators --------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.5, 3, 6, 31, 61, 250]))
    def time_passes(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule()
    def sweep(self) -> None:
        Sweep(
            self.world.tables, self.world.row, 0, self.world._notice, self.world.transitions
        ).step(self.world.now)  # fmt: skip
        self.model.sweep(self.now_ms)

    @rule(number=st.integers(0, 15), kind=st.sampled_from(["jti", "session", "sub", "kid"]))
    def revoke(self, number: int, kind: str) -> None:
        own = self.claims(self.peer_of(number).token)
        value = {"jti": own.jti, "session": own.sid, "sub": own.sub, "kid": own.kid}[kind]
        row = self.orders.row(kind, value)
        assert self.orders.kept.take(row, "stream")
        self.model.revoked[kind, value] = row.issued_until
        self.world.sweeps[0].step(self.world.now)  # A worker sweeps before it scans: now it knows
        self.model.sweep(self.now_ms)  # the time; and its sweep may end what is over.
        self.world.scan()
        self.model.cut_revoked(self.now_ms)
        self.world.advance(1)

    @rule()
    def drain_or_undrain(self) -> None:
        self.model.draining = not self.model.draining
        self.world.control.drain = Drain.LOCAL if self.model.draining else Drain.NONE

    @rule()
    def worker_is_replaced(self) -> None:
        """Another process with nothing but the segment."""
        world = self.world
        world.engine.close()
        world.engine = open_engine(self.kind, world.segment, (), world.row, world.clock)
        world.tables = tables = Tables(world.segment, world.engine.locks)
        world.views = [RevocationView(tables)]
        world.policy = RelayPolicy(world.views[0], world.blocks, world.load)
        world.admission = Admission(
            tables, world.engine, world.row, world.policy, world.transitions
        )
        world.sweeps = [Sweep(tables, world.row, 0, world._notice, world.transitions)]
        world.scans = [RevocationScan(tables, world.views[0], 0, world.sweeps[0])]

    # -- What always holds -----------------------------------------------------------------------

    @invariant()
    def sessions_and_states_agree(self) -> None:
        found: dict[str, Any] = {}
        for record in self.world.table.live():
            slots = zip(c.Role, record.slots(), strict=True)
            found[str(uuid.UUID(bytes=record.session_id))] = (
                record.state == SESSION_ACTIVE,
                {role: (slot.address, slot.expires_ms) for role, slot in slots if slot.jti},
            )
        expected = {
            sid: (
                session.active,
                {role: (one.address, one.lease.expires_ms) for role, one in session.slots.items()},
            )
            for sid, session in self.model.sessions.items()
        }
        assert found == expected

    @invariant()
    def every_step_was_counted_once(self) -> None:
        counts = totals(self.world.segment)
        found = {pair: counts[counter_name(*pair)] for pair in TRANSITIONS}
        assert +Counter(found) == +self.model.steps
        assert not counts["internal_errors"]


def machine(kind: EngineKind) -> Any:
    made = type(f"LeaseMachine{kind.name}", (LeaseMachine,), {"kind": kind})
    case = made.TestCase
    case.settings = settings(
        max_examples=60,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return case


TestReference = machine(EngineKind.REFERENCE)
TestNative = pytest.mark.usefixtures("native")(machine(EngineKind.NATIVE))
