"""What a hot upgrade costs: datagrams lost and the longest gap at the receiver.

A paced load runs at half of the capacity over all sessions; in its middle the relay is told to
upgrade.  The same load without an upgrade stands beside it: what is lost there too is not the
upgrade's.
"""

import time
from collections.abc import Callable
from typing import Final

from loadtest.generator import GeneratorLoad, GeneratorResult
from loadtest.relay_process import RelayProcess
from loadtest.sessions import Endpoints
from loadtest.stats import Report, judge, summarise
from loadtest.subjects import Subject, run_load, touch_all

from .forward import MeasurementError

__all__ = ["BENCH", "TARGET", "run_upgrade"]

BENCH = "upgrade"
TARGET: Final = "hot upgrade loses no datagram at 50 % load"

_PATIENCE: Final = 6
"""An upgrade under load may take this many times the idle one's time."""
_LONGEST_MS: Final = 20_000


def run_upgrade(
    report: Report,
    relay: RelayProcess,
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
    """Upgrade once in each repetition and add rows and the target.

    Args:
        report: takes rows and target.
        relay: is upgraded.
        subject: the same relay with its sessions.
        endpoints: its sockets.
        rate: packets/s of the load.
        sessions: over how many.
        core: of the generator.
        duration_ms: of the load; the upgrade begins after a quarter.  Longer where an upgrade of
            the idle relay shows that this machine needs it.
        repetitions: how many upgrades.
        progress: told what is being done.

    Raises:
        MeasurementError: an upgrade did not end within the load, or lost a session.
    """
    subject.need(sessions)
    duration_ms = max(duration_ms, min(_LONGEST_MS, int(_PATIENCE * 1000 * relay.upgrade())))

    def send(during: Callable[[], None] | None) -> GeneratorResult:
        return run_load(
            subject,
            GeneratorLoad(sessions, rate=rate, duration_ms=duration_ms, drain_ms=1000),
            endpoints,
            core=core,
            while_running=during,
        )

    results: dict[str, list[GeneratorResult]] = {"no upgrade": [], "upgrade": []}
    took_ms: list[float] = []

    def upgrade() -> None:
        began = time.monotonic()
        time.sleep(duration_ms / 4000)
        took_ms.append(1000 * relay.upgrade())
        if time.monotonic() - began > duration_ms / 1000:
            raise MeasurementError("the upgrade took longer than the load")

    for repetition in range(repetitions):
        progress(f"upgrade, repetition {repetition + 1}")
        for name, during in (("no upgrade", None), ("upgrade", upgrade)):
            subject.refresh()
            results[name].append(send(during))
        if touch_all(subject, endpoints, core=core) < sessions:
            raise MeasurementError("a session did not survive the upgrade")
    lost: dict[str, float] = {}
    for name, runs in results.items():
        case = f"{subject.name} {name} at {rate} packets/s, {sessions} sessions"
        rows = (
            summarise(BENCH, case, "packets_lost", "packets", [run.lost for run in runs]),
            summarise(BENCH, case, "longest_gap", "ms", [run.max_gap_ns / 1e6 for run in runs]),
        )
        report.rows += rows
        lost[name] = rows[0].max
    case = f"{subject.name} upgrade at {rate} packets/s, {sessions} sessions"
    report.rows.append(summarise(BENCH, case, "took", "ms", took_ms))
    report.targets.append(judge(TARGET, "at_most", 0, lost["upgrade"], "packets"))
