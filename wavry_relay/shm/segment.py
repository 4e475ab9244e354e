"""The shared memory segment: create, attach, remove.

A relay has several names for its segment, made from its key, so that nobody else can tell them
before they are there: anybody may make files in /dev/shm.  The first name that is not another
user's is taken, and its creator holds an exclusive `flock` on it.  The descriptor is handed to the
workers, and such a lock lives as long as any copy of the descriptor does: a segment that can be
locked belongs to nobody who is alive, neither a supervisor nor a worker that is about to notice the
supervisor's death.
"""

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import secrets
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn, Self

from wavry_peer.protocol.errors import LocalError

from .layout import COUNTERS, HEAD, LAYOUT_VERSION, MAGIC_WORD, Geometry

__all__ = ["Segment", "SegmentBusyError", "SegmentError", "segment_names"]

TAKE_OVER_WAIT_S: Final = 3.0
"""Workers of a killed supervisor are gone within milliseconds; after this long, the segment's
owner is alive."""
_RETRY_S: Final = 0.02
DIRECTORY = Path("/dev/shm")  # noqa: S108  # files of mode 0600 and O_EXCL, whoever squats a name
NAMES_OF_THE_KEY: Final = 16
"""More than one: a name that was seen once can be kept by another user when the relay is down."""


class SegmentError(LocalError):
    """The shared memory cannot be made or is not what this version expects."""


class SegmentBusyError(SegmentError):
    """Another live relay with the same identity owns the segment."""


def segment_names(relay_id: str, seed: bytes) -> list[str]:
    """Return the names that a relay's segment may have, the one to prefer first.

    The last is new each time: nobody can have kept it.

    Args:
        relay_id: shows an operator whose segment it is.
        seed: of the relay's key, which others do not know.
    """
    ends = [
        hashlib.blake2b(b"segment %d" % number, key=seed, digest_size=12).hexdigest()
        for number in range(NAMES_OF_THE_KEY)
    ]
    return [f"wavry-{relay_id}-{end}" for end in (*ends, secrets.token_hex(12))]


class Segment:
    """A mapped segment as views of bytes, 32-bit and 64-bit words.

    Attributes:
        fd: the segment's descriptor; byte-range locks are taken on it, and it must be
            the only descriptor of the segment in this process.
        geometry: sizes of the regions.
        u8: every byte.
        u32: the same memory as aligned 32-bit words.
        u64: the same memory as aligned 64-bit words.
        boot_ns: CLOCK_MONOTONIC at creation.
    """

    def __init__(self, fd: int, geometry: Geometry) -> None:
        self.fd = fd
        self.geometry = geometry
        self._map = mmap.mmap(fd, geometry.total_bytes)
        self.u8 = memoryview(self._map)
        self.u32 = self.u8.cast("I")
        self.u64 = self.u8.cast("Q")
        self.boot_ns = 0

    @classmethod
    def attach(cls, fd: int) -> Self:
        """Map the segment behind a descriptor that the supervisor handed over.

        Raises:
            SegmentError: not a segment of this layout version, or its head contradicts itself or
                the size of the memory.
        """
        page = os.pread(fd, HEAD.size, 0)
        if len(page) < HEAD.size:
            raise SegmentError("shared memory is too small to be a Wavry segment")
        words32 = memoryview(page).cast("I")
        words64 = memoryview(page).cast("Q")

        def head32(name: str) -> int:
            return words32[HEAD[name].offset // 4]

        if words64[0] != MAGIC_WORD or head32("version") != LAYOUT_VERSION:
            raise SegmentError("shared memory has another layout version; restart the whole relay")
        try:
            geometry = Geometry(head32("workers"), head32("max_sessions"))
        except ValueError as error:
            raise _damaged(str(error)) from error
        for name, value in _head_of(geometry).items():
            field = HEAD[name]
            words = words32 if field.width == 4 else words64
            if words[field.offset // field.width] != value:
                raise _damaged(f"{name} contradicts the sizes")
        if os.fstat(fd).st_size < geometry.total_bytes:
            raise _damaged("it is shorter than its head says")
        segment = cls(fd, geometry)
        segment.boot_ns = words64[HEAD["boot_ns"].offset // 8]
        return segment

    @classmethod
    def anonymous(cls, geometry: Geometry, *, now_ns: int) -> Self:
        """Make a segment without a name, for tests and single-process use."""
        fd = os.memfd_create("wavry-relay", os.MFD_CLOEXEC)
        return cls._initialise(fd, geometry, now_ns)

    @classmethod
    def create(cls, names: Sequence[str], geometry: Geometry, *, now_ns: int) -> Self:
        """Make a fresh named segment of mode 0600; stale ones of this user are removed.

        Args:
            names: from `segment_names`; those that another user has are passed over.
            geometry: sizes.
            now_ns: CLOCK_MONOTONIC.

        Raises:
            SegmentBusyError: a live relay owns one of the names.
            SegmentError: no memory, no permission or no /dev/shm.
        """
        paths = [DIRECTORY / name for name in names]
        free = [path for path in paths if remove_stale(path)]
        fd, path = _make_one_of(free)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stolen = os.fstat(fd).st_nlink == 0
        except BlockingIOError:
            stolen = True
        if stolen:  # A second starter took it for stale between our two calls.
            os.close(fd)
            raise SegmentBusyError(f"shared memory {path} was just taken by another relay")
        try:
            return cls._initialise(fd, geometry, now_ns)
        except SegmentError:
            path.unlink(missing_ok=True)
            raise

    @classmethod
    def _initialise(cls, fd: int, geometry: Geometry, now_ns: int) -> Self:
        try:
            # Reserve now: a page that is missing later would be a SIGBUS in a worker.
            os.posix_fallocate(fd, 0, geometry.total_bytes)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                _say_full(geometry.total_bytes, error)
            raise SegmentError(f"shared memory cannot be sized: {error.strerror}") from error
        segment = cls(fd, geometry)
        segment.boot_ns = now_ns
        for name, value in _head_of(geometry).items():
            field = HEAD[name]
            words = segment.u32 if field.width == 4 else segment.u64
            words[field.offset // field.width] = value
        segment.u64[HEAD["boot_ns"].offset // 8] = now_ns
        segment.u64[HEAD["magic"].offset // 8] = MAGIC_WORD
        return segment

    def milliseconds(self, now_ns: int) -> int:
        """Return CLOCK_MONOTONIC as a 32-bit stamp of this segment."""
        return (now_ns - self.boot_ns) // 1_000_000 & 0xFFFFFFFF

    @staticmethod
    def elapsed_ms(now_ms: int, then_ms: int) -> int:
        """Return the time between two stamps.

        0 where `then_ms` is later: another worker may write a stamp after this one read the clock.
        """
        elapsed = now_ms - then_ms & 0xFFFFFFFF
        return elapsed if elapsed < 1 << 31 else 0

    def unlink(self) -> None:
        """Remove the segment's name; fine where it is gone, or another's by now."""
        path = DIRECTORY / Path(f"/proc/self/fd/{self.fd}").readlink().name
        with contextlib.suppress(OSError):
            if os.path.samestat(path.lstat(), os.fstat(self.fd)):
                path.unlink()

    def close(self) -> None:
        """Unmap and close; the name stays."""
        self.u64.release()
        self.u32.release()
        self.u8.release()
        self._map.close()
        os.close(self.fd)


def _head_of(geometry: Geometry) -> dict[str, int]:
    """Return what the head says about sizes and places."""
    return {
        "version": LAYOUT_VERSION,
        "workers": geometry.workers,
        "max_sessions": geometry.max_sessions,
        "index_slots": geometry.index_slots,
        "used_slots": geometry.used_slots,
        "counters": len(COUNTERS),
        "total_bytes": geometry.total_bytes,
        **{
            f"at_{name}": region.offset
            for name, region in geometry.regions.items()
            if name != "head"
        },
    }


def _damaged(what: str) -> SegmentError:
    return SegmentError(f"shared memory is damaged: {what}; restart the whole relay")


def _say_full(wanted_bytes: int, error: OSError) -> NoReturn:
    left = ""
    with contextlib.suppress(OSError):
        room = os.statvfs(DIRECTORY)
        left = f" ({room.f_bavail * room.f_frsize} bytes and {room.f_favail} files are left)"
    raise SegmentError(
        f"no room for {wanted_bytes} bytes of shared memory in {DIRECTORY}{left}: remove what fills"
        f" it (ls -l {DIRECTORY}), lower WAVRY_RELAY_MAX_SESSIONS, or make it larger (docker:"
        f" --shm-size; else: mount -o remount,size=… {DIRECTORY})"
    ) from error


def _make_one_of(paths: Sequence[Path]) -> tuple[int, Path]:
    """Make the first of these files that nobody has made meanwhile."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    for path in paths:
        try:
            return os.open(path, flags, 0o600), path
        except FileExistsError as error:
            with contextlib.suppress(FileNotFoundError):
                if path.lstat().st_uid == os.geteuid():
                    raise SegmentBusyError(
                        f"shared memory {path} was just made by another relay"
                    ) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                _say_full(1, error)
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                why = f"this host has no {DIRECTORY}"
            else:
                why = f"{DIRECTORY} cannot be written by user {os.geteuid()} ({error.strerror})"
            raise SegmentError(
                f"shared memory cannot be made: {why}; mount it: mount -t tmpfs -o mode=1777,"
                f"nosuid,nodev tmpfs {DIRECTORY}"
            ) from error
    raise SegmentBusyError("every name of the shared memory was just made by another; start again")


def remove_stale(
    path: Path,
    *,
    wait_s: float = TAKE_OVER_WAIT_S,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Remove a segment that a dead relay left behind.

    Returns:
        Whether the name is free now: another user's file is left alone, whatever it is.

    Raises:
        SegmentBusyError: its owner is alive.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return not os.path.lexists(path)  # Not there, or not to be looked for: its making says why.
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid() or not stat.S_ISREG(found.st_mode):
            return False
        waited_s = 0.0
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if waited_s >= wait_s:
                    raise SegmentBusyError(
                        "another relay with this identity is running on this host (it owns shared"
                        f" memory {path}); stop it, or give this one its own state directory"
                    ) from error
            sleep(_RETRY_S)
            waited_s += _RETRY_S
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(fd)
