"""Statistics of repeated measurements and the form in which the bench reports them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

__all__ = ["BenchTarget", "Better", "Report", "Row", "Skipped", "find", "judge", "summarise"]

Better = Literal["at_least", "at_most"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One measured number: median, smallest and largest of `runs` repetitions.

    Attributes:
        bench: what was measured, e.g. ``forward``.
        case: subject and load, e.g. ``relay-reference burst=16 gso sessions=64``.
        metric: e.g. ``cpu_per_packet``.
        unit: e.g. ``ns``.
    """

    bench: str
    case: str
    metric: str
    unit: str
    median: float
    min: float
    max: float
    runs: int


class BenchTarget(msgspec.Struct, frozen=True, kw_only=True):
    """A number that was promised; `want` says it with its direction, `got` was measured."""

    name: str
    want: str
    got: float
    ok: bool


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """What was not measured here and why."""

    bench: str
    case: str
    reason: str


class _Document(msgspec.Struct, frozen=True):
    machine: dict[str, str | int | float | bool]
    rows: list[Row]
    targets: list[BenchTarget]
    skipped: list[Skipped]


@dataclass(slots=True)
class Report:
    """What a run of the bench has found so far."""

    machine: dict[str, str | int | float | bool]
    rows: list[Row] = field(default_factory=list)
    targets: list[BenchTarget] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def to_json(self) -> bytes:
        """Return the document of design section 8, and beside it what was skipped."""
        document = _Document(self.machine, self.rows, self.targets, self.skipped)
        return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def summarise(bench: str, case: str, metric: str, unit: str, values: Sequence[float]) -> Row:
    """Make one row of repeated measurements.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError(f"{bench} {case} {metric} has no measurement")
    return Row(
        bench=bench,
        case=case,
        metric=metric,
        unit=unit,
        median=statistics.median(values),
        min=min(values),
        max=max(values),
        runs=len(values),
    )


def judge(name: str, direction: Better, limit: float, got: float, unit: str = "") -> BenchTarget:
    """Compare a measurement with what was promised; a number equal to the limit is good."""
    ok = got >= limit if direction == "at_least" else got <= limit
    sign = ">=" if direction == "at_least" else "<="
    return BenchTarget(
        name=name, want=f"{sign} {limit:g} {unit}".rstrip(), got=round(got, 4), ok=ok
    )


def find(rows: Sequence[Row], bench: str, case: str, metric: str) -> Row | None:
    """Return the row of this name, or None where it was not measured."""
    for row in rows:
        if (row.bench, row.case, row.metric) == (bench, case, metric):
            return row
    return None
