"""What a killed worker costs: the silence at the receiver, packets lost, sessions lost.

A paced load runs at half of the capacity over all sessions; in its middle the worker gets
SIGKILL.  Afterwards every session is tried once.
"""

import os
import signal
import time
from collections.abc import Callable
from typing import Final

from loadtest.generator import GeneratorLoad
from loadtest.processes import cpu_ns
from loadtest.sessions import Endpoints
from loadtest.stats import Report, judge, summarise
from loadtest.subjects import Subject, run_load, touch_all

from .forward import MeasurementError

__all__ = ["BENCH", "busiest_worker", "run_worker_kill"]

BENCH = "worker kill"
MAX_SILENCE_MS: Final = 300
_RECOVERY_S: Final = 10.0


def busiest_worker(subject: Subject, exercise: Callable[[], object]) -> int:
    """Return the process that spends the most CPU time while `exercise` runs."""
    pids = subject.pids()
    before = {pid: cpu_ns([pid]) for pid in pids}
    exercise()
    return max(pids, key=lambda pid: cpu_ns([pid]) - before[pid])


def run_worker_kill(
    report: Report,
    subject: Subject,
    endpoints: Endpoints,
    *,
    rate: int,
    sessions: int,
    core: int | None,
    duration_ms: int,
    repetitions: int,
    progress: Callable[[str], None],
) -> None:
    """Kill one worker in each repetition and add rows and targets.

    Args:
        report: takes rows and targets.
        subject: a relay of one worker.
        endpoints: its sockets.
        rate: packets/s of the load.
        sessions: over how many.
        core: of the generator.
        duration_ms: of the load; the worker dies after a third.
        repetitions: how many workers die.
        progress: told what is being done.

    Raises:
        MeasurementError: no worker died.
    """
    subject.need(sessions)
    silence: list[float] = []
    packets_lost: list[float] = []
    sessions_lost: list[float] = []
    for repetition in range(repetitions):
        progress(f"worker kill, repetition {repetition + 1}")
        worker = busiest_worker(subject, lambda: touch_all(subject, endpoints, core=core))

        def kill(pid: int = worker) -> None:
            time.sleep(duration_ms / 3000)
            os.kill(pid, signal.SIGKILL)

        load = GeneratorLoad(sessions, rate=rate, duration_ms=duration_ms, drain_ms=1000)
        result = run_load(subject, load, endpoints, core=core, while_running=kill)
        if worker in subject.pids():
            raise MeasurementError("the killed worker is still there")
        silence.append(result.max_gap_ns / 1e6)
        packets_lost.append(result.lost)
        deadline = time.monotonic() + _RECOVERY_S
        alive = touch_all(subject, endpoints, core=core)
        while alive < sessions and time.monotonic() < deadline:
            alive = max(alive, touch_all(subject, endpoints, core=core))
        sessions_lost.append(sessions - alive)
    case = f"{subject.name} at {rate} packets/s, {sessions} sessions"
    worst = summarise(BENCH, case, "silence", "ms", silence)
    gone = summarise(BENCH, case, "sessions_lost", "sessions", sessions_lost)
    report.rows += (worst, gone, summarise(BENCH, case, "packets_lost", "packets", packets_lost))
    report.targets += (
        judge(
            f"{subject.name} worker killed: silence", "at_most", MAX_SILENCE_MS, worst.median, "ms"
        ),
        judge(f"{subject.name} worker killed: sessions lost", "at_most", 0, gone.max, "sessions"),
    )
