"""What tests need around a relay's host: a service manager, passed sockets, dropped rights."""

import contextlib
import ctypes
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from support.paths import REPOSITORY
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.relay.udp_peer import UdpPeer
from support.waiting import wait_until

CAP_NET_ADMIN = 12
_PR_CAPBSET_DROP = 24
_CREDENTIALS = struct.Struct("iII")

# As a service manager does it: the sockets from descriptor 3 on, and the process's own id, which is
# known after the fork only.
_LAUNCH = """
import fcntl, os, sys
fds = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[1].split(",") if fd]
for number, fd in enumerate(fds):
    os.dup2(fd, 3 + number, inheritable=True)
    os.close(fd)
os.environ["LISTEN_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class ServiceManager:
    """The end of sd_notify that systemd has: a unix datagram socket.

    A thread takes what comes, as systemd does: the kernel keeps ten datagrams, and a sender waits.

    Args:
        where: a path, or ``@`` and an abstract name.
    """

    def __init__(self, where: str) -> None:
        self.address = where
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind("\0" + where[1:] if where.startswith("@") else where)
        self.sock.setblocking(False)
        self.messages: list[dict[str, str]] = []
        self._arrived: list[dict[str, str]] = []
        self._reading = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.sock.close()

    def _read(self) -> None:
        while not self._ended.wait(0.02):
            with self._reading:
                self._take_all()

    def _take_all(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                message = self.receive()
                if message is not None:
                    self._arrived.append(message)

    def collect(self, seconds: float = 0.0) -> list[dict[str, str]]:
        """All messages so far, after listening for a while."""
        time.sleep(seconds)
        with self._reading:
            self._take_all()
            self.messages += self._arrived
            self._arrived.clear()
        return self.messages

    def receive(self) -> dict[str, str] | None:
        """The next message, or None if it is not believed."""
        lines = self.sock.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def wait_for(self, deadline_s: float = 20.0, **wanted: str) -> dict[str, str]:
        """The first new message with these states, and what else it says."""
        end = time.monotonic() + deadline_s
        seen = len(self.messages)
        while True:
            for message in self.messages[seen:]:
                if wanted.items() <= message.items():
                    return message
            seen = len(self.messages)
            if time.monotonic() > end:
                raise AssertionError(f"{wanted} did not come: {self.messages}")
            self.collect(0.05)


class StrictManager(ServiceManager):
    """As systemd with NotifyAccess=main: it knows who speaks and believes the main process alone.

    Attributes:
        main_pid: the present main process; the first that speaks, then whom that one names.
    """

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.main_pid = 0

    def receive(self) -> dict[str, str] | None:
        """The next message with its ``sender``, or None if it is not believed."""
        room = socket.CMSG_SPACE(_CREDENTIALS.size)
        raw, ancillary, _, _ = self.sock.recvmsg(4096, room)
        ((_, _, credentials),) = ancillary
        pid = _CREDENTIALS.unpack(credentials)[0]
        states = dict(line.split("=", 1) for line in raw.decode().splitlines())
        self.main_pid = self.main_pid or pid
        if pid != self.main_pid:
            return None
        self.main_pid = int(states.get("MAINPID", pid))
        return states | {"sender": str(pid)}


class HostedRelay(RelayProcess):
    """A relay that is started as a service manager starts it.

    Args:
        passed: name and socket, for descriptors 3 on.
        manager: hears its notifications.
        drop: capabilities that it must not have.
        environ: as for `RelayProcess`.
    """

    def __init__(
        self,
        directory: Path,
        mint: Mint,
        *,
        passed: Sequence[tuple[str, socket.socket]] = (),
        manager: ServiceManager | None = None,
        drop: Sequence[int] = (),
        **environ: Any,
    ) -> None:
        super().__init__(directory, mint, **environ)
        self.passed = [sock for _, sock in passed]
        self.drop = list(drop)
        if passed:
            self.environ["LISTEN_FDS"] = str(len(passed))
            self.environ["LISTEN_FDNAMES"] = ":".join(name for name, _ in passed)
        if manager is not None:
            self.environ["NOTIFY_SOCKET"] = manager.address

    def launch(self) -> None:
        """Start without waiting."""
        self.ready_file.unlink(missing_ok=True)
        fds = [sock.fileno() for sock in self.passed]
        command = [sys.executable, "-c", _LAUNCH, ",".join(map(str, fds)), sys.executable]
        command += ["-m", "wavry_relay", "run", "--ready-file", str(self.ready_file)]
        prctl = ctypes.CDLL(None).prctl

        def drop() -> None:
            for capability in self.drop:
                prctl(_PR_CAPBSET_DROP, capability)

        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=fds,
                preexec_fn=drop,
            )

    def refusal(self, deadline_s: float = 20.0) -> tuple[int, str]:
        """Start a relay that must refuse: its exit status and its log."""
        self.launch()
        return self.wait(deadline_s), self.log()

    def processes(self) -> list[int]:
        """The supervisor and its workers."""
        return [int(self.facts["pid"]), *self.worker_pids()]


def udp_sockets(
    count: int, host: str = "127.0.0.1", *, reuse: bool = True, only_v6: bool = True
) -> list[socket.socket]:
    """Bound UDP sockets of one free port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made: list[socket.socket] = []
    for _ in range(count):
        sock = socket.socket(family, socket.SOCK_DGRAM)
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_v6)
        sock.bind((host, made[0].getsockname()[1] if made else 0))
        made.append(sock)
    return made


class Traffic:
    """A stream from one peer to the other for as long as the context lasts.

    Attributes:
        received: datagrams that arrived.
    """

    def __init__(self, sender: UdpPeer, receiver: UdpPeer) -> None:
        self.sender, self.receiver = sender, receiver
        self.received = 0
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._send, self._receive)]

    def __enter__(self) -> Self:
        self.receiver.sock.settimeout(0.1)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        while not self._stopped.wait(0.002):
            self.sender.forward(bytes(200))

    def _receive(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                self.receiver.receive()
                self.received += 1

    def wait_for_more(self, count: int = 50) -> None:
        """Until so many more arrived."""
        goal = self.received + count
        wait_until(lambda: self.received >= goal, timeout_s=30, what="forwarded packets")


def environment_of(pid: int) -> dict[str, str]:
    """Environment that a process was started with."""
    raw = Path(f"/proc/{pid}/environ").read_bytes().decode()
    return dict(entry.split("=", 1) for entry in raw.split("\0") if "=" in entry)


def cpu_ticks(pids: Sequence[int]) -> int:
    """CPU time of processes, in clock ticks (user and system)."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
    return sum(int(stat[11]) + int(stat[12]) for stat in stats)


def control_command(relay: RelayProcess, name: str) -> dict[str, Any]:
    """Ask over the control socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        sock.connect(str(relay.state_dir / "control.sock"))
        sock.sendall(json.dumps({"command": name}).encode() + b"\n")
        with sock.makefile("rb") as lines:
            return dict(json.loads(lines.readline()))


IS_ROOT = os.geteuid() == 0


@contextlib.contextmanager
def few_descriptors(pid: int, more: int = 1) -> Iterator[None]:
    """The process can open `more` until the end of the block: one is for questions to its ops."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + more, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
