"""One-way latency through the relay against the same sockets with nothing between.

Open loop: bursts leave at fixed times, at a share of the throughput that a closed loop over the
same relay has just reached.  The
clock is one thread's, from before the send call to after the receive call; `added` is the
difference of the same percentile of the two paths.  `core_wait` is the share of the time in which
the relay wanted its core and another process of the machine had it: the scheduler lets that one
finish its slice of some milliseconds, and with more than about one per cent of such waiting the
99th percentile is the machine's, not the relay's.
"""

from collections.abc import Callable
from typing import Final

from loadtest.generator import GeneratorLoad, GeneratorResult
from loadtest.processes import core_wait_ns
from loadtest.sessions import Endpoints
from loadtest.stats import Report, summarise
from loadtest.subjects import Subject, run_load

from .forward import ForwardCase, capacity, case_name

__all__ = ["BENCH", "SHARES_PCT", "run_latency"]

BENCH = "latency"
SHARES_PCT: Final = (10, 50, 80)


def _percentiles(result: GeneratorResult) -> dict[str, float]:
    return {
        "p50": result.latency_p50_ns / 1000,
        "p99": result.latency_p99_ns / 1000,
        "p99.9": result.latency_p999_ns / 1000,
    }


def run_latency(
    report: Report,
    subject: Subject,
    case: ForwardCase,
    endpoints: Endpoints,
    *,
    core: int | None,
    duration_ms: int,
    repetitions: int,
    progress: Callable[[str], None],
) -> None:
    """Measure at each share of the capacity of `case` and add the rows."""
    most = capacity(subject, case, endpoints, core=core, duration_ms=duration_ms)
    for share in SHARES_PCT:
        rate = int(most * share / 100)
        relayed: list[GeneratorResult] = []
        direct: list[GeneratorResult] = []
        waits: list[float] = []
        for repetition in range(repetitions):
            progress(f"latency at {share} % of the capacity, repetition {repetition + 1}")
            for results, straight in ((relayed, False), (direct, True)):
                subject.refresh()
                load = GeneratorLoad(
                    case.sessions,
                    burst=case.burst,
                    gso=case.gso,
                    rate=max(rate, 1),
                    duration_ms=duration_ms,
                    direct=straight,
                )
                pids = subject.pids()
                waited_ns = core_wait_ns(pids)
                result = run_load(subject, load, endpoints, core=core)
                results.append(result)
                if not straight:
                    waited_ns = core_wait_ns(pids) - waited_ns
                    waits.append(100 * waited_ns / max(result.elapsed_ns, 1))
        name = f"{case_name(subject.name, case)} at {share} % = {rate} packets/s"
        through = [_percentiles(result) for result in relayed]
        past = [_percentiles(result) for result in direct]
        for metric in ("p50", "p99", "p99.9"):
            values = [one[metric] for one in through]
            bare = [one[metric] for one in past]
            added = [a - b for a, b in zip(values, bare, strict=True)]
            report.rows += (
                summarise(BENCH, name, metric, "us", values),
                summarise(BENCH, name, f"direct_{metric}", "us", bare),
                summarise(BENCH, name, f"added_{metric}", "us", added),
            )
        lost = [100 * one.lost / one.sent for one in relayed]
        report.rows += (
            summarise(BENCH, name, "lost", "%", lost),
            summarise(BENCH, name, "core_wait", "%", waits),
        )
