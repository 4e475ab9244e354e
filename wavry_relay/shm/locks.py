"""Locks between the relay's processes that die with their owner.

Python has no atomic read-modify-write on shared memory, so whoever changes a table takes a lock
of the kernel first: a POSIX byte-range lock on the segment's descriptor, one byte number for each
thing that can be locked (the bytes need not exist).  The kernel frees the locks of a dead process,
so a killed worker blocks nobody.  A stopped one could: nobody waits longer than
`LOCK_WAIT_NS`, the packet is dropped and counted instead, and the supervisor kills the owner.

Order, to exclude deadlock: table → session → one rate word.  The native engine brings an
implementation of its own over the lock words of the records.
"""

import errno
import fcntl
import time
from contextlib import AbstractContextManager
from typing import Final, Protocol

__all__ = ["FileLocks", "LockBusyError", "Locks"]

LOCK_WAIT_NS: Final = 50_000_000
"""Longer than any section under a lock, short enough to keep a worker's heartbeat going."""
_RETRY_S: Final = 0.0001

_TABLE: Final = 0
_GLOBAL: Final = 1
_RATES: Final = 1 << 32
_SESSIONS: Final = 1 << 40


class LockBusyError(Exception):
    """The owner of a lock does not give it back in time."""


class Locks(Protocol):
    """What tables and engines lock."""

    def table(self) -> AbstractContextManager[None]:
        """Lock session index, allocation bitmap and used leases."""

    def session(self, record: int) -> AbstractContextManager[None]:
        """Lock one session record."""

    def rate(self, bucket_offset: int) -> AbstractContextManager[None]:
        """Lock one rate-limit bucket, named by its offset in the segment."""

    def global_rate(self) -> AbstractContextManager[None]:
        """Lock the relay's global rate words."""


class _ByteLock:
    """One byte of the file; a class, because a generator would cost more than the lock."""

    __slots__ = ("_fd", "_number")

    def __init__(self, fd: int, number: int) -> None:
        self._fd = fd
        self._number = number

    def __enter__(self) -> None:
        deadline_ns = 0
        while True:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._number)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            else:
                return
            now_ns = time.monotonic_ns()
            if not deadline_ns:
                deadline_ns = now_ns + LOCK_WAIT_NS
            elif now_ns >= deadline_ns:
                raise LockBusyError
            time.sleep(_RETRY_S)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, self._number)


class FileLocks:
    """`Locks` by POSIX byte-range locks on the segment's descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def table(self) -> AbstractContextManager[None]:
        """Lock session index, allocation bitmap and used leases."""
        return _ByteLock(self._fd, _TABLE)

    def session(self, record: int) -> AbstractContextManager[None]:
        """Lock one session record."""
        return _ByteLock(self._fd, _SESSIONS + record)

    def rate(self, bucket_offset: int) -> AbstractContextManager[None]:
        """Lock one rate-limit bucket, named by its offset in the segment."""
        return _ByteLock(self._fd, _RATES + bucket_offset)

    def global_rate(self) -> AbstractContextManager[None]:
        """Lock the relay's global rate words."""
        return _ByteLock(self._fd, _GLOBAL)
