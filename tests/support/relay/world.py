"""A relay without sockets, processes or real time: shared tables, one engine, one admission."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from support.relay.mint import Mint
from wavry_peer.protocol import constants as c
from wavry_peer.protocol import ed25519, lease, packets
from wavry_peer.service.clock import Clock, Instant
from wavry_relay.admission.admission import Admission
from wavry_relay.admission.policy import AdmissionPolicy, RelayPolicy
from wavry_relay.admission.revocation_view import RevocationView
from wavry_relay.admission.transitions import LeaseTransitions
from wavry_relay.admission.verify_load import VerifyLoad
from wavry_relay.engine import open_engine
from wavry_relay.engine.base import Decision, Forward
from wavry_relay.shm.address import Address
from wavry_relay.shm.control import ControlBlock, EngineKind, Limits, WorkerRow
from wavry_relay.shm.counters import CounterRow, totals
from wavry_relay.shm.layout import Geometry
from wavry_relay.shm.segment import Segment
from wavry_relay.shm.sessions import SessionRecord, SlotRecord, session_words
from wavry_relay.shm.tables import Tables
from wavry_relay.worker.revocation_scan import RevocationScan
from wavry_relay.worker.sweep import Sweep

RELAY_ID = lease.RelayId("rly-0123456789abcdef01234567")
START_MONO_NS = 10_000_000_000_000
START_WALL_MS = 1_800_000_000_000


def v4(last: int, port: int = 5000, *, listen: int = 0) -> Address:
    """An address of 192.0.2.0/24."""
    return Address.from_ip(bytes((192, 0, 2, last)), port, listen=listen)


def v6(text_tail: int, port: int = 5000, *, listen: int = 0, scope: int = 0) -> Address:
    """An address of 2001:db8::/64."""
    packed = bytes.fromhex("20010db8") + bytes(11) + bytes((text_tail,))
    return Address.from_ip(packed, port, listen=listen, scope=scope)


class ControlAnswer(NamedTuple):
    """What the relay sends back, and a challenge after it where the address is not proved yet."""

    datagram: bytes
    to: Address
    challenge: bytes | None = None


class FakeClock(Clock):
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.instant = Instant(START_MONO_NS, START_WALL_MS)

    def now(self) -> Instant:
        return self.instant

    def advance(self, seconds: float) -> None:
        ns = round(seconds * 1e9)
        total_ns = self.instant.mono_ns + ns
        elapsed_ms = (total_ns - START_MONO_NS) // 1_000_000
        self.instant = Instant(total_ns, START_WALL_MS + elapsed_ms)


@dataclass
class Peer:
    """One side of a session; signs with its own key."""

    world: "World"
    sid: uuid.UUID
    role: c.Role
    address: Address
    key: ed25519.SigningKey
    claims: dict[str, Any] = field(default_factory=dict)
    counter: int = 0
    token: bytes = b""

    def __post_init__(self) -> None:
        self.token = self.token or self.new_token()

    def new_token(self, **claims: Any) -> bytes:
        merged = {"now_s": self.world.now.wall_ms // 1000, **self.claims, **claims}
        key = merged.pop("key", self.key)
        return self.world.mint.token(
            merged.pop("sid", self.sid),
            merged.pop("role", self.role),
            merged.pop("rid", RELAY_ID),
            key=key,
            **merged,
        )

    def datagram(
        self,
        *,
        renew: bool = False,
        cookie: bytes = c.NO_COOKIE,
        counter: int | None = None,
        token: bytes | None = None,
        proof: bool = True,
    ) -> bytes:
        """The next signed LEASE_PRESENT or LEASE_RENEW."""
        if counter is None:
            self.counter += 1
            counter = self.counter
        return packets.build_present(
            self.sid.bytes,
            self.role,
            token or self.token,
            counter=counter,
            cookie=cookie,
            sign=self.key.sign if proof else None,
            renew=renew,
        )

    def present(self, **options: Any) -> packets.Packet:
        """Present from the peer's own address; the answer."""
        answer = self.world.answer(self.datagram(**options), self.address)
        assert answer is not None
        return answer

    def accept(self, *, proved: bool = True, **options: Any) -> packets.LeaseAck:
        """Present and expect an ACK; `proved`: as if the challenge were answered too."""
        packet = self.present(**options)
        assert isinstance(packet.body, packets.LeaseAck), packet
        if proved:
            self.slot.unproved = 0
        return packet.body

    def forward(self, sequence: int, payload: bytes = b"") -> Decision:
        """Decide one plain FORWARD from the peer's own address."""
        return self.world.decide(self.frame(sequence, payload), self.address)

    def frame(self, sequence: int, payload: bytes = b"") -> bytes:
        return packets.build_forward(self.sid.bytes, sequence.to_bytes(8, "big") + payload)

    @property
    def slot(self) -> SlotRecord:
        return self.world.record(self.sid).slot(self.role)


class World:
    """One worker's view of a relay with a fake clock."""

    def __init__(
        self,
        *,
        kind: EngineKind = EngineKind.REFERENCE,
        limits: Limits | None = None,
        max_sessions: int = 64,
        workers: int = 1,
        policy: AdmissionPolicy | None = None,
        sockets: Any = (),
    ) -> None:
        self.clock = FakeClock()
        self.mint = Mint()
        self.segment = Segment.anonymous(
            Geometry(workers, max_sessions), now_ns=self.clock.now().mono_ns
        )
        self.control = ControlBlock(self.segment)
        generous = Limits(
            ip_per_s=1000,
            ip_burst=1000,
            identity_per_s=1000,
            identity_burst=1000,
            cookie_at_per_s=100_000,
        )
        self.control.initialise(RELAY_ID, limits or generous, kind)
        self.control.write_keys(self.mint.trusted(), 1)
        self.row = CounterRow(self.segment, 0)
        self.engine = open_engine(kind, self.segment, sockets, self.row, self.clock)
        self.tables = Tables(self.segment, self.engine.locks)
        self.views = [RevocationView(self.tables) for _ in range(workers)]
        self.blocks = self.tables.blocks
        self.worker_row = WorkerRow(self.segment, 0)
        self.load = VerifyLoad(self.control, self.worker_row, self.row)
        self.policy = RelayPolicy(self.views[0], self.blocks, self.load)
        self.transitions = LeaseTransitions(self.tables, self.row, strict=True)
        self.admission = Admission(
            self.tables, self.engine, self.row, policy or self.policy, self.transitions
        )
        self.table = self.tables.sessions
        self.used = self.tables.used_leases
        self.notices: list[tuple[packets.Packet, Address]] = []
        self.sweeps = [
            Sweep(self.tables, self.row, number, self._notice, self.transitions)
            for number in range(workers)
        ]
        self.scans = [
            RevocationScan(self.tables, view, number, self.sweeps[number])
            for number, view in enumerate(self.views)
        ]

    def _notice(self, datagram: bytes, to: Address) -> bool:
        self.notices.append((packets.parse_packet(datagram), to))
        return True

    def close(self) -> None:
        self.engine.close()
        self.segment.close()

    @property
    def now(self) -> Instant:
        return self.clock.now()

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def sweep(self, seconds: float = 1.1) -> None:
        """Let time pass in sweep steps, at least one whole round."""
        for _ in range(max(1, round(seconds / 0.05))):
            self.clock.advance(0.05)
            for sweep in self.sweeps:
                sweep.step(self.now)

    def scan(self) -> None:
        """Every worker looks at the revocations until there is nothing left to do."""
        for scan in self.scans:
            scan.step()
            while scan.is_busy:
                scan.step()

    def decide(self, datagram: bytes, source: Address) -> Decision:
        return self.engine.decide(datagram, source, self.now)

    def raw_answer(self, datagram: bytes, source: Address) -> ControlAnswer | None:
        """What the relay sends back for any datagram but a forwarded one."""
        decision = self.decide(datagram, source)
        if isinstance(decision, Forward) or not hasattr(decision, "kind"):
            return None
        answer = self.admission.handle(decision, self.now)
        return ControlAnswer(answer[0], source, *answer[1:]) if answer else None

    def answer(self, datagram: bytes, source: Address) -> packets.Packet | None:
        answer = self.raw_answer(datagram, source)
        return packets.parse_packet(answer.datagram) if answer else None

    def count(self, name: str) -> int:
        return totals(self.segment)[name]

    def record(self, sid: uuid.UUID) -> SessionRecord:
        record = self.table.find(*session_words(sid.bytes))
        assert record is not None
        return record

    def has(self, sid: uuid.UUID) -> bool:
        return self.table.find(*session_words(sid.bytes)) is not None

    def peer(
        self,
        role: c.Role = c.Role.CLIENT,
        *,
        sid: uuid.UUID | None = None,
        address: Address | None = None,
        **claims: Any,
    ) -> Peer:
        """A peer of a new (or the given) session that has not presented yet."""
        key = ed25519.SigningKey.from_seed(os.urandom(32))
        where = address or v4(1 + role)
        return Peer(self, sid or uuid.uuid4(), role, where, key, claims)

    def session(
        self,
        *,
        client: Address | None = None,
        server: Address | None = None,
        **claims: Any,
    ) -> tuple[Peer, Peer]:
        """Two accepted peers of a new session."""
        first = self.peer(c.Role.CLIENT, address=client, **claims)
        second = self.peer(c.Role.SERVER, sid=first.sid, address=server, **claims)
        first.accept()
        second.accept()
        return first, second


@contextmanager
def open_world(**options: Any) -> Iterator[World]:
    """A world that is closed at the end."""
    world = World(**options)
    try:
        yield world
    finally:
        world.close()


def reject_reason(packet: packets.Packet | None) -> int:
    """Reason of a LEASE_REJECT."""
    assert packet is not None
    assert isinstance(packet.body, packets.LeaseReject), packet
    return packet.body.reason
