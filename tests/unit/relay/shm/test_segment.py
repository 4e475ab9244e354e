"""The named segment: mode, stale ones, live owners."""

import fcntl
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import REPOSITORY

from wavry_relay.shm.layout import HEAD, Geometry
from wavry_relay.shm.segment import (
    Segment,
    SegmentBusyError,
    SegmentError,
    remove_stale,
    segment_name,
    unlink,
)

GEOMETRY = Geometry(1, 10)


@pytest.fixture
def name() -> Iterator[str]:
    made = segment_name(f"rly-test-{uuid.uuid4().hex[:16]}")
    yield made
    unlink(made)


def path(name: str) -> Path:
    return Path("/dev/shm") / name.removeprefix("/")


def test_segment_is_readable_by_its_user_alone(name: str) -> None:
    segment = Segment.create(name, GEOMETRY, now_ns=0)
    try:
        assert path(name).stat().st_mode & 0o777 == 0o600
        assert path(name).stat().st_size == GEOMETRY.total_bytes
    finally:
        segment.close()


def test_attach_sees_what_was_written(name: str) -> None:
    segment = Segment.create(name, GEOMETRY, now_ns=77)
    other = Segment.attach(os.dup(segment.fd))
    try:
        segment.u64[600] = 42
        assert other.u64[600] == 42
        assert other.boot_ns == 77
        assert other.geometry == GEOMETRY
    finally:
        other.close()
        segment.close()


@pytest.mark.parametrize("field", [field for field in HEAD.fields if field != "boot_ns"])
@pytest.mark.parametrize("value", [0, 1, 0x7FFF_FFC0, 0xFFFF_FFFF])
def test_attach_refuses_a_damaged_head(field: str, value: int) -> None:
    segment = Segment.anonymous(GEOMETRY, now_ns=0)
    try:
        at = HEAD[field].offset // 4
        if segment.u32[at] == value:
            value += 2
        segment.u32[at] = value
        with pytest.raises(SegmentError, match=r"damaged|layout version"):
            Segment.attach(segment.fd)
    finally:
        segment.close()


@given(patches=st.lists(st.tuples(st.integers(0, 159), st.integers(0, 255)), max_size=4))
@settings(deadline=None)
def test_attach_refuses_or_sees_the_same_tables(patches: list[tuple[int, int]]) -> None:
    segment = Segment.anonymous(GEOMETRY, now_ns=0)
    try:
        before = bytes(segment.u8[:160])
        for offset, value in patches:
            segment.u8[offset] = value
        fd = os.dup(segment.fd)
        try:
            other = Segment.attach(fd)
        except SegmentError:
            os.close(fd)
            assert bytes(segment.u8[:160]) != before
            return
        assert other.geometry == GEOMETRY
        other.close()
    finally:
        segment.close()


@pytest.mark.parametrize("size", [0, 100, 4096, GEOMETRY.total_bytes - 4096])
def test_attach_refuses_a_segment_that_was_cut(size: int) -> None:
    segment = Segment.anonymous(GEOMETRY, now_ns=0)
    fd = os.dup(segment.fd)
    segment.close()
    try:
        os.truncate(fd, size)
        with pytest.raises(SegmentError, match=r"damaged|too small"):
            Segment.attach(fd)
    finally:
        os.close(fd)


def test_stale_segment_of_a_dead_relay_is_replaced(name: str) -> None:
    code = (
        "from wavry_relay.shm.layout import Geometry\n"
        "from wavry_relay.shm.segment import Segment\n"
        f"segment = Segment.create({name!r}, Geometry(1, 10), now_ns=0)\n"
        "segment.u64[600] = 42\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
    assert path(name).exists()
    segment = Segment.create(name, GEOMETRY, now_ns=0)
    try:
        assert segment.u64[600] == 0
    finally:
        segment.close()


def test_segment_of_a_live_relay_is_left_alone(name: str) -> None:
    segment = Segment.create(name, GEOMETRY, now_ns=0)
    inode = path(name).stat().st_ino
    try:
        with pytest.raises(SegmentBusyError, match="another relay with this identity"):
            remove_stale(name, wait_s=0.05)
        assert path(name).stat().st_ino == inode
    finally:
        segment.close()


def test_owner_that_is_just_ending_is_waited_for(name: str) -> None:
    segment = Segment.create(name, GEOMETRY, now_ns=0)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            fcntl.flock(segment.fd, fcntl.LOCK_UN)

    try:
        assert remove_stale(name, sleep=sleep)
        assert len(waits) == 3
        assert not path(name).exists()
    finally:
        segment.close()


def test_nothing_stale_is_fine(name: str) -> None:
    assert not remove_stale(name)


def test_too_little_shared_memory_is_a_clear_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SegmentError, match="shm-size"):
        Segment.create(name, GEOMETRY, now_ns=0)
    assert not path(name).exists()
