"""Throughput with one worker and with two, not pinned.

The generator needs processor time too: where there are fewer cores than workers plus one, all of
them share, and the ratio says more about the machine than about the relay.  The row's name tells
the number of cores.
"""

import statistics
from collections.abc import Callable, Mapping

from loadtest.sessions import Endpoints
from loadtest.stats import Report, summarise
from loadtest.subjects import Subject

from .forward import ForwardCase, forward_once

__all__ = ["BENCH", "run_scaling"]

BENCH = "scaling"


def run_scaling(
    report: Report,
    subjects: Mapping[int, Subject],
    case: ForwardCase,
    endpoints: Endpoints,
    *,
    cores: int,
    duration_ms: int,
    repetitions: int,
    progress: Callable[[str], None],
) -> None:
    """Measure relays by their number of workers, in turn, and add the rows."""
    rates: dict[int, list[float]] = {workers: [] for workers in subjects}
    costs: dict[int, list[float]] = {workers: [] for workers in subjects}
    for repetition in range(repetitions):
        progress(f"scaling, repetition {repetition + 1}")
        for workers, subject in subjects.items():
            sample = forward_once(subject, case, endpoints, core=None, duration_ms=duration_ms)
            rates[workers].append(sample.result.packets_per_s)
            costs[workers].append(sample.cpu_per_packet_ns)
    fewest, most = min(subjects), max(subjects)
    base = statistics.median(rates[fewest])
    for workers, subject in subjects.items():
        name = f"{subject.name} workers={workers} cores={cores} burst={case.burst}"
        report.rows += (
            summarise(BENCH, name, "throughput", "packets/s", rates[workers]),
            summarise(BENCH, name, "cpu_per_packet", "ns", costs[workers]),
        )
        if workers == most:
            ratio = [value / base for value in rates[workers]]
            report.rows.append(summarise(BENCH, name, "speedup", "times", ratio))
