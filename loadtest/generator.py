"""Runs the native generator and reads what it found."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from .processes import launch
from .sessions import Endpoints, SessionFile

__all__ = ["GeneratorError", "GeneratorLoad", "GeneratorResult", "run_generator"]

_SPARE_S: Final = 20.0
"""Start, drain and a busy machine; a generator that takes longer hangs and is killed."""
_TOUCH_S: Final = 0.002
"""For each session that is touched: a slow relay on a busy machine."""


class GeneratorError(RuntimeError):
    """The generator failed; the message carries what it said."""


class GeneratorResult(msgspec.Struct, frozen=True):
    """Counts of one run; times in ns, latencies from the send call to the receive call."""

    sent: int
    received: int
    elapsed_ns: int
    max_gap_ns: int
    foreign: int
    send_errors: int
    late_bursts: int
    junk: int
    sessions_heard: int
    cpu_ns: int
    latency_p50_ns: int
    latency_p99_ns: int
    latency_p999_ns: int
    latency_max_ns: int

    @property
    def lost(self) -> int:
        """Packets that were sent and never came back."""
        return self.sent - self.received

    @property
    def packets_per_s(self) -> float:
        """Rate at which packets came back."""
        return self.received * 1e9 / self.elapsed_ns if self.elapsed_ns else 0.0


@dataclass(frozen=True, slots=True)
class GeneratorLoad:
    """What the generator is asked to send.

    Attributes:
        sessions: how many of the session file, from its beginning, in turn.
        burst: datagrams per send, 1 to 64.
        gso: send each burst as one UDP_SEGMENT packet.
        rate: datagrams per second; 0 is the closed loop.
        window: datagrams in flight at most in the closed loop.
        duration_ms: of sending.
        touch: instead, one datagram for each session.
        direct: send to the server sockets, with nothing between.
        channel_data: wrap each datagram in TURN ChannelData.
        size_bytes: of each datagram with its FORWARD header.
        drain_ms: how long to wait in silence for packets that are still missing.
        junk_per_s: datagrams of junk sent at the subject beside a paced load.
        junk_from_many: from random addresses, not from one.
    """

    sessions: int
    burst: int = 1
    gso: bool = False
    rate: int = 0
    window: int = 192
    duration_ms: int = 700
    touch: bool = False
    direct: bool = False
    channel_data: bool = False
    size_bytes: int = 1200
    drain_ms: int = 1000
    junk_per_s: int = 0
    junk_from_many: bool = False

    def arguments(self) -> list[str]:
        """Return the command line of the generator."""
        numbers = {
            "--count": self.sessions,
            "--burst": self.burst,
            "--rate": self.rate,
            "--window": self.window,
            "--duration-ms": self.duration_ms,
            "--size": self.size_bytes,
            "--drain-ms": self.drain_ms,
            "--junk": self.junk_per_s,
        }
        switches = {
            "--gso": self.gso,
            "--touch": self.touch,
            "--direct": self.direct,
            "--channel-data": self.channel_data,
        }
        sources = ["--junk-sources", "many" if self.junk_from_many else "one"]
        words = [word for name, value in numbers.items() for word in (name, str(value))]
        return words + sources + [name for name, on in switches.items() if on]


def run_generator(
    program: Path,
    load: GeneratorLoad,
    endpoints: Endpoints,
    sessions: SessionFile,
    *,
    target: str | None,
    core: int | None,
    while_running: Callable[[], None] | None = None,
) -> GeneratorResult:
    """Send a load and count what comes back.

    Args:
        program: from `compile_program`.
        load: what to send.
        endpoints: sockets of both sides; the generator inherits them.
        sessions: planned for these sockets.
        target: address of the subject, ``127.0.0.1:4500``; None for a direct load.
        core: pins the generator, which then polls; without it the generator sleeps.
        while_running: called once after the start, e.g. to kill a worker.

    Raises:
        GeneratorError: it ended with an error, or not at all.
    """
    command = [str(program), *load.arguments(), "--sessions", str(sessions.path)]
    command += ["--client-fds", ",".join(str(s.fileno()) for s in endpoints.clients)]
    command += ["--server-fds", ",".join(str(s.fileno()) for s in endpoints.servers)]
    if target is not None:
        command += ["--target", target]
    command += ["--sleep"] if core is None else ["--core", str(core)]
    process = launch(command, stderr=subprocess.PIPE, pass_fds=endpoints.fds)
    try:
        if while_running is not None:
            while_running()
        work_s = load.sessions * _TOUCH_S if load.touch else load.duration_ms / 1000
        out, err = process.communicate(timeout=work_s + _SPARE_S)
    except subprocess.TimeoutExpired as error:
        raise GeneratorError("generator did not end in time") from error
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    if process.returncode != 0:
        raise GeneratorError(f"generator ended with {process.returncode}: {err.decode().strip()}")
    return msgspec.json.decode(out, type=GeneratorResult)
