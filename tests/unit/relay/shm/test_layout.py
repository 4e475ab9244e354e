"""Sizes and alignment of the shared memory: what a C twin of the tables relies on."""

import pytest

from wavry_relay.shm import layout
from wavry_relay.shm.layout import COUNTERS, HEAD, SESSION, SLOT, Geometry, Record
from wavry_relay.shm.segment import Segment, SegmentError

RECORDS = [value for value in vars(layout).values() if isinstance(value, Record)]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_fields_are_aligned_and_do_not_overlap(record: Record) -> None:
    end = 0
    for field in record.fields.values():
        assert field.offset % field.width == 0
        assert field.offset == end  # no silent padding
        end = field.offset + field.bytes
    assert end <= record.size
    assert record.size % 8 == 0


def test_a_record_with_a_misaligned_field_is_refused() -> None:
    with pytest.raises(ValueError, match="not aligned"):
        layout._record("bad", ("a", 4), ("b", 8))


def test_session_record_is_at_most_480_bytes() -> None:
    assert SESSION.size <= 480
    assert SESSION["server"].offset - SESSION["client"].offset == SLOT.size
    assert SLOT["window"].bytes * 8 >= 1024


def test_record_and_index_of_a_session_are_at_most_512_bytes() -> None:
    for sessions in (1, 1000, 1024, 1025, 65_537, 100_000, 131_073):
        geometry = Geometry(4, sessions)
        assert SESSION.size * sessions + 8 * geometry.index_slots <= 512 * sessions


def test_hundred_thousand_sessions_fit_100_mib() -> None:
    assert Geometry(64, 100_000).total_bytes <= 100 * 1024 * 1024


def test_regions_follow_each_other_on_cache_lines() -> None:
    geometry = Geometry(3, 1000)
    end = 0
    for region in geometry.regions.values():
        assert region.offset >= end
        assert region.offset % 64 == 0
        end = region.end
    assert end <= geometry.total_bytes
    assert geometry.total_bytes % 4096 == 0


def test_control_block_has_room_for_the_largest_key_set() -> None:
    assert layout.CONTROL["keys"].bytes == 16 * layout.KEY.size
    assert layout.CONTROL.size <= 4096


def test_counter_names_are_unique() -> None:
    assert len(set(COUNTERS)) == len(COUNTERS)


def test_head_says_where_everything_is() -> None:
    geometry = Geometry(2, 100)
    segment = Segment.anonymous(geometry, now_ns=5)
    try:
        for name, region in geometry.regions.items():
            if name != "head":
                assert segment.u64[HEAD[f"at_{name}"].offset // 8] == region.offset
        assert bytes(segment.u8[:8]) == b"WAVRYSHM"
    finally:
        segment.close()


@pytest.mark.parametrize("numbers", [(0, 1), (257, 1), (1, 0), (1, 10_000_001)])
def test_geometry_out_of_range_is_refused(numbers: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must be 1 to"):
        Geometry(*numbers)


def test_segment_of_another_version_is_refused() -> None:
    segment = Segment.anonymous(Geometry(1, 10), now_ns=0)
    try:
        segment.u32[HEAD["version"].offset // 4] += 1
        with pytest.raises(SegmentError, match="layout version"):
            Segment.attach(segment.fd)
    finally:
        segment.close()
