"""Small files that hold secrets: mode 0600, replaced atomically, refused when others can read."""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from wavry_peer.errors import PrivateFileError
from wavry_peer.service.secret_files import is_open_to_others

__all__ = ["create_private", "locked", "read_private", "write_private"]

_MAX_BYTES: Final = 1 << 20
"""These files are a few kilobytes; a larger one is a mistake and is not read into memory."""


def read_private(path: Path) -> bytes | None:
    """Return the content of the file, or None where there is none.

    Raises:
        PrivateFileError: group or others have any access, it is not a regular file, is over
            1 MiB, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PrivateFileError(f"{path} cannot be read: {error.strerror}") from error
    try:
        # Of the open file, so that nobody can swap it between the check and the read.
        _check(path, os.fstat(descriptor))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise PrivateFileError(f"{path} is not a regular file")
    if is_open_to_others(path, status.st_mode):
        raise PrivateFileError(f"{path} is open to other users; run: chmod 600 {path}")
    if status.st_size > _MAX_BYTES:
        raise PrivateFileError(f"{path} is over 1 MiB and cannot be what it should be")


def write_private(path: Path, content: bytes) -> None:
    """Write a file with mode 0600, or replace it as a whole; makes the directory (0700).

    Raises:
        PrivateFileError: it cannot be written.
    """
    temporary = _write_temporary(path, content)
    try:
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise PrivateFileError(f"{path} cannot be written: {error.strerror}") from error


def create_private(path: Path, content: bytes) -> bool:
    """Write as `write_private` does, but only where there is no such file yet.

    Returns:
        False if the file is there already (another process was faster); it is unchanged.

    Raises:
        PrivateFileError: it cannot be written.
    """
    temporary = _write_temporary(path, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise PrivateFileError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from reading and rewriting `path` at the same time.

    The lock is a file beside it, because `path` itself is replaced by each write.

    Raises:
        PrivateFileError: the lock file cannot be made.
    """
    lock_path = path.with_name(path.name + ".lock")
    try:
        lock_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise PrivateFileError(f"{lock_path} cannot be made: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write_temporary(path: Path, content: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise PrivateFileError(f"{path} cannot be written: {error.strerror}") from error
    return temporary
