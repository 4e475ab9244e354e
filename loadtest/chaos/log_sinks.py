"""Where the log of a service goes while a run can spoil it: a pipe, or a disk of its own.

A pipe can stall (nobody reads) and close (nobody has it open), and is well when somebody reads.
Only a disk can be full; it is a small tmpfs, which takes root.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["DiskSink", "PipeSink", "SinkError"]

_DISK_BYTES: Final = 4 << 20
_TRIM_BYTES: Final = 1 << 20
"""A log is cut to nothing from there on, so that the disk is full only when the run wants it."""
_PIPE_BYTES: Final = 4096
"""As small as the kernel has them: a reader that stalls is felt after some lines."""


class SinkError(Exception):
    """A sink cannot be made here; the message says why."""


class PipeSink:
    """A named pipe, read into a file as long as nothing is wrong.

    Args:
        path: the pipe is made there.
        copy: what was read is appended there.
    """

    def __init__(self, path: Path, copy: Path) -> None:
        self._path = path
        self._copy = copy
        self._reader = -1
        os.mkfifo(path)
        self.open_reader()

    def open_writer(self) -> int:
        """Return a new descriptor for a service to write to."""
        return os.open(self._path, os.O_WRONLY)

    def open_reader(self) -> None:
        """Read what comes."""
        self._reader = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(self._reader, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self.resume()

    def close_reader(self) -> None:
        """Nobody has the other end open: writers get EPIPE."""
        self.stall()
        os.close(self._reader)
        self._reader = -1

    def stall(self) -> None:
        """Read nothing more: writers block as soon as the pipe is full."""
        asyncio.get_running_loop().remove_reader(self._reader)

    def resume(self) -> None:
        """Read again."""
        asyncio.get_running_loop().add_reader(self._reader, self._read)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._reader, 1 << 16)
            if not data:  # Every writer is gone: a pipe at its end would be readable for ever.
                self.stall()
                os.close(self._reader)
                self.open_reader()
                return
            with self._copy.open("ab") as file:
                file.write(data)

    def close(self) -> None:
        """End it."""
        if self._reader >= 0:
            self.close_reader()


class DiskSink:
    """A log file on a disk of its own.

    Args:
        directory: the disk is mounted there.
        copy: what is trimmed is appended there, and the rest at the end.

    Raises:
        SinkError: not root, or no right to mount.
    """

    def __init__(self, directory: Path, copy: Path) -> None:
        directory.mkdir(mode=0o700)
        self._directory = directory
        self._copy = copy
        self._log = directory / "log"
        options = f"size={_DISK_BYTES},mode=700"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
        if done.returncode != 0:
            raise SinkError(f"a small disk cannot be mounted: {done.stderr.strip()}")

    def open_writer(self) -> int:
        """Return a new descriptor for a service to write to."""
        return os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def trim(self) -> None:
        """Cut a log that has grown."""
        if self._log.stat().st_size > _TRIM_BYTES:
            self._save()

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Have no byte left for the length of a block."""
        filler = self._directory / "filler"
        fd = os.open(filler, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            for size in (1 << 16, 1 << 10, 1):
                with contextlib.suppress(OSError):
                    while True:
                        os.write(fd, bytes(size))
            yield
        finally:
            os.close(fd)
            filler.unlink()

    def close(self) -> None:
        """Unmount it."""
        self._save()
        subprocess.run(["umount", "--lazy", str(self._directory)], check=False)  # noqa: S603, S607 - fixed words, and a directory that we made

    def _save(self) -> None:
        with self._log.open("rb") as log, self._copy.open("ab") as copy:
            shutil.copyfileobj(log, copy)
        os.truncate(self._log, 0)
