"""What a run prints each minute and at its end, and its JSON."""

import statistics
from collections.abc import Iterable, Iterator

import msgspec

from .journal import Incident, Journal
from .verdict import RunVerdict

__all__ = [
    "Minute",
    "RecoveryRow",
    "Summary",
    "incident_line",
    "minute_line",
    "recoveries",
    "summary_lines",
]


class Minute(msgspec.Struct, frozen=True):
    """One line of a run.

    Attributes:
        ends_s: seconds since the run began.
        alive: sessions.
        lost: sessions lost so far.
        sent: datagrams of that minute (as it was a while ago: those on their way may still come).
        missing: those of them that never came.
        late_ms: 99th percentile of their way, or None.
        held_up_ms: the longest that this process itself was late.
        incidents: that began in it.
    """

    ends_s: float
    alive: int
    lost: int
    sent: int
    missing: int
    late_ms: float | None
    held_up_ms: float
    incidents: int


class RecoveryRow(msgspec.Struct, frozen=True):
    """Times to recover from a kind, in milliseconds, and datagrams from its beginning on."""

    kind: str
    is_attack: bool
    count: int
    median_ms: float | None
    longest_ms: float | None
    sent: int
    missing: int


class Summary(msgspec.Struct, frozen=True):
    """`build/chaos.json`."""

    seed: int
    seconds: float
    sessions: int
    sent: int
    missing: int
    minutes: list[Minute]
    recoveries: list[RecoveryRow]
    skipped: dict[str, str]
    incidents: list[Incident]
    verdict: RunVerdict
    ok: bool


def minute_line(minute: Minute, rows: Iterable[RecoveryRow]) -> str:
    """Return the line of a minute: sessions, datagrams, and the median recovery of each kind."""
    times = " ".join(
        f"{row.kind}={row.median_ms:.0f}"
        for row in rows
        if not row.is_attack and row.median_ms is not None
    )
    late = "-" if minute.late_ms is None else f"{minute.late_ms:.1f}"
    return (
        f"{minute.ends_s / 60:6.1f} min  sessions {minute.alive} alive {minute.lost} lost  "
        f"datagrams {minute.sent} sent {minute.missing} lost  p99 {late} ms  "
        f"own lag {minute.held_up_ms:.0f} ms  "
        f"incidents {minute.incidents}  recovery ms: {times or '-'}"
    )


def incident_line(fault: Incident) -> str:
    """Return the line of a fault that is over."""
    lifted_s = fault.lifted_s or fault.began_s
    lasted = f"{fault.began_s:8.1f} s  {fault.kind} of {fault.target} ({fault.note})"
    if fault.recovered_s is None:
        return f"{lasted}, {lifted_s - fault.began_s:.1f} s long: NOT RECOVERED"
    took_ms = 1000 * (fault.recovered_s - lifted_s)
    return f"{lasted}, {lifted_s - fault.began_s:.1f} s long: recovered in {took_ms:.0f} ms"


def recoveries(journal: Journal) -> list[RecoveryRow]:
    """Return one row for each kind that came, faults first."""
    kinds = sorted({(one.is_attack, one.kind) for one in journal.incidents})
    return [_row(journal, kind, is_attack=is_attack) for is_attack, kind in kinds]


def _row(journal: Journal, kind: str, *, is_attack: bool) -> RecoveryRow:
    of_kind = [one for one in journal.incidents if one.kind == kind and one.is_attack == is_attack]
    took_ms = [
        1000 * (one.recovered_s - one.lifted_s)
        for one in of_kind
        if one.recovered_s is not None and one.lifted_s is not None
    ]
    sent = missing = 0
    for one in of_kind:
        end_s = one.recovered_s or one.lifted_s
        if end_s is not None:
            more, lost = journal.datagrams.between(one.began_s, end_s + 1)
            sent, missing = sent + more, missing + lost
    return RecoveryRow(
        kind,
        is_attack,
        len(of_kind),
        round(statistics.median(took_ms), 1) if took_ms else None,
        round(max(took_ms), 1) if took_ms else None,
        sent,
        missing,
    )


def summary_lines(summary: Summary) -> Iterator[str]:
    """Give what is printed at the end."""
    yield (
        f"seed {summary.seed}: {summary.seconds / 60:.1f} min, {summary.sessions} sessions, "
        f"{summary.sent} datagrams, {summary.missing} lost, "
        f"{len(summary.verdict.losses)} sessions lost"
    )
    heads = ("times", "median ms", "longest ms", "datagrams", "lost")
    yield "{:24} {:>5} {:>10} {:>11} {:>10} {:>7}".format("kind", *heads)
    for row in summary.recoveries:
        median, longest = (
            "-" if value is None else f"{value:.0f}" for value in (row.median_ms, row.longest_ms)
        )
        name = f"{row.kind} (attack)" if row.is_attack else row.kind
        yield f"{name:24} {row.count:5} {median:>10} {longest:>11} {row.sent:10} {row.missing:7}"
    for kind, reason in summary.skipped.items():
        yield f"SKIPPED {kind}: {reason}"
    for loss in summary.verdict.losses:
        excuse = "its relay had died" if loss.excused else "its relay lived"
        session = loss.session
        yield f"LOST {session.name} at {session.at_s:.1f} s ({excuse}): {session.reason}"
        yield from (f"    {line}" for line in loss.preceded_by)
    yield from (f"FAULT {fault}" for fault in summary.verdict.faults)
    yield "good" if summary.ok else "NOT good"
