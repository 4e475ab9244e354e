"""CPU per forwarded packet and packets per second, all subjects in turn.

The repetitions go round the subjects, so that what else the machine does meets all of them alike.
The cost is the CPU time of the forwarding processes over the whole load, divided by the datagrams
that arrived.  One CPU count per packet makes a number for a core that does nothing else
(`per_core`), even where the generator was too slow to fill it; `throughput` is what really went
through in the closed loop, with one generator thread at the other end.  `core_share` says how much
of the time the subject had a core and used it: under 90 % the generator, or somebody else on the
machine, was the narrow place, and `throughput` is not the subject's own limit.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loadtest.generator import GeneratorLoad, GeneratorResult
from loadtest.processes import cpu_ns
from loadtest.sessions import Endpoints
from loadtest.stats import Report, Skipped, summarise
from loadtest.subjects import Subject, run_load

__all__ = [
    "BENCH",
    "ForwardCase",
    "MeasurementError",
    "capacity",
    "case_name",
    "forward_once",
    "run_forward",
]

BENCH = "forward"


class MeasurementError(RuntimeError):
    """Nothing, or nearly nothing, came through a subject that should forward."""


@dataclass(frozen=True, slots=True)
class ForwardCase:
    """Burst length, how a burst is sent, and over how many sessions."""

    burst: int
    gso: bool
    sessions: int


@dataclass(frozen=True, slots=True)
class _Sample:
    cpu_ns: int
    result: GeneratorResult

    @property
    def cpu_per_packet_ns(self) -> float:
        return self.cpu_ns / self.result.received


def case_name(subject: str, case: ForwardCase) -> str:
    """Return the name of a row: subject and load."""
    mode = "gso" if case.gso else "separate"
    return f"{subject} burst={case.burst} {mode} sessions={case.sessions}"


def forward_once(
    subject: Subject,
    case: ForwardCase,
    endpoints: Endpoints,
    *,
    core: int | None,
    duration_ms: int,
) -> _Sample:
    """Measure one closed-loop run.

    Raises:
        MeasurementError: more than half of the packets were lost.
    """
    subject.need(case.sessions)
    subject.refresh()
    load = GeneratorLoad(
        case.sessions,
        burst=case.burst,
        gso=case.gso,
        window=max(subject.window, case.burst),
        duration_ms=duration_ms,
        channel_data=subject.channel_data,
    )
    pids = subject.pids()
    before = cpu_ns(pids)
    result = run_load(subject, load, endpoints, core=core)
    spent = cpu_ns(pids) - before
    if result.received * 2 < result.sent or result.received == 0:
        raise MeasurementError(
            f"{case_name(subject.name, case)}: of {result.sent} packets {result.received} arrived"
        )
    return _Sample(spent, result)


def capacity(
    subject: Subject,
    case: ForwardCase,
    endpoints: Endpoints,
    *,
    core: int | None,
    duration_ms: int,
) -> float:
    """Return the packets/s of `case` in the closed loop, now: median of three runs."""
    runs = [
        forward_once(subject, case, endpoints, core=core, duration_ms=duration_ms).result
        for _ in range(3)
    ]
    return statistics.median(run.packets_per_s for run in runs)


def run_forward(
    report: Report,
    subjects: Sequence[Subject],
    cases: Sequence[ForwardCase],
    endpoints: Endpoints,
    *,
    core: int | None,
    duration_ms: int,
    repetitions: int,
    progress: Callable[[str], None],
) -> dict[ForwardCase, dict[str, list[float]]]:
    """Measure every case with every subject and add the rows.

    Returns:
        ns of CPU per packet, by case and subject, in the order of the repetitions.
    """
    costs: dict[ForwardCase, dict[str, list[float]]] = {}
    idle_known: set[int] = set()
    for case in cases:
        able = [subject for subject in subjects if subject.max_sessions >= case.sessions]
        for subject in subjects:
            if subject not in able:
                why = f"at most {subject.max_sessions} sessions can be set up"
                report.skipped.append(
                    Skipped(bench=BENCH, case=case_name(subject.name, case), reason=why)
                )
        samples: dict[str, list[_Sample]] = {subject.name: [] for subject in able}
        for subject in able:
            subject.need(case.sessions)
        for subject in able:
            if subject.grow is not None and subject.sessions.count not in idle_known:
                _add_idle(report, subject, repetitions, 2 * duration_ms)
        idle_known.add(case.sessions)
        for repetition in range(repetitions):
            progress(f"{case_name('forward', case)}, repetition {repetition + 1}")
            for subject in able:
                samples[subject.name].append(
                    forward_once(subject, case, endpoints, core=core, duration_ms=duration_ms)
                )
        for subject in able:
            _add_rows(report, case_name(subject.name, case), samples[subject.name])
        costs[case] = {
            name: [sample.cpu_per_packet_ns for sample in some] for name, some in samples.items()
        }
    return costs


def _add_idle(report: Report, subject: Subject, repetitions: int, duration_ms: int) -> None:
    """Measure what sessions cost while nothing is sent: sweeps and the like."""
    shares = []
    for _ in range(repetitions):
        pids = subject.pids()
        before, began = cpu_ns(pids), time.monotonic_ns()
        time.sleep(duration_ms / 1000)
        shares.append(100 * (cpu_ns(pids) - before) / (time.monotonic_ns() - began))
    name = f"{subject.name} sessions={subject.sessions.count}"
    report.rows.append(summarise("idle", name, "core_share", "%", shares))


def _add_rows(report: Report, name: str, samples: Sequence[_Sample]) -> None:
    cost = [sample.cpu_per_packet_ns for sample in samples]
    rate = [sample.result.packets_per_s for sample in samples]
    share = [100 * sample.cpu_ns / sample.result.elapsed_ns for sample in samples]
    lost = [100 * sample.result.lost / sample.result.sent for sample in samples]
    report.rows += (
        summarise(BENCH, name, "cpu_per_packet", "ns", cost),
        summarise(BENCH, name, "per_core", "packets/s", [1e9 / value for value in cost]),
        summarise(BENCH, name, "throughput", "packets/s", rate),
        summarise(BENCH, name, "core_share", "%", share),
        summarise(BENCH, name, "lost", "%", lost),
    )
