"""Media latency and loss while strangers send junk of every kind at the relay's port.

One thread sends the media, receives it and sends the junk (``native/junk.h``), so a batch of junk
holds the media up a little by itself: `direct_…` is the same load with the same junk at the relay
and nothing between the media's sockets, `added_…` the difference of the two.  `junk` is what was
really sent, which may be less than was asked for.
"""

from collections.abc import Callable
from typing import Final

from loadtest.generator import GeneratorLoad, GeneratorResult
from loadtest.processes import core_wait_ns, cpu_ns
from loadtest.sessions import Endpoints
from loadtest.stats import Report, judge, summarise
from loadtest.subjects import Subject, run_load

__all__ = ["BENCH", "JUNK_PER_S", "MEDIA_PER_S", "run_flood"]

BENCH: Final = "flood"
JUNK_PER_S: Final = 200_000
MEDIA_PER_S: Final = 10_000
MAX_P99_US: Final = 5_000
"""A frame of 60 per second lasts 16 ms; a turn of Python beside media takes under one."""
_SOURCES: Final = ("no junk", "one address", "many addresses")


def run_flood(
    report: Report,
    subject: Subject,
    endpoints: Endpoints,
    *,
    sessions: int,
    core: int | None,
    duration_ms: int,
    repetitions: int,
    progress: Callable[[str], None],
) -> None:
    """Measure without junk, with junk of one address and of many, and add rows and targets."""
    subject.need(sessions)
    for source in _SOURCES:
        relayed: list[GeneratorResult] = []
        direct: list[GeneratorResult] = []
        shares, waits = [], []
        for repetition in range(repetitions):
            progress(f"flood from {source}, repetition {repetition + 1}")
            for results, straight in ((relayed, False), (direct, True)):
                subject.refresh()
                load = GeneratorLoad(
                    sessions,
                    rate=MEDIA_PER_S,
                    duration_ms=duration_ms,
                    direct=straight,
                    junk_per_s=0 if source == "no junk" else JUNK_PER_S,
                    junk_from_many=source == "many addresses",
                )
                pids = subject.pids()
                before = cpu_ns(pids), core_wait_ns(pids)
                result = run_load(subject, load, endpoints, core=core)
                results.append(result)
                if not straight:
                    elapsed_ns = max(result.elapsed_ns, 1)
                    shares.append(100 * (cpu_ns(pids) - before[0]) / elapsed_ns)
                    waits.append(100 * (core_wait_ns(pids) - before[1]) / elapsed_ns)
        case = f"{subject.name} {MEDIA_PER_S} packets/s of media, {source}"
        for name, share in (("p50", "latency_p50_ns"), ("p99", "latency_p99_ns")):
            through = [getattr(one, share) / 1000 for one in relayed]
            past = [getattr(one, share) / 1000 for one in direct]
            added = [a - b for a, b in zip(through, past, strict=True)]
            report.rows += (
                summarise(BENCH, case, name, "us", through),
                summarise(BENCH, case, f"direct_{name}", "us", past),
                summarise(BENCH, case, f"added_{name}", "us", added),
            )
        junk = [one.junk * 1e9 / max(one.elapsed_ns, 1) for one in relayed]
        lost = summarise(BENCH, case, "lost", "%", [100 * o.lost / o.sent for o in relayed])
        report.rows += (
            lost,
            summarise(BENCH, case, "junk", "packets/s", junk),
            summarise(BENCH, case, "core_share", "%", shares),
            summarise(BENCH, case, "core_wait", "%", waits),
        )
        if source != "no junk":
            p99 = summarise(BENCH, case, "p99", "us", [o.latency_p99_ns / 1000 for o in relayed])
            name = f"{subject.name} under junk from {source}"
            report.targets += (
                judge(f"{name}: media p99", "at_most", MAX_P99_US, p99.median, "us"),
                judge(f"{name}: media lost", "at_most", 0.1, lost.median, "%"),
            )
