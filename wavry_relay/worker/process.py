"""A worker process: one engine loop over the shared tables, a heartbeat, nothing else.

It is started by the supervisor with everything it needs as descriptors: the segment, a control
socket and one UDP socket for each listen address.  It ends when the control socket ends (the
supervisor stopped or died) and is killed by the kernel if the supervisor dies while it hangs.
Imports are few, because a replacement must be forwarding again within a fraction of a second.
"""

import argparse
import contextlib
import ctypes
import faulthandler
import gc
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from wavry_peer.service import log_stream
from wavry_peer.service.clock import Clock
from wavry_relay.admission.admission import Admission
from wavry_relay.admission.policy import RelayPolicy
from wavry_relay.admission.revocation_view import RevocationView
from wavry_relay.admission.verify_load import VerifyLoad
from wavry_relay.engine import load_engine, open_engine
from wavry_relay.engine.base import ControlPacket, Engine
from wavry_relay.shm.control import ControlBlock, EngineKind, WorkerRow, WorkerState
from wavry_relay.shm.counters import CounterRow
from wavry_relay.shm.segment import Segment
from wavry_relay.shm.tables import Tables
from wavry_relay.worker_log import worker_log

from .chores import Chores
from .placement import pin_to

__all__ = [
    "BOOT_FAILURE",
    "GO",
    "LEAVE",
    "LEFT",
    "OPEN",
    "OPENED",
    "PARKED",
    "READY",
    "STOP",
    "Worker",
    "main",
]

BOOT_FAILURE: Final = 3
"""Exit code of a worker that could not start: starting it again at once would not help."""
READY: Final = b"R"
STOP: Final = b"S"
"""Order to end and to tell the peers so."""
LEAVE: Final = b"L"
"""Order to end without a word to the peers: another worker goes on in this one's place."""
LEFT: Final = b"l"
"""Answer to it, after the last touch of sockets and tables."""
PARKED: Final = b"P"
"""A worker that was started ``--parked`` has loaded everything; it waits for `OPEN`, then `GO`."""
OPEN: Final = b"O"
OPENED: Final = b"o"
GO: Final = b"G"

_LAST_ROUNDS: Final = 64
"""Rounds that a leaving worker gives what it has received and not yet handled; a flood of control
packets, which alone can fill them, must not keep it."""

_ROUND_MS: Final = 50
"""Longest wait of one round: the heartbeat and the sweep need the loop this often."""
_PR_SET_PDEATHSIG: Final = 1


class Worker:
    """Packet loop of one worker.

    Args:
        engine: owns the sockets.
        admission: answers control packets.
        chores: what is done between two batches.
        row: heartbeat.
        counters: of this worker.
        control: socket to the supervisor.
        clock: time.
    """

    def __init__(
        self,
        engine: Engine,
        admission: Admission,
        chores: Chores,
        row: WorkerRow,
        counters: CounterRow,
        control: socket.socket,
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._admission = admission
        self._chores = chores
        self._row = row
        self._counters = counters
        self._control = control
        self._clock = clock
        self.stopping = False
        self._leaving = False
        self._lines_lost = 0

    def run(self) -> None:
        """Forward until told to stop; the supervisor's end counts as that too."""
        self._control.settimeout(0)
        while not self.stopping:
            self._answer(self._engine.run(0 if self._chores.is_busy else _ROUND_MS))
            now = self._clock.now()
            self._chores.step(now)
            self._row.heartbeat_ns = now.mono_ns
            self._row.rounds += 1
            self._count_lost_lines()
            self._read_control()
        if self._leaving:
            self._leave()

    def _count_lost_lines(self) -> None:
        lost = log_stream.lines_lost()
        if lost != self._lines_lost:
            self._counters.add("log_lines_lost", lost - self._lines_lost)
            self._lines_lost = lost

    def _leave(self) -> None:
        """Handle what was received; only a round without control packets has left nothing."""
        for _ in range(_LAST_ROUNDS):
            packets = self._engine.run(0)
            self._answer(packets)
            if not packets:
                break
        with contextlib.suppress(OSError):
            self._control.send(LEFT)

    def _answer(self, packets: list[ControlPacket]) -> None:
        """Answer a batch; the answers leave together, in as few system calls as the engine can."""
        if not packets:
            return
        answers = self._admission.handle_all(packets, self._clock.now(), self._note_defect)
        self._engine.answer(packets, answers)

    def _note_defect(self, error: Exception) -> None:
        self._counters.add("internal_errors")
        _report(error)

    def _read_control(self) -> None:
        try:
            order = self._control.recv(16)
        except BlockingIOError:
            return
        except ConnectionError:
            order = b""
        if STOP in order:
            self._chores.announce_end()
        self._leaving = LEAVE in order
        self.stopping = not order or STOP in order or self._leaving


def _report(error: Exception) -> None:
    worker_log().error(
        "control_packet_failed",
        exc_info=error,
        next_step="report this with the traceback; the packet was dropped and forwarding goes on",
    )


def _tie_to_parent(parent_pid: int) -> None:
    """Ask the kernel to kill this process when the supervisor dies, and end if it already has."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit(0)


def _build(options: argparse.Namespace, clock: Clock) -> Worker:
    segment = Segment.attach(options.segment_fd)
    control = socket.socket(fileno=options.control_fd)
    sockets = [socket.socket(fileno=int(fd)) for fd in options.socket_fds.split(",")]
    counters = CounterRow(segment, options.number)
    kind = EngineKind(ControlBlock(segment).engine)
    if options.parked:
        load_engine(kind)
        gc.freeze()
        control.sendall(PARKED)
        _await_order(control, OPEN)
    # Opening starts a new generation of this worker number: only two of them may live.
    engine = open_engine(
        kind,
        segment,
        sockets,
        counters,
        clock,
        wake_fd=control.fileno(),
        busy_poll_us=options.busy_poll_us,
    )
    tables = Tables(segment, engine.locks)
    row = WorkerRow(segment, options.number)
    view = RevocationView(tables)
    policy = RelayPolicy(view, tables.blocks, VerifyLoad(tables.control, row, counters))
    admission = Admission(tables, engine, counters, policy)
    chores = Chores(tables, counters, options.number, policy, view, engine.send)
    if options.parked:
        control.sendall(OPENED)
        _await_order(control, GO)
    now_ns = clock.now().mono_ns
    row.pid, row.booted_ns, row.heartbeat_ns = os.getpid(), now_ns, now_ns
    row.state = WorkerState.RUNNING
    control.sendall(READY)
    return Worker(engine, admission, chores, row, counters, control, clock)


def _await_order(control: socket.socket, order: bytes) -> None:
    """Wait for the supervisor; any other order, and its end, end this process."""
    if control.recv(1) != order:
        os._exit(0)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="wavry_relay.worker", description=__doc__)
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--segment-fd", type=int, required=True)
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--socket-fds", required=True)
    parser.add_argument("--busy-poll-us", type=int, default=0)
    parser.add_argument("--cpu", type=int)
    parser.add_argument("--parked", action="store_true", help="wait for the order to begin")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> NoReturn:
    """Entry point of a worker process."""
    faulthandler.enable()  # SIGABRT of a hung worker shows where it hangs.
    # Ctrl-C, reload and stop, which may go to the whole process group: the supervisor's business.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    log_stream.install("relay-worker")
    options = _parse(arguments)
    _tie_to_parent(options.parent)
    if options.cpu is not None:
        pin_to(options.cpu, options.number)
    try:
        worker = _build(options, Clock())
    except Exception as error:  # noqa: BLE001 - whatever it is, the exit code must say "boot"
        sys.stderr.write(f"relay worker {options.number} cannot start: {error!r}\n")
        sys.exit(BOOT_FAILURE)

    gc.freeze()  # What is here now stays; collections need not look at it again.
    worker.run()
    log_stream.drain()
    # No unwinding: the kernel closes what is open, and the sockets live on in the supervisor.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
