"""What is measured: each subject forwards datagrams of its sessions between the same sockets."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from wavry_peer.protocol import packets
from wavry_peer.service.settings import parse_address

from . import turn
from .bench_master import BenchMaster
from .generator import GeneratorLoad, GeneratorResult, run_generator
from .native_build import compile_program
from .processes import launch, stop
from .relay_client import admit, prepare
from .relay_process import RelayProcess
from .sessions import Endpoints, SessionFile, SessionPlan, plan_sessions

__all__ = [
    "Subject",
    "SubjectMissingError",
    "coturn",
    "floor",
    "relay_subject",
    "run_load",
    "touch_all",
    "uvloop_relay",
]

_TOUCH_S: Final = 20.0
"""A relay forgets a session that was idle for 60 s; a third leaves room for a slow touch."""
_GROW_STEP: Final = 1024
_COTURN_REFRESH_S: Final = 120.0
"""A TURN permission lives 300 s."""
_START_S: Final = 10.0


class SubjectMissingError(RuntimeError):
    """The subject cannot run on this machine; the message says why and what to install."""


def _nothing() -> None:
    return None


@dataclass(slots=True)
class Subject:
    """A running program that forwards.

    Attributes:
        name: as in the table.
        target: ``127.0.0.1:PORT``.
        pids: processes whose CPU time is the cost of forwarding, as they are now.
        sessions: planned for the shared sockets.
        max_sessions: more than these cannot be set up.
        channel_data: speaks TURN ChannelData.
        window: datagrams in flight that its socket buffer holds.
        grow: sets sessions up until there are this many.
        refresh: called before each measurement.
    """

    name: str
    target: str
    pids: Callable[[], Sequence[int]]
    sessions: SessionFile
    max_sessions: int
    channel_data: bool = False
    window: int = 192
    grow: Callable[[int], SessionFile] | None = None
    refresh: Callable[[], None] = field(default=_nothing)

    def need(self, count: int) -> None:
        """Set sessions up until there are `count`."""
        if self.sessions.count < count and self.grow is not None:
            self.sessions = self.grow(count)


def run_load(
    subject: Subject,
    load: GeneratorLoad,
    endpoints: Endpoints,
    *,
    core: int | None,
    while_running: Callable[[], None] | None = None,
) -> GeneratorResult:
    """Send a load through a subject; see `run_generator`."""
    return run_generator(
        compile_program("generator"),
        load,
        endpoints,
        subject.sessions,
        target=subject.target,
        core=core,
        while_running=while_running,
    )


def touch_all(subject: Subject, endpoints: Endpoints, *, core: int | None) -> int:
    """Send a datagram through each session; how many sessions forwarded it.

    What was lost on the way gets two more tries.
    """
    load = GeneratorLoad(
        subject.sessions.count, touch=True, channel_data=subject.channel_data, window=48
    )
    heard: list[int] = [0] * subject.sessions.count
    for _ in range(3):
        run_load(subject, load, endpoints, core=core)
        heard = [a + b for a, b in zip(heard, subject.sessions.received(), strict=True)]
        if all(heard):
            break
    return sum(1 for count in heard if count)


def _announced_port(process: subprocess.Popen[bytes], name: str) -> int:
    if process.stdout is None:
        raise RuntimeError("the program was started without a pipe")
    line = process.stdout.readline()
    if not line:
        raise SubjectMissingError(f"{name} ended at start")
    return int(msgspec.json.decode(line)["port"])


@contextlib.contextmanager
def floor(
    mode: str, endpoints: Endpoints, directory: Path, core: int | None, sessions: int
) -> Iterator[Subject]:
    """Start a bare C forwarder (`plain`, `mmsg` or `gso`) to the first server socket."""
    name = f"floor-{mode}"
    host, port = endpoints.servers[0].getsockname()
    command = [str(compile_program("floor")), mode, "--to", f"{host}:{port}"]
    process = launch(command, core=core)
    try:
        target = f"127.0.0.1:{_announced_port(process, name)}"
        # All sessions end at one socket: there is nothing in a floor that could choose.
        plans = plan_sessions(sessions, clients=len(endpoints.clients), servers=1)
        file = SessionFile.write(directory / f"{name}.sessions", plans)
        yield Subject(name, target, lambda: [process.pid], file, max_sessions=sessions)
    finally:
        stop(process)


def _introduce(target: str, plans: Sequence[SessionPlan], endpoints: Endpoints) -> None:
    """Send one datagram from both sides of each session, slowly enough that none is lost."""
    address = parse_address(target)
    for index, plan in enumerate(plans):
        hello = packets.build_forward(plan.session_id, bytes(8))
        endpoints.clients[plan.client].sendto(hello, address)
        endpoints.servers[plan.server].sendto(hello, address)
        if index % 32 == 31:
            time.sleep(0.002)


@contextlib.contextmanager
def uvloop_relay(
    endpoints: Endpoints, directory: Path, core: int | None, sessions: int
) -> Iterator[Subject]:
    """Start the relay of 30 lines.

    Raises:
        SubjectMissingError: uvloop is not installed.
    """
    script = Path(__file__).parent / "comparisons" / "uvloop_relay.py"
    process = launch([sys.executable, str(script)], core=core, stderr=subprocess.DEVNULL)
    try:
        try:
            target = f"127.0.0.1:{_announced_port(process, 'uvloop-relay')}"
        except SubjectMissingError as error:
            raise SubjectMissingError(
                "uvloop is not installed: pip install 'wavry[loadtest]'"
            ) from error
        clients, servers = len(endpoints.clients), len(endpoints.servers)
        plans = plan_sessions(sessions, clients=clients, servers=servers)
        _introduce(target, plans, endpoints)
        file = SessionFile.write(directory / "uvloop.sessions", plans)
        yield Subject("uvloop-relay", target, lambda: [process.pid], file, max_sessions=sessions)
    finally:
        stop(process)


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def coturn(endpoints: Endpoints, directory: Path, core: int | None) -> Iterator[Subject]:
    """Run Debian's TURN server: one relay thread, ChannelData towards the peers.

    Raises:
        SubjectMissingError: turnserver is not installed or does not start.
    """
    program = shutil.which("turnserver")
    if program is None:
        raise SubjectMissingError("turnserver is not installed: run loadtest/install-packages")
    port = _free_port()
    options = ["-n", "--no-auth", "--no-cli", "--allow-loopback-peers", "--no-tls", "--no-dtls"]
    options += ["--no-tcp", "-m", "1", "-L", "127.0.0.1", "-E", "127.0.0.1", "-p", str(port)]
    options += ["--log-file", "stdout", "--pidfile", str(directory / "turnserver.pid")]
    options += ["--userdb", str(directory / "turndb")]
    with (directory / "turnserver.log").open("wb") as log:
        process = launch([program, *options], core=core, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield _coturn_subject(endpoints, directory, process.pid, ("127.0.0.1", port))
    finally:
        stop(process)


def _coturn_subject(
    endpoints: Endpoints, directory: Path, pid: int, server: tuple[str, int]
) -> Subject:
    clients, servers = len(endpoints.clients), len(endpoints.servers)
    # A TURN server knows a session by (allocation, peer address): each pair can be used once.
    plans = plan_sessions(clients * servers, clients=clients, servers=servers)
    subject = Subject(
        "coturn",
        f"{server[0]}:{server[1]}",
        lambda: [pid],
        SessionFile.write(directory / "coturn.sessions", []),
        max_sessions=len(plans),
        channel_data=True,
        window=48,  # coturn asks for 64 KiB of socket buffer
    )
    bound_at_s = time.monotonic()

    def bind(some: Sequence[SessionPlan]) -> None:
        for plan in some:
            peer = endpoints.servers[plan.server].getsockname()
            turn.bind_channel(endpoints.clients[plan.client], server, plan.channel, peer)

    def grow(count: int) -> SessionFile:
        fresh = plans[subject.sessions.count : count]
        bind(fresh)
        return subject.sessions.extend(fresh)

    def refresh() -> None:
        nonlocal bound_at_s
        if time.monotonic() - bound_at_s > _COTURN_REFRESH_S:
            bind(plans[: subject.sessions.count])
            bound_at_s = time.monotonic()

    try:
        for opened in endpoints.clients:
            turn.allocate(opened, server)
    except turn.TurnError as error:
        raise SubjectMissingError(f"turnserver does not serve: {error}") from error
    subject.grow = grow
    subject.refresh = refresh
    return subject


def relay_subject(
    relay: RelayProcess,
    master: BenchMaster,
    endpoints: Endpoints,
    directory: Path,
    *,
    name: str,
) -> Subject:
    """Start the relay itself; real, key-bound leases admit its sessions as they are needed."""
    directory.mkdir(parents=True, exist_ok=True)
    clients, servers = len(endpoints.clients), len(endpoints.servers)
    plans = plan_sessions(relay.max_sessions, clients=clients, servers=servers)
    subject = Subject(
        name,
        relay.target,
        relay.worker_pids,
        SessionFile.write(directory / "relay.sessions", []),
        max_sessions=relay.max_sessions,
    )

    touched_at_s = time.monotonic()

    def refresh() -> None:
        nonlocal touched_at_s
        if subject.sessions.count and time.monotonic() - touched_at_s > _TOUCH_S:
            touch_all(subject, endpoints, core=None)
            touched_at_s = time.monotonic()

    def grow(count: int) -> SessionFile:
        while subject.sessions.count < count:
            done = subject.sessions.count
            fresh = plans[done : min(count, done + _GROW_STEP)]
            admit(relay.address, prepare(master, relay.relay_id, fresh, endpoints), endpoints)
            subject.sessions = subject.sessions.extend(fresh)
            refresh()
        return subject.sessions

    subject.grow = grow
    subject.refresh = refresh
    return subject
