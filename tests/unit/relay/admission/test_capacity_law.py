"""The capacity law of docs/scaling.md, on the shared memory of a relay of that size.

Signatures are left out (a million of them would take minutes): leases go to `LeaseSlots` as the
admission gives them after its checks, under the limits that a relay has unless it is told others.
"""

import itertools
import logging
import random
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from support.needs import need_engine
from support.relay.world import RELAY_ID, FakeClock

from wavry_peer.protocol import constants as c
from wavry_peer.protocol.errors import LeaseError
from wavry_peer.protocol.packets import Header
from wavry_peer.service.clock import Instant
from wavry_relay.admission.slots import LeaseSlots
from wavry_relay.admission.transitions import LeaseTransitions
from wavry_relay.config import RelayConfig
from wavry_relay.engine import open_engine
from wavry_relay.engine.cookie import PathCookies
from wavry_relay.engine.verified_lease import VerifiedLease
from wavry_relay.ops.figures import RelayFigures
from wavry_relay.shm.address import Address
from wavry_relay.shm.control import ControlBlock, EngineKind
from wavry_relay.shm.counters import CounterRow, totals
from wavry_relay.shm.layout import Geometry
from wavry_relay.shm.leases import SHARE
from wavry_relay.shm.segment import Segment
from wavry_relay.shm.sessions import session_words
from wavry_relay.shm.tables import Tables
from wavry_relay.worker.sweep import Sweep

LIFE_MS = 300_000
BOTH = (c.Role.CLIENT, c.Role.SERVER)


PLACES = [Address.from_ip(bytes((192, 0, 2, 7)), 5000 + role) for role in BOTH]
"""The law knows no addresses: all clients may be at one, and all servers."""


class Hall:
    """A relay's tables without packets."""

    def __init__(self, max_sessions: int, kind: EngineKind) -> None:
        self.clock = FakeClock()
        self.segment = Segment.anonymous(Geometry(1, max_sessions), now_ns=self.clock.now().mono_ns)
        ControlBlock(self.segment).initialise(
            RELAY_ID, RelayConfig(allow_insecure_dev=True).limits, kind
        )
        self.row = CounterRow(self.segment, 0)
        self.engine = open_engine(kind, self.segment, (), self.row, self.clock)
        self.tables = tables = Tables(self.segment, self.engine.locks)
        tables.control.log_level = logging.ERROR
        transitions = LeaseTransitions(tables, self.row, strict=True)
        cookies = PathCookies(tables.control.cookie_key)
        self.slots = LeaseSlots(tables, self.engine, self.row, cookies, transitions)
        self.sweep = Sweep(tables, self.row, 0, lambda _datagram, _to: True, transitions)
        self.random = random.Random(8)
        self.counters = itertools.count(1)

    @property
    def now(self) -> Instant:
        return self.clock.now()

    def lease(self, sid: int, role: c.Role, sub: int, *, renews: bool = False) -> VerifiedLease:
        return VerifiedLease(
            role=role,
            jti=self.random.getrandbits(64) | 1,
            sub=sub,
            cnf=sid & 0xFFFF or 1,
            kid=7,
            issued_s=self.now.wall_ms // 1000,
            counter=next(self.counters),
            releases=False,
            proves=True,
            size_bytes=900,
            expires_ms=self.now.wall_ms + LIFE_MS,
            soft_kbps=0,
            hard_kbps=1000,
            renews=renews,
        )

    def place(self, sid: int, lease: VerifiedLease) -> None:
        kind = c.PacketType.LEASE_RENEW if lease.renews else c.PacketType.LEASE_PRESENT
        header = Header(kind, 0, sid.to_bytes(16, "big"))
        with self.tables.locks.table():
            self.slots.place(header, lease, PLACES[lease.role], self.now)

    def place_many(self, leases: Iterable[tuple[int, VerifiedLease]]) -> None:
        """Place leases of which most are ordinary cases: `Engine.admit` first, as `place` does."""
        admit, now_ns = self.engine.admit, self.now.mono_ns
        with self.tables.locks.table():
            others = [
                (sid, lease)
                for sid, lease in leases
                if not admit(
                    session_words(sid.to_bytes(16, "big")), lease, PLACES[lease.role], now_ns
                )
            ]
        for sid, lease in others:
            self.place(sid, lease)

    def take(self, sid: int, role: c.Role, sub: int) -> VerifiedLease:
        lease = self.lease(sid, role, sub)
        self.place(sid, lease)
        return lease

    def give_back(self, sid: int, lease: VerifiedLease) -> None:
        values = {name: getattr(lease, name) for name in lease.__struct_fields__}
        values |= {"releases": True, "counter": next(self.counters)}
        self.place(sid, VerifiedLease(**values))

    def sub(self) -> int:
        return self.random.getrandbits(64) | 1

    def close(self) -> None:
        self.engine.close()
        self.segment.close()


@pytest.fixture
def hall(request: pytest.FixtureRequest) -> Iterator[Hall]:
    kind, size = request.param
    made = Hall(size, need_engine(kind))
    yield made
    made.close()


# The pure twin decides the same, more slowly: it takes the small sizes.
CASES = [
    *((EngineKind.REFERENCE, size) for size in (1000, 1024)),
    *((EngineKind.NATIVE, size) for size in (1000, 1024, 10_000, 65_536)),
]
SMALLEST = [(kind, size) for kind, size in CASES if size == 1000]
SIZES = pytest.mark.parametrize(
    "hall", CASES, ids=[f"{kind.name.lower()}-{size}" for kind, size in CASES], indirect=True
)


@SIZES
def test_all_live_sessions_renew_within_a_second_after_churn(hall: Hall) -> None:
    """N sessions that began together; slots were taken and given back before, at the limit."""
    size = hall.segment.geometry.max_sessions
    slots = [(sid, role, hall.sub()) for sid in range(1, size + 1) for role in BOTH]
    rounds, step = (2, 1) if size <= 1024 else (1, size // 1024)
    for slot in slots[::step] * rounds:
        hall.give_back(slot[0], hall.take(*slot))
    hall.place_many((slot[0], hall.lease(*slot)) for slot in slots)
    assert hall.tables.sessions.count_states() == (0, size)
    hall.clock.advance(LIFE_MS * 0.8 / 1000)
    hall.place_many((slot[0], hall.lease(*slot, renews=True)) for slot in slots)
    counts = totals(hall.segment)
    assert counts["lease_renewed"] == 2 * size
    assert counts["transition_active_renewed"] == 2 * size
    used = hall.tables.used_leases
    assert used.count <= 2 * size <= used.limit
    assert used.floor_s == 0, "nobody's lease is denied by date"


@SIZES
def test_churn_of_a_few_users_costs_nobody_else_a_place(hall: Hall) -> None:
    """Short calls of a hundred users beside full sessions: 536 of two users were enough once."""
    size = hall.segment.geometry.max_sessions
    innocent = [(sid, role, hall.sub()) for sid in range(1, min(size, 1024) - 8) for role in BOTH]
    unused = [hall.lease(size + 5, c.Role.CLIENT, hall.sub()) for _ in range(3)]
    hall.place_many((slot[0], hall.lease(*slot)) for slot in innocent)
    churners = [hall.sub() for _ in range(20)]
    sids = itertools.count(1 << 30)
    for _ in range(SHARE // 2 + 8):
        for first, second in itertools.pairwise([*churners, churners[0]]):
            sid = next(sids)
            leases = [
                hall.take(sid, role, sub) for role, sub in zip(BOTH, (first, second), strict=True)
            ]
            for lease in leases:
                hall.give_back(sid, lease)
        hall.clock.advance(0.5)  # two calls each in half a second: under the limit of an identity
    used = hall.tables.used_leases
    assert used.count <= SHARE * len(churners)
    assert used.count < 0.8 * used.limit
    hall.place_many((slot[0], hall.lease(*slot, renews=True)) for slot in innocent)
    assert totals(hall.segment)["lease_renewed"] == len(innocent)
    hall.place(size + 5, unused[0])  # A lease that waited all the time is as good as before.
    hall.take(next(sids), c.Role.CLIENT, churners[0])
    assert used.floor_s == 0


@pytest.mark.parametrize("hall", SMALLEST, indirect=True)
def test_place_of_a_user_is_bounded_and_none_of_his_leases_comes_back(hall: Hall) -> None:
    churner, spent = hall.sub(), []
    for sid in range(1, 4 * SHARE):
        lease = hall.take(sid, c.Role.CLIENT, churner)
        hall.give_back(sid, lease)
        spent.append((sid, lease))
        hall.clock.advance(0.25)
    assert hall.tables.used_leases.count == SHARE
    for sid, lease in spent:
        values = {name: getattr(lease, name) for name in lease.__struct_fields__}
        again = VerifiedLease(**values | {"counter": next(hall.counters)})
        with pytest.raises(LeaseError) as refused:
            hall.place(sid, again)
        assert refused.value.reason is c.RejectReason.REPLAYED


@pytest.mark.parametrize("hall", SMALLEST, indirect=True)
def test_health_says_so_before_anybody_is_refused(hall: Hall) -> None:
    workers = SimpleNamespace(count=1, running=lambda: 1)
    relay: Any = SimpleNamespace(tables=hall.tables, workers=workers)
    figures = RelayFigures(relay, hall.clock)
    used, sids = hall.tables.used_leases, itertools.count(1)
    while figures.status == "ok":
        sid = next(sids)
        hall.give_back(sid, hall.take(sid, c.Role.CLIENT, hall.sub()))
    assert figures.status == "degraded"
    assert 0.79 * used.limit < used.count < 0.82 * used.limit
    assert used.floor_s == 0
