"""What the forward table promises: ratios of CPU per packet between subjects of one run.

A repetition measures all subjects of a case one after the other, within seconds.  So each ratio is
taken inside a repetition and the median of the repetitions counts: a machine that is slower for a
minute is slower for both.  Cases with other numbers of sessions are minutes apart; they are
compared by what the relay costs beside the bare forwarder of the same minute, which knows no
sessions.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from loadtest.stats import Better, Report, Skipped, judge, summarise

from .forward import ForwardCase

__all__ = ["BENCH", "Costs", "compare_forward"]

BENCH: Final = "comparison"
FLOORS: Final = ("floor-plain", "floor-mmsg", "floor-gso")
MAX_FLOOR_SINGLE: Final = 1.15
MAX_FLOOR_OFFLOAD: Final = 1.3
MIN_COTURN_SINGLE: Final = 1.5
MIN_COTURN_OFFLOAD: Final = 8.0
MIN_UVLOOP_OFFLOAD: Final = 8.0
MAX_MANY_SESSIONS: Final = 1.5

Costs = Mapping[ForwardCase, Mapping[str, Sequence[float]]]
"""ns of CPU per packet, by case and subject, in the order of the repetitions."""


class _Promise(NamedTuple):
    """`limit` None is a row of the table without a promise."""

    name: str
    direction: Better
    limit: float | None
    ratios: Sequence[float] | None


def _ratios(over: Sequence[float] | None, under: Sequence[float] | None) -> list[float] | None:
    if not over or not under:
        return None
    return [a / b for a, b in zip(over, under, strict=True)]


def _cheapest(by_subject: Mapping[str, Sequence[float]]) -> Sequence[float] | None:
    """Return the bare C forwarder that does this load at the least cost."""
    floors = [by_subject[name] for name in FLOORS if by_subject.get(name)]
    return min(floors, key=statistics.median, default=None)


def _beside_floor(by_subject: Mapping[str, Sequence[float]], subject: str) -> list[float] | None:
    return _ratios(by_subject.get(subject), _cheapest(by_subject))


def _growth(
    few: Mapping[str, Sequence[float]], many: Mapping[str, Sequence[float]], subject: str
) -> list[float] | None:
    base, grown = _beside_floor(few, subject), _beside_floor(many, subject)
    if base is None or grown is None:
        return None
    return [value / statistics.median(base) for value in grown]


def _promises(
    costs: Costs, subject: str, sessions: int, largest: int, bursts: Sequence[int]
) -> list[_Promise]:
    promises = []
    for burst in bursts:
        if burst not in (1, 16, 48):
            continue
        case = ForwardCase(burst, gso=burst > 1, sessions=sessions)
        by_subject = costs.get(case, {})
        relay = by_subject.get(subject)
        limit = MAX_FLOOR_SINGLE if burst == 1 else MAX_FLOOR_OFFLOAD
        what = "cheapest bare C forwarder" if burst == 1 else "bare C forwarder with GRO and GSO"
        bare = _cheapest(by_subject) if burst == 1 else by_subject.get("floor-gso")
        promises.append(
            _Promise(
                f"{subject} cost at burst {burst} per {what}",
                "at_most",
                limit,
                _ratios(relay, bare),
            )
        )
        if burst <= 16:
            promises.append(
                _Promise(
                    f"coturn cost at burst {burst} per {subject}",
                    "at_least",
                    MIN_COTURN_SINGLE if burst == 1 else MIN_COTURN_OFFLOAD,
                    _ratios(by_subject.get("coturn"), relay),
                )
            )
            promises.append(
                _Promise(
                    f"uvloop-relay cost at burst {burst} per {subject}",
                    "at_least",
                    MIN_UVLOOP_OFFLOAD if burst > 1 else None,
                    _ratios(by_subject.get("uvloop-relay"), relay),
                )
            )
        if largest > sessions and burst <= 16:
            many = costs.get(ForwardCase(burst, gso=burst > 1, sessions=largest), {})
            promises.append(
                _Promise(
                    f"{subject} cost at {largest} sessions per that at {sessions}, burst {burst}",
                    "at_most",
                    MAX_MANY_SESSIONS,
                    _growth(by_subject, many, subject),
                )
            )
    return promises


def compare_forward(
    report: Report,
    costs: Costs,
    *,
    subject: str,
    sessions: int,
    largest: int,
    bursts: Sequence[int],
) -> None:
    """Add rows and targets for one relay; what lacks its other side is kept as skipped.

    Args:
        report: takes rows, targets and what is missing.
        costs: from `run_forward`.
        subject: the relay, e.g. ``relay-native``.
        sessions: of the burst table.
        largest: most sessions that were measured.
        bursts: of the burst table.
    """
    for promise in _promises(costs, subject, sessions, largest, bursts):
        if promise.ratios is None:
            why = "one of the two was not measured"
            report.skipped.append(Skipped(bench=BENCH, case=promise.name, reason=why))
            continue
        row = summarise(BENCH, promise.name, "ratio", "times", promise.ratios)
        report.rows.append(row)
        if promise.limit is not None:
            report.targets.append(
                judge(promise.name, promise.direction, promise.limit, row.median, "times")
            )
