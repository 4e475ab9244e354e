"""The shared memory segment: create, attach, remove.

The segment's name comes from the relay's id, and its creator holds an exclusive `flock` on it.
The descriptor is handed to the workers, and such a lock lives as long as any copy of the
descriptor does: a segment that can be locked belongs to nobody who is alive, neither a supervisor
nor a worker that is about to notice the supervisor's death.
"""

import errno
import fcntl
import mmap
import os
import time
from collections.abc import Callable
from typing import Final, Self

from wavry_peer.protocol.errors import LocalError

from .layout import COUNTERS, HEAD, LAYOUT_VERSION, MAGIC_WORD, Geometry

__all__ = ["Segment", "SegmentBusyError", "SegmentError", "segment_name"]

TAKE_OVER_WAIT_S: Final = 3.0
"""Workers of a killed supervisor are gone within milliseconds; after this long, the segment's
owner is alive."""
_RETRY_S: Final = 0.02


class SegmentError(LocalError):
    """The shared memory cannot be made or is not what this version expects."""


class SegmentBusyError(SegmentError):
    """Another live relay with the same identity owns the segment."""


def segment_name(relay_id: str) -> str:
    """Name of a relay's segment for ``shm_open``."""
    return f"/wavry-{relay_id}"


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
    def create(cls, name: str, geometry: Geometry, *, now_ns: int) -> Self:
        """Make a fresh named segment of mode 0600; a stale one of the same name is removed.

        Args:
            name: from `segment_name`.
            geometry: sizes.
            now_ns: CLOCK_MONOTONIC.

        Raises:
            SegmentBusyError: a live relay owns the name.
            SegmentError: no memory or no permission.
        """
        import posix_ipc

        remove_stale(name)
        try:
            made = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600)
        except posix_ipc.ExistentialError as error:
            raise SegmentBusyError(
                f"shared memory {name} was just made by another relay"
            ) from error
        except (OSError, posix_ipc.Error) as error:
            raise SegmentError(f"shared memory {name} cannot be made: {error}") from error
        try:
            fcntl.flock(made.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stolen = os.fstat(made.fd).st_nlink == 0
        except BlockingIOError:
            stolen = True
        if stolen:  # A second starter took it for stale between our two calls.
            made.close_fd()
            raise SegmentBusyError(f"shared memory {name} was just taken by another relay")
        try:
            return cls._initialise(made.fd, geometry, now_ns)
        except SegmentError:
            unlink(name)
            raise

    @classmethod
    def _initialise(cls, fd: int, geometry: Geometry, now_ns: int) -> Self:
        try:
            # Reserve now: a page that is missing later would be a SIGBUS in a worker.
            os.posix_fallocate(fd, 0, geometry.total_bytes)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                raise SegmentError(
                    f"no room for {geometry.total_bytes} bytes of shared memory; lower"
                    " WAVRY_RELAY_MAX_SESSIONS or give the host (docker: --shm-size) more"
                ) from error
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


def unlink(name: str) -> None:
    """Remove a segment's name; fine where it is gone."""
    import posix_ipc

    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        return


def remove_stale(
    name: str,
    *,
    wait_s: float = TAKE_OVER_WAIT_S,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Remove a segment that a dead relay left behind.

    Returns:
        True where there was one.

    Raises:
        SegmentBusyError: its owner is alive.
        SegmentError: it belongs to another user.
    """
    import posix_ipc

    try:
        stale = posix_ipc.SharedMemory(name)
    except posix_ipc.ExistentialError:
        return False
    except (OSError, posix_ipc.Error) as error:
        raise SegmentError(f"shared memory {name} cannot be opened: {error}") from error
    try:
        waited_s = 0.0
        while True:
            try:
                fcntl.flock(stale.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if waited_s >= wait_s:
                    raise SegmentBusyError(
                        "another relay with this identity is running on this host (it owns shared"
                        f" memory {name}); stop it, or give this one its own state directory"
                    ) from error
            sleep(_RETRY_S)
            waited_s += _RETRY_S
        unlink(name)
        return True
    finally:
        stale.close_fd()
