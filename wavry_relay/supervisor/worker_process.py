"""One worker process as the supervisor sees it: started, heard, told, ended.

The supervisor holds a socket to it, over which both send single bytes, and a pidfd.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from wavry_relay.worker.process import LEFT, OPENED, PARKED, READY

__all__ = ["WorkerProcess", "how_it_ended"]

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class WorkerProcess:
    """A worker, from its start to its end.  Times are CLOCK_MONOTONIC, 0 for not yet.

    Attributes:
        number: of the worker.
        popen: the process.
        control: socket to it.
        pidfd: readable once it has ended.
        spawned_ns: when it was started.
        parked: it has everything ready and waits.
        ready: it serves.
        generation: of its number when it began to serve.
        gone_ns: when it ended.
        aborted_ns: when it was aborted for its silence.
        killed: it was killed after that.
        gone: it has ended.
        said: by message, whether it came.
    """

    number: int
    popen: subprocess.Popen[bytes]
    control: socket.socket
    pidfd: int
    spawned_ns: int
    parked: bool = False
    ready: bool = field(default=False, init=False)
    generation: int = field(default=0, init=False)
    gone_ns: int = field(default=0, init=False)
    aborted_ns: int = field(default=0, init=False)
    killed: bool = field(default=False, init=False)
    gone: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    said: defaultdict[bytes, asyncio.Event] = field(
        default_factory=lambda: defaultdict(asyncio.Event), init=False
    )

    @classmethod
    def spawn(
        cls,
        number: int,
        segment_fd: int,
        socket_fds: Sequence[int],
        placement: Sequence[str],
        *,
        now_ns: int,
        parked: bool,
    ) -> Self:
        """Start a worker.

        Args:
            number: of the worker.
            segment_fd: shared memory.
            socket_fds: what it serves.
            placement: arguments from `Placement.arguments`.
            now_ns: the time now.
            parked: it waits for its order once it is ready.

        Raises:
            OSError: the host has no descriptor, process or memory for it.
        """
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        mine.settimeout(0)
        command = [sys.executable, "-m", "wavry_relay.worker"]
        command += ["--number", str(number), "--parent", str(os.getpid())]
        command += ["--segment-fd", str(segment_fd), "--control-fd", str(theirs.fileno())]
        command += ["--socket-fds", ",".join(map(str, socket_fds)), *placement]
        if parked:
            command += ["--parked"]
        with theirs:
            try:
                popen = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    command,
                    stdin=subprocess.DEVNULL,
                    pass_fds=(segment_fd, theirs.fileno(), *socket_fds),
                )
            except OSError:
                mine.close()
                raise
        try:
            pidfd = os.pidfd_open(popen.pid)
        except OSError:
            mine.close()
            popen.kill()
            popen.wait()
            raise
        return cls(number, popen, mine, pidfd, now_ns, parked)

    def hear(self) -> bytes | None:
        """Note what it says; nothing (None) yet, or empty bytes: nothing any more."""
        try:
            message = self.control.recv(16)
        except BlockingIOError:
            return None
        except OSError:
            message = b""
        for word in (PARKED, OPENED, READY, LEFT):
            if word in message:
                self.said[word].set()
        return message

    async def says(self, word: bytes, timeout_s: float) -> bool:
        """Wait for a message of the process; False where it ends or stays silent."""
        waits = [asyncio.ensure_future(e.wait()) for e in (self.said[word], self.gone)]
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return self.said[word].is_set()

    def tell_or_kill(self, order: bytes) -> None:
        """Send an order to end; a process that cannot take it is killed."""
        try:
            self.control.send(order)
        except OSError:
            self.signal(signal.SIGKILL)

    def cpu_s(self) -> float:
        """Return its user and system time, seconds.

        Raises:
            OSError: it has ended.
        """
        stat = Path(f"/proc/{self.popen.pid}/stat").read_text()
        # proc(5): utime and stime are fields 14 and 15, and the name may hold anything.
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it lives."""
        if not self.gone.is_set():
            self.popen.send_signal(number)

    def reap(self, now_ns: int) -> int:
        """Take the exit code of a process that has ended, and give its descriptors back."""
        os.close(self.pidfd)
        self.control.close()
        code = self.popen.wait()
        self.ready = False
        self.gone_ns = now_ns
        self.gone.set()
        return code


def how_it_ended(code: int) -> str:
    """Return an exit code in words: the name of a signal, or the code."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
