"""A standard stream that neither blocks nor raises, whatever is at its other end.

The packet loop of a relay and the event loop of a service write log lines.  A full disk, a reader
that is gone, stalled or slow must not stop them.  So a line goes into a bounded ring, and a thread
of its own, which may lag or hang, writes it to the descriptor.  Where the ring is full the oldest
line goes; what is lost is counted, and said once when the stream works again.

Why a thread and not a descriptor in non-blocking mode: O_NONBLOCK belongs to the open file, which
other processes share, and a file on a full or hanging disk knows no such mode.  Why `SimpleQueue`:
its calls are atomic, so a signal handler may log in the middle of another line.
"""

import atexit
import contextlib
import io
import itertools
import os
import queue
import sys
import threading
import time
from typing import Final

__all__ = ["LogStream", "drain", "install", "lines_lost"]

RING_LINES: Final = 1000
MAX_LINE_CHARS: Final = 16_384
"""A longer line is cut: with `RING_LINES` it bounds the memory (16 MB, in practice 0.3 MB)."""
_RETRY_S: Final = 0.2
"""Pause after a write that failed; a disk has room again, or it has not."""


class LogStream(io.TextIOBase):
    """Text stream over a descriptor; see the module.

    Args:
        fd: of the stream; -1 where there is none: then every line is lost, and counted.
        role: of the service, for the line that says what was lost.
    """

    def __init__(self, fd: int, role: str = "") -> None:
        self._fd = fd
        self.role = role
        self._ring: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()
        self._losses = itertools.count(1)
        self._lost = 0
        self._partial = ""
        self._writer: threading.Thread | None = None
        self._stuck = False

    @property
    def lines_lost(self) -> int:
        """Lines that were never written, since the process began."""
        return self._lost

    @property
    def encoding(self) -> str:  # type: ignore[override]  # an attribute in typeshed
        """UTF-8."""
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]  # an attribute in typeshed
        """What has no UTF-8 form (lone surrogates) is written as an escape."""
        return "backslashreplace"

    def writable(self) -> bool:
        """Return True."""
        return True

    def isatty(self) -> bool:
        """Return whether a person is at the other end."""
        return self._fd >= 0 and os.isatty(self._fd)

    def fileno(self) -> int:
        """Return the descriptor.

        Raises:
            OSError: there is none.
        """
        if self._fd < 0:
            raise OSError("this process has no such stream")
        return self._fd

    def write(self, text: str, /) -> int:
        """Take text; complete lines go into the ring."""
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            self._put(f"{line[:MAX_LINE_CHARS]}\n")
        self._partial = self._partial[:MAX_LINE_CHARS]
        return len(text)

    def flush(self) -> None:
        """Do nothing: the writer never waits for more.  See `drain`."""

    def drain(self, timeout_s: float) -> bool:
        """Wait until what was written so far has left; for the end of a process.

        Returns:
            Whether it has, within `timeout_s` seconds.
        """
        if self._partial:
            line, self._partial = self._partial, ""
            self._put(line)
        if self._writer is None:
            return True
        done = threading.Event()
        self._ring.put(done)
        deadline = time.monotonic() + timeout_s
        while not done.wait(0.01):
            if self._stuck or time.monotonic() > deadline:
                return False
        return True

    def _put(self, line: str) -> None:
        if self._fd < 0:
            self._lose()
            return
        while self._ring.qsize() >= RING_LINES:
            try:
                dropped = self._ring.get_nowait()
            except queue.Empty:
                break
            if isinstance(dropped, threading.Event):
                dropped.set()
            else:
                self._lose()
        self._ring.put(line)
        if self._writer is None:
            self._start()

    def _lose(self) -> None:
        self._lost = next(self._losses)

    def _start(self) -> None:
        writer = threading.Thread(target=self._write_on, name="log-writer", daemon=True)
        try:
            writer.start()
        except RuntimeError:  # No thread to be had now: the ring keeps the lines until there is.
            return
        self._writer = writer

    # -- The writer's thread ---------------------------------------------------------------------

    def _write_on(self) -> None:
        said = 0
        while True:
            item = self._ring.get()
            if isinstance(item, threading.Event):
                item.set()
                continue
            self._write_line(item)
            if self._lost > said and self._ring.qsize() < RING_LINES // 2:  # It has caught up.
                lost, said = self._lost - said, self._lost
                self._write_line(self._notice(lost))

    def _write_line(self, line: str) -> None:
        """Write a line, however long it takes; one that was cut begins anew on its own line."""
        whole = line.encode("utf-8", "backslashreplace")
        rest, begun = whole, False
        while rest:
            try:
                written = os.write(self._fd, rest)
            except OSError:
                self._stuck = True
                time.sleep(_RETRY_S)
                if begun:
                    rest, begun = b"\n" + whole, False
                continue
            rest, begun = rest[written:], True
        self._stuck = False

    def _notice(self, lost: int) -> str:
        import json  # Not at the top: a worker must start fast.
        from datetime import UTC, datetime

        facts = {
            "lines": lost,
            "cause": "the log stream was full, closed, slow or stalled",
            "next_step": "look at the disk and at the reader of this log; the service went on",
            "role": self.role,
            "event": "log_lines_lost",
            "level": "warning",
            "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        }
        return json.dumps(facts) + "\n"


def install(role: str) -> LogStream | None:
    """Put a `LogStream` in the place of stderr, for all that writes there, tracebacks included.

    Returns:
        The stream; None where stderr is no descriptor of this process (a test has replaced it).
    """
    if isinstance(sys.stderr, LogStream):
        sys.stderr.role = role
        return sys.stderr
    if sys.stderr is not sys.__stderr__:
        return None
    _occupy_standard_descriptors()
    stream = LogStream(2 if sys.__stderr__ is not None else -1, role)
    sys.stderr = stream
    atexit.register(drain)
    return stream


def lines_lost() -> int:
    """Return the lines of this process that were never written."""
    return sys.stderr.lines_lost if isinstance(sys.stderr, LogStream) else 0


def drain(timeout_s: float = 0.5) -> None:
    """Give the last lines of a process that ends a moment to leave."""
    if isinstance(sys.stderr, LogStream):
        with contextlib.suppress(RuntimeError):
            sys.stderr.drain(timeout_s)


def _occupy_standard_descriptors() -> None:
    """Keep a socket from becoming descriptor 0, 1 or 2, where others would write their lines."""
    while True:
        fd = os.open(os.devnull, os.O_RDWR)
        if fd > 2:
            os.close(fd)
            return
