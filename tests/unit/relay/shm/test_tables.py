"""Session table and used leases against plain Python models."""

import uuid
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.relay.world import World, open_world

from wavry_peer.protocol.constants import Role
from wavry_peer.protocol.lease import RelayId
from wavry_relay.shm import layout
from wavry_relay.shm.control import ControlBlock, EngineKind, Limits
from wavry_relay.shm.layout import Geometry
from wavry_relay.shm.leases import DENIED, KEEP_MS, UsedLeases
from wavry_relay.shm.segment import Segment
from wavry_relay.shm.sessions import SessionTable, session_words
from wavry_relay.shm.tags import Tags


@pytest.fixture
def world() -> Iterator[World]:
    with open_world(max_sessions=8) as world:
        yield world


def words(number: int) -> tuple[int, int]:
    return session_words(number.to_bytes(16, "big"))


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
                st.sampled_from([0, 1, 59, 60, 61, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]),
                st.booleans(),
            ),
            min_size=70,
            max_size=70,
        ),
        stamp=st.sampled_from([0, 5, 60, 1 << 31, (1 << 32) - 1]),
    )
    def test_doubtful_sessions_are_those_that_a_look_at_each_finds(
        self, rows: list[tuple[int, int, int, bool]], stamp: int
    ) -> None:
        with open_world(max_sessions=70) as world:
            wanted = []
            elapsed_ms = world.segment.elapsed_ms
            for _ in rows:
                world.table._allocate()
            for number, (state, expires_ms, age_ms, taken) in enumerate(rows):
                record = world.table.record(number)
                client = record.slot(Role.CLIENT)
                record.state, client.expires_ms = state, expires_ms
                client.received_ms = stamp - age_ms & 0xFFFFFFFF
                well = (
                    state == layout.SESSION_ACTIVE
                    and expires_ms > 1000
                    and elapsed_ms(stamp, client.received_ms) < 60
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


class UsedLeaseMachine(RuleBasedStateMachine):
    """No unexpired entry is ever lost, whatever is purged around it."""

    def __init__(self) -> None:
        super().__init__()
        self.segment = Segment.anonymous(Geometry(1, 4), now_ns=0)
        self.used = UsedLeases(self.segment)
        self.model: dict[int, tuple[int, int]] = {}
        self.now_ms = 1

    # Few distinct homes, also at the end of the table: runs collide and wrap around.
    tags = st.integers(0, 3).flatmap(
        lambda home: st.integers(1, 12).map(lambda lap: lap * 4096 + (home - 2) % 4096)
    )

    @rule(tag=tags, counter=st.integers(0, 9), ttl_ms=st.integers(1, 50))
    def put(self, tag: int, counter: int, ttl_ms: int) -> None:
        self.used.put(tag, counter, self.now_ms + ttl_ms)
        old = self.model.get(tag, (0, 0))
        kept_until = self.now_ms + ttl_ms + KEEP_MS
        self.model[tag] = max(old[0], counter), max(old[1], kept_until)

    @rule(elapsed_ms=st.integers(0, 2 * KEEP_MS))
    def purge(self, elapsed_ms: int) -> None:
        self.now_ms += elapsed_ms
        self.used.purge(0, self.used.slots, self.now_ms)
        self.used.purge(0, self.used.slots, self.now_ms)  # an entry may wrap to the front
        self.model = {tag: row for tag, row in self.model.items() if row[1] > self.now_ms}

    @invariant()
    def agrees(self) -> None:
        assert self.used.count == len(self.model)
        for tag, (counter, _) in self.model.items():
            assert self.used.find(tag) == counter

    def teardown(self) -> None:
        self.segment.close()


UsedLeaseMachine.TestCase.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None
)
TestUsedLeaseMachine = UsedLeaseMachine.TestCase


class TestUsedLeases:
    def test_entry_survives_its_lease_by_a_minute(self, world: World) -> None:
        world.used.put(5, 1, 1000)
        assert not world.used.has_expired(0, world.used.slots, 1000 + KEEP_MS - 1)
        assert world.used.purge(0, world.used.slots, 1000 + KEEP_MS - 1) == 0
        assert world.used.has_expired(0, world.used.slots, 1000 + KEEP_MS)
        assert world.used.purge(0, world.used.slots, 1000 + KEEP_MS) == 1
        assert world.used.find(5) is None

    def test_entry_that_a_killed_worker_did_not_count_is_purged(self, world: World) -> None:
        world.used.put(5, 1, 1000)
        world.segment.u64[world.used._count_at] = 0
        assert world.used.has_expired(0, world.used.slots, 1000 + KEEP_MS)
        assert world.used.purge(0, world.used.slots, 1000 + KEEP_MS) == 1
        assert (world.used.find(5), world.used.count) == (None, 0)

    def test_denied_stays_denied(self, world: World) -> None:
        world.used.put(5, DENIED, 1000)
        world.used.put(5, 3, 500)
        assert world.used.find(5) == DENIED
        assert not world.used.has_expired(0, world.used.slots, 1000)

    def test_pitfall_full_table_refuses_new_leases_and_forgets_none(self, world: World) -> None:
        client, _ = world.session()
        far_ms = world.now.wall_ms + 3_600_000
        for tag in range(1, world.used.limit + 1):
            world.used.put(tag, DENIED, far_ms)
        assert not world.used.has_room()
        stranger = world.peer()
        answer = stranger.present()
        assert answer.body is not None
        assert getattr(answer.body, "reason", None) == 4  # SESSION_FULL
        assert all(world.used.find(tag) == DENIED for tag in range(1, 200))
        # A session that is there closes all the same: its places were kept back.
        client.accept()
        world.sweep(61.5)
        assert not world.has(client.sid)
        assert world.used.count == world.used.limit + 2
        assert world.used.slots - world.used.count >= world.used.slots // 4

    def test_every_possible_session_can_close_after_the_last_admission(self) -> None:
        for sessions in (1, 8, 1000, 100_000):
            geometry = Geometry(1, sessions)
            limit = geometry.used_slots * 3 // 4 - 2 * sessions
            assert limit >= sessions
            assert limit + 2 * sessions < geometry.used_slots


def test_a_session_id_that_is_released_while_found_is_not_held(world: World) -> None:
    sid = uuid.uuid4()
    record = world.table.claim(*session_words(sid.bytes), 0)
    assert record is not None
    world.table.release(record)
    assert not world.table.holds(record, *session_words(sid.bytes))
