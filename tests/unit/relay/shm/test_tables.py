"""Session table and used leases against plain Python models."""

import random
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.relay.world import World, open_world, reject_reason

from wavry_peer.protocol.constants import RejectReason, Role
from wavry_peer.protocol.lease import RelayId
from wavry_relay.shm import layout
from wavry_relay.shm.control import ControlBlock, EngineKind, Limits
from wavry_relay.shm.layout import Geometry
from wavry_relay.shm.leases import KEEP_MS, SHARE, LeaseHistory, Leftover, UsedLeases
from wavry_relay.shm.segment import Segment
from wavry_relay.shm.sessions import SessionTable, session_words
from wavry_relay.shm.tables import SegmentTables
from wavry_relay.shm.tags import Tags


@pytest.fixture
def world() -> Iterator[World]:
    with open_world(max_sessions=8) as world:
        yield world


def words(number: int) -> tuple[int, int]:
    return session_words(number.to_bytes(16, "big"))


AGES = st.sampled_from([0, 1, 59, 60, 61, (1 << 31) - 1, 1 << 31, (1 << 32) - 1])


def test_no_table_is_made_before_the_keys_that_its_tags_take() -> None:
    """A supervisor whose tables were made before revoked nothing: its tags were nobody's."""
    segment = Segment.anonymous(Geometry(1, 8), now_ns=1)
    with pytest.raises(ValueError, match="initialise it first"):
        SegmentTables(segment)
    segment.close()


class TestSessions:
    def test_full_table_gives_no_record(self, world: World) -> None:
        for number in range(8):
            assert world.table.claim(*words(number + 1), 0) is not None
        assert world.table.claim(*words(99), 0) is None
        record = world.table.find(*words(3))
        assert record is not None
        world.table.release(record)
        assert world.table.claim(*words(99), 0) is not None

    def test_released_record_is_clean_for_its_next_session(self, world: World) -> None:
        record = world.table.claim(*words(1), 5)
        assert record is not None
        slot = record.slot(0)
        slot.jti, slot.mark, slot.tat_ns = 7, 8, 9
        slot.commit(5000)
        record.tat_ns = 1 << 63
        world.table.release(record)
        again = world.table.claim(*words(2), 6)
        assert again is not None
        slot = again.slot(0)
        assert (slot.jti, slot.mark, slot.tat_ns, slot.window_head) == (0, 0, 0, 0)
        assert (again.tat_ns, again.created_ms) == (0, 6)
        assert slot.check(5000, 1 << 20).value == "fresh"

    @settings(max_examples=60, deadline=None)
    @given(
        rows=st.lists(
            st.tuples(
                st.sampled_from([0, 1, 2]),
                st.integers(999, 1001),
                AGES,
                AGES,
                st.booleans(),
            ),
            min_size=70,
            max_size=70,
        ),
        stamp=st.sampled_from([0, 5, 60, 1 << 31, (1 << 32) - 1]),
    )
    def test_doubtful_sessions_are_those_that_a_look_at_each_finds(
        self, rows: list[tuple[int, int, int, int, bool]], stamp: int
    ) -> None:
        with open_world(max_sessions=70) as world:
            wanted = []
            elapsed_ms = world.segment.elapsed_ms
            for _ in rows:
                world.table._allocate()
            for number, (state, expires_ms, *ages_ms, taken) in enumerate(rows):
                record = world.table.record(number)
                record.state = state
                record.slot(Role.CLIENT).expires_ms = expires_ms
                for slot, age_ms in zip(record.slots(), ages_ms, strict=True):
                    slot.received_ms = stamp - age_ms & 0xFFFFFFFF
                well = (
                    state == layout.SESSION_ACTIVE
                    and expires_ms > 1000
                    and all(elapsed_ms(stamp, slot.received_ms) < 60 for slot in record.slots())
                )
                if not taken:
                    world.table.free_bit(number)
                elif not well:
                    wanted.append(number)
            found = [
                record.number
                for word in range(world.table.bitmap_words)
                for record in world.table.doubtful(word, 1000, stamp, 60)
            ]
            assert found == wanted

    def test_index_does_not_fill_with_deleted_words(self, world: World) -> None:
        """Many more sessions than the index has places, one after the other."""
        for number in range(1, 500):
            record = world.table.claim(*words(number), 0)
            assert record is not None
            world.table.release(record)
        region = world.segment.geometry.regions["index"]
        index = world.segment.u64[region.offset // 8 : region.end // 8]
        assert set(index) == {layout.INDEX_EMPTY}
        index.release()

    def test_count_states(self, world: World) -> None:
        world.session()
        world.peer().accept()
        assert world.table.count_states() == (1, 1)


class SessionMachine(RuleBasedStateMachine):
    """Claims and releases in any order: the table agrees with a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.segment = Segment.anonymous(Geometry(1, 20), now_ns=0)
        ControlBlock(self.segment).initialise(
            RelayId("rly-x"), Limits(), EngineKind.REFERENCE, random_bytes=lambda size: b"k" * size
        )
        self.table = SessionTable(self.segment, Tags(self.segment))
        self.model: dict[int, int] = {}

    @rule(number=st.integers(1, 60))
    def claim(self, number: int) -> None:
        if number in self.model:
            return
        record = self.table.claim(*words(number), 0)
        if record is None:
            assert len(self.model) == 20
        else:
            assert record.number not in self.model.values()
            self.model[number] = record.number

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.model)))
        record = self.table.find(*words(number))
        assert record is not None
        self.table.release(record)
        del self.model[number]

    @invariant()
    def agrees(self) -> None:
        for number in range(1, 61):
            record = self.table.find(*words(number))
            assert (record.number if record else None) == self.model.get(number)
        assert {record.number for record in self.table.live()} == set(self.model.values())

    def teardown(self) -> None:
        self.segment.close()


SessionMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestSessionMachine = SessionMachine.TestCase


SUBS = [lap * 4096 + (home - 2) % 4096 for home in range(4) for lap in (1, 2, 3)]
"""Few distinct homes, also at the end of the table: runs collide and wrap around."""


class UsedLeaseMachine(RuleBasedStateMachine):
    """No unexpired lease is ever taken again, whatever is purged or gives way around it."""

    def __init__(self) -> None:
        super().__init__()
        self.segment = Segment.anonymous(Geometry(1, 4), now_ns=0)
        self.used = UsedLeases(self.segment)
        self.used._limit = 60
        self.model: dict[tuple[int, int], tuple[int, int, int]] = {}
        self.now_ms = 1_000_000
        self.serial = 0

    @rule(sub=st.sampled_from(SUBS), slot=st.integers(1, 30), ttl_ms=st.integers(1, 50_000))
    def put(self, sub: int, slot: int, ttl_ms: int) -> None:
        self.serial += 1
        issued_s, until_ms = self.now_ms // 1000, self.now_ms + ttl_ms
        before, floor_s = self.used.find(slot, sub)
        history = before.history if before else LeaseHistory()
        history = history.bounded(floor_s).pushed(self.serial, issued_s, until_ms)
        self.used.put(slot, sub, Leftover(history, mark=5))
        self.model[sub, self.serial] = slot, issued_s, until_ms + KEEP_MS

    @rule(elapsed_ms=st.integers(0, 2 * KEEP_MS))
    def purge(self, elapsed_ms: int) -> None:
        self.now_ms += elapsed_ms
        self.used.purge(0, self.used.slots, self.now_ms)
        self.used.purge(0, self.used.slots, self.now_ms)  # an entry may wrap to the front
        self.model = {key: row for key, row in self.model.items() if row[2] > self.now_ms}

    @invariant()
    def agrees(self) -> None:
        assert self.used.count <= 60
        assert self.used.count == sum(1 for tag in self.tags() if tag)
        for (sub, jti), (slot, issued_s, _) in self.model.items():
            own, floor_s = self.used.find(slot, sub)
            known = own is not None and own.history.denies(jti, issued_s, 4, own.mark)
            assert known or issued_s <= floor_s, (sub, jti)

    def tags(self) -> list[int]:
        first = self.used._at
        words = layout.USED_LEASE.size // 8
        return self.segment.u64[first : first + self.used.slots * words : words].tolist()

    def teardown(self) -> None:
        self.segment.close()


UsedLeaseMachine.TestCase.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None
)
TestUsedLeaseMachine = UsedLeaseMachine.TestCase


def left_at(issued_s: int, jti: int = 1) -> Leftover:
    return Leftover(LeaseHistory().pushed(jti, issued_s, issued_s * 1000), mark=9)


class TestUsedLeases:
    def test_entry_survives_its_lease_by_a_minute(self, world: World) -> None:
        world.used.put(5, 50, left_at(1))
        assert not world.used.has_expired(0, world.used.slots, 1000 + KEEP_MS - 1)
        assert world.used.purge(0, world.used.slots, 1000 + KEEP_MS - 1) == 0
        assert world.used.has_expired(0, world.used.slots, 1000 + KEEP_MS)
        assert world.used.purge(0, world.used.slots, 1000 + KEEP_MS) == 1
        assert world.used.find(5, 50) == (None, 0)

    def test_entry_that_a_killed_worker_did_not_count_is_purged(self, world: World) -> None:
        world.used.put(5, 50, left_at(1))
        world.segment.u64[world.used._count_at] = 0
        assert world.used.has_expired(0, world.used.slots, 1000 + KEEP_MS)
        assert world.used.purge(0, world.used.slots, 1000 + KEEP_MS) == 1
        assert (world.used.find(5, 50), world.used.count) == ((None, 0), 0)

    def test_identity_gives_up_its_own_oldest_and_nobody_elses(self, world: World) -> None:
        world.used.put(1, 77, left_at(1))
        for number in range(SHARE + 3):
            world.used.put(100 + number, 50, left_at(1000 + number))
        assert world.used.count == SHARE + 1
        assert world.used.find(1, 77) == (left_at(1), 0), "an innocent's"
        own, floor_s = world.used.find(999, 50)
        assert (own, floor_s) == (None, 1002), "denied by date"
        assert world.used.find(100 + SHARE + 2, 50)[0] is not None

    def test_where_very_many_fill_it_the_oldest_give_way_by_date(self, world: World) -> None:
        used, subs = world.used, random.Random(3)
        everybody = [subs.getrandbits(64) for _ in range(used.limit + 100)]
        for number, sub in enumerate(everybody):
            used.put(1, sub, left_at(1000 + number))
        assert used.count <= used.limit
        assert 1000 <= used.floor_s < 1000 + used.limit // 2, "not the youngest"
        for number, sub in enumerate(everybody):
            own, floor_s = used.find(1, sub)
            assert own is not None or 1000 + number <= floor_s

    def test_a_floor_of_a_clock_that_was_ahead_refuses_nobody(self, world: World) -> None:
        world.segment.u64[world.used._floor_at] = world.now.wall_ms // 1000 + 3600
        world.peer().accept()
        world.segment.u64[world.used._floor_at] = world.now.wall_ms // 1000
        assert reject_reason(world.peer().present()) == RejectReason.REPLAYED


def test_a_session_id_that_is_released_while_found_is_not_held(world: World) -> None:
    sid = uuid.uuid4()
    record = world.table.claim(*session_words(sid.bytes), 0)
    assert record is not None
    world.table.release(record)
    assert not world.table.holds(record, *session_words(sid.bytes))
