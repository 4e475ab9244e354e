"""One process for each directory: a lock that is held for life and ends with its holder.

Strategy: flock on a file in the directory.  The kernel lets go of it however the process ends, so
`kill -9` leaves nothing that a person would have to remove.  The file stays: it says who has the
lock, or had it last.  The directory must be on a file system of this host: over a network
file system two hosts may both get the lock.
"""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from wavry_peer.protocol.errors import LocalError

from .store_errors import StoreUnavailableError

__all__ = [
    "LOCK_FILE",
    "UNFINISHED_FILE",
    "DirectoryInUseError",
    "UnfinishedRestoreError",
    "data_directory",
    "held_directory",
]

LOCK_FILE: Final = "in-use.lock"
UNFINISHED_FILE: Final = "restore-unfinished"
"""There while a restore gives its files their names; with it no service starts."""
FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
MAX_HOLDER_BYTES: Final = 4096
_NOT_WRITABLE: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class DirectoryInUseError(LocalError):
    """Another process works on the directory; the message names it and the next step."""


class UnfinishedRestoreError(LocalError):
    """A restore into the directory was cut off."""


class _Holder(msgspec.Struct, frozen=True):
    name: str
    pid: int
    host: str


@contextmanager
def data_directory(directory: Path, name: str, variable: str) -> Iterator[None]:
    """Make the directory of a database where it is missing, and hold it inside the block.

    Args:
        directory: of the database.
        name: of the program.
        variable: the setting that names the directory, for messages.

    Raises:
        DirectoryInUseError: another process has it.
        UnfinishedRestoreError: it holds half of a backup.
        StoreUnavailableError: it cannot be made or written.
    """
    with contextlib.ExitStack() as held:
        try:
            directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            held.enter_context(held_directory(directory, name))
        except OSError as error:
            raise StoreUnavailableError(f"{variable} {directory}: {error.strerror}") from error
        except DirectoryInUseError as error:
            raise DirectoryInUseError(f"{variable} {error}") from None
        if (directory / UNFINISHED_FILE).exists():
            raise UnfinishedRestoreError(
                f"{variable} {directory}: a restore into it was cut off; run the same `wavryctl"
                " restore` again"
            )
        yield


@contextmanager
def held_directory(directory: Path, name: str, *, may_be_read_only: bool = False) -> Iterator[None]:
    """Keep every other process of ours away from a directory inside the block.

    Args:
        directory: exists, on a local file system.
        name: of the program, for whoever is refused meanwhile.
        may_be_read_only: where nothing can be written no lock is needed, and none is taken.

    Raises:
        DirectoryInUseError: another process has it.
        OSError: the lock file cannot be made.
    """
    try:
        descriptor = _locked(directory / LOCK_FILE)
    except OSError as error:
        if may_be_read_only and error.errno in _NOT_WRITABLE:
            yield
            return
        raise
    try:
        _sign(descriptor, name)
        yield
    finally:
        os.close(descriptor)


def _locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, descriptor):
                return descriptor
        except BlockingIOError:
            refusal = DirectoryInUseError(_refusal(path.parent, descriptor))
            os.close(descriptor)
            raise refusal from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    """Return whether nobody has put another file there: a lock on a removed one excludes no one."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sign(descriptor: int, name: str) -> None:
    holder = msgspec.json.encode(_Holder(name, os.getpid(), socket.gethostname()))
    with contextlib.suppress(OSError):  # A full disk must not keep a service from serving.
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder + b"\n", 0)


def _refusal(directory: Path, descriptor: int) -> str:
    who = "another process"
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        holder = msgspec.json.decode(os.pread(descriptor, MAX_HOLDER_BYTES, 0), type=_Holder)
        who = f"{holder.name} (process {holder.pid} on {holder.host})"
    return (
        f"{directory} is in use by {who}: two processes on one directory would spoil it; end that "
        "process first, or give this one a directory of its own"
    )
