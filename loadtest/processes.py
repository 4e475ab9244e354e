"""Child processes of the bench: started pinned, their CPU time read, and none left behind.

CPU time comes from the scheduler's own count (``/proc/PID/task/*/schedstat``, nanoseconds of user
and system time).  It holds the kernel's work of a send, which on the loopback runs in the sender's
name up to the receiver's queue.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

__all__ = [
    "ProcessGoneError",
    "core_wait_ns",
    "cpu_ns",
    "descendants",
    "is_alive",
    "launch",
    "on_core",
    "resident_bytes",
    "shared_memory_bytes",
    "stop",
    "stop_orphan",
]


class ProcessGoneError(RuntimeError):
    """A process that is measured has ended."""


def _scheduled(pids: Iterable[int], column: int) -> int:
    total = 0
    for pid in pids:
        try:
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
        except OSError as error:
            raise ProcessGoneError(f"process {pid} has ended while it was measured") from error
        for task in tasks:
            with contextlib.suppress(OSError):  # a thread may end between the two reads
                total += int((task / "schedstat").read_text().split()[column])
    return total


def cpu_ns(pids: Iterable[int]) -> int:
    """Return the user and system time of all threads of `pids` so far, in ns.

    Raises:
        ProcessGoneError: one of them has ended.
    """
    return _scheduled(pids, 0)


def core_wait_ns(pids: Iterable[int]) -> int:
    """Return the time in which threads of `pids` wanted a core and somebody else had it, in ns.

    Raises:
        ProcessGoneError: one of them has ended.
    """
    return _scheduled(pids, 1)


def _parents() -> dict[int, int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            # The command name, in parentheses, may hold spaces.
            after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            if after_name[0] != "Z":
                parents[int(entry.name)] = int(after_name[1])
    return parents


def descendants(pid: int) -> set[int]:
    """Return the living children of `pid` and theirs."""
    parents = _parents()
    found = {pid}
    grown = True
    while grown:
        more = {child for child, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return found - {pid}


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    return pid in _parents()


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def shared_memory_bytes(pid: int) -> int:
    """Return the bytes of POSIX shared memory that a process has mapped, each segment once."""
    segments: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith("/dev/shm/"):  # noqa: S108 - where the kernel shows them
            low, high = (int(part, 16) for part in fields[0].split("-"))
            end = int(fields[2], 16) + high - low
            segments[fields[4]] = max(segments.get(fields[4], 0), end)
    return sum(segments.values())


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Let children that are started inside inherit one core; None leaves them free."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def launch(
    command: Sequence[str],
    *,
    core: int | None = None,
    environment: Mapping[str, str] | None = None,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a program, pinned to `core` where one is given."""
    with on_core(core):
        return subprocess.Popen(  # noqa: S603 - our own commands
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=None if environment is None else dict(environment),
            pass_fds=tuple(pass_fds),
        )


def _see_off(pids: set[int], timeout_s: float) -> None:
    """Kill what has not ended by itself in time."""
    deadline = time.monotonic() + timeout_s
    while pids & _parents().keys() and time.monotonic() < deadline:
        time.sleep(0.01)
    for pid in pids & _parents().keys():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def stop_orphan(pid: int, timeout_s: float = 5.0) -> None:
    """End a process that is not our child (an upgraded relay), and all that it started."""
    family = {pid, *descendants(pid)}
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    _see_off(family, timeout_s)


def stop(process: subprocess.Popen[bytes], timeout_s: float = 5.0) -> int:
    """End a process and all that it started; its exit status.

    SIGTERM first; what does not go within `timeout_s` is killed, children included.
    """
    family = descendants(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    _see_off(family, timeout_s)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    return process.returncode
