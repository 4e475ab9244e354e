"""The named segment: mode, stale ones, live owners."""

import errno
import fcntl
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.needs import need_root
from support.paths import REPOSITORY

from wavry_relay.shm import segment as segment_module
from wavry_relay.shm.layout import HEAD, Geometry
from wavry_relay.shm.segment import (
    Segment,
    SegmentBusyError,
    SegmentError,
    remove_stale,
    segment_names,
)

GEOMETRY = Geometry(1, 10)


@pytest.fixture
def name() -> Iterator[str]:
    made = f"wavry-rly-test-{uuid.uuid4().hex[:16]}"
    yield made
    path(made).unlink(missing_ok=True)


def path(name: str) -> Path:
    return Path("/dev/shm") / name


def test_segment_is_readable_by_its_user_alone(name: str) -> None:
    segment = Segment.create([name], GEOMETRY, now_ns=0)
    try:
        assert path(name).stat().st_mode & 0o777 == 0o600
        assert path(name).stat().st_size == GEOMETRY.total_bytes
    finally:
        segment.close()


def test_attach_sees_what_was_written(name: str) -> None:
    segment = Segment.create([name], GEOMETRY, now_ns=77)
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
        f"segment = Segment.create([{name!r}], Geometry(1, 10), now_ns=0)\n"
        "segment.u64[600] = 42\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
    assert path(name).exists()
    segment = Segment.create([name], GEOMETRY, now_ns=0)
    try:
        assert segment.u64[600] == 0
    finally:
        segment.close()


def test_segment_of_a_live_relay_is_left_alone(name: str) -> None:
    segment = Segment.create([name], GEOMETRY, now_ns=0)
    inode = path(name).stat().st_ino
    try:
        with pytest.raises(SegmentBusyError, match="another relay with this identity"):
            remove_stale(path(name), wait_s=0.05)
        assert path(name).stat().st_ino == inode
    finally:
        segment.close()


def test_owner_that_is_just_ending_is_waited_for(name: str) -> None:
    segment = Segment.create([name], GEOMETRY, now_ns=0)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            fcntl.flock(segment.fd, fcntl.LOCK_UN)

    try:
        assert remove_stale(path(name), sleep=sleep)
        assert len(waits) == 3
        assert not path(name).exists()
    finally:
        segment.close()


def test_nothing_stale_is_fine(name: str) -> None:
    assert remove_stale(path(name))


def test_too_little_shared_memory_is_a_clear_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SegmentError, match="shm-size"):
        Segment.create([name], GEOMETRY, now_ns=0)
    assert not path(name).exists()


# -- Names -----------------------------------------------------------------------------------------

SEED = bytes(range(32))


def test_pitfall_names_cannot_be_told_by_who_has_not_the_key() -> None:
    mine, again = segment_names("rly-x", SEED), segment_names("rly-x", SEED)
    assert mine[:-1] == again[:-1], "a later start and a successor find them"
    assert mine[-1] != again[-1]
    assert len(set(mine)) == len(mine)
    assert not set(mine) & set(segment_names("rly-x", bytes(32)))
    assert all(len(name.removeprefix("wavry-rly-x-")) == 24 for name in mine)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(segment_module, "DIRECTORY", tmp_path)
    return tmp_path


def _of_another_user(path: Path) -> None:
    need_root("it makes files of another user")
    path.write_bytes(bytes(8))
    os.chown(path, 65534, 65534)


def _held_by_another_user(path: Path) -> None:
    _of_another_user(path)
    fcntl.flock(os.open(path, os.O_RDWR), fcntl.LOCK_EX)  # held until the tests end


SQUATS = [
    _of_another_user,
    _held_by_another_user,
    Path.mkdir,
    os.mkfifo,
    lambda path: path.symlink_to("/etc/passwd"),
    lambda path: path.symlink_to(path.with_name("nothing")),
]


@pytest.mark.parametrize("squat", SQUATS)
def test_pitfall_a_squatted_name_stops_no_start(
    memory: Path, squat: Callable[[Path], None]
) -> None:
    for name in ("first", "second"):
        squat(memory / name)
    segment = Segment.create(["first", "second", "third"], GEOMETRY, now_ns=0)
    try:
        assert (memory / "third").stat().st_size == GEOMETRY.total_bytes
        segment.unlink()
        assert {path.name for path in memory.iterdir()} == {"first", "second"}, (
            "what others made is left alone"
        )
    finally:
        segment.close()


def test_a_leftover_under_a_later_name_is_removed_and_a_live_one_is_seen(memory: Path) -> None:
    left = Segment.create(["second"], GEOMETRY, now_ns=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment_module.remove_stale, "__kwdefaults__", {"wait_s": 0, "sleep": None})
        with pytest.raises(SegmentBusyError):
            Segment.create(["first", "second"], GEOMETRY, now_ns=0)
    left.close()
    segment = Segment.create(["first", "second"], GEOMETRY, now_ns=0)
    assert [path.name for path in memory.iterdir()] == ["first"]
    segment.close()


def test_a_name_that_is_anothers_by_now_is_not_removed(memory: Path) -> None:
    segment = Segment.create(["first"], GEOMETRY, now_ns=0)
    (memory / "first").unlink()
    (memory / "first").write_bytes(b"of somebody else")
    segment.unlink()
    assert (memory / "first").exists()
    segment.close()


def test_a_host_without_shared_memory_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(segment_module, "DIRECTORY", tmp_path / "none")
    with pytest.raises(SegmentError, match=r"this host has no .*mount -t tmpfs"):
        Segment.create(segment_names("rly-x", SEED), GEOMETRY, now_ns=0)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "cannot be written by user .*Permission denied.*mode=1777"),
        (errno.EROFS, "cannot be written by user .*Read-only"),
        (errno.ENOSPC, "bytes and .* files are left.*ls -l .*shm-size"),
    ],
)
def test_why_shared_memory_cannot_be_made_is_said(
    memory: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    names = segment_names("rly-x", SEED)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SegmentError, match=said):
        Segment.create(names, GEOMETRY, now_ns=0)
    assert not list(memory.iterdir())
