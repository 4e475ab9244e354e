"""What a metric is: name, kind, meaning, and labels whose values are known beforehand.

A label has a closed set of values, or values that the operator's own settings and host make (listen
addresses, worker numbers, the version).  There is no third kind: nothing that a stranger sends may
become a value, or he fills the memory of the service and of whoever scrapes it.
"""

import re
from dataclasses import dataclass
from math import prod
from typing import Final, Literal

__all__ = ["OTHER", "Kind", "Label", "MetricSpec", "by_name", "closed", "counter", "gauge",
           "histogram", "named_by_operator"]  # fmt: skip

Kind = Literal["counter", "gauge", "histogram"]

OTHER: Final = "other"
"""Where a value that is not declared is counted: a defect of ours, never a new series."""


@dataclass(frozen=True, slots=True)
class Label:
    """A label: either `values`, or what `pattern` matches.

    Attributes:
        name: of the label.
        values: all there are; empty where `pattern` says it.
        pattern: regular expression of the whole value.
        most: how many different values one process has at once.
        origin: who makes the values that match `pattern`.
    """

    name: str
    values: tuple[str, ...] = ()
    pattern: str = ""
    most: int = 0
    origin: str = ""

    def allows(self, value: str) -> bool:
        """Return whether a series may have this value."""
        if self.values:
            return value in self.values
        return re.fullmatch(self.pattern, value) is not None

    @property
    def most_values(self) -> int:
        """How many values one process has at most."""
        return len(self.values) or self.most


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric.

    Attributes:
        name: as exposed; a counter's ends in ``_total``.
        kind: Prometheus type.
        help: one sentence.
        labels: in the order of their values.
        buckets: upper bounds of a histogram, without +Inf.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels, in order."""
        return tuple(label.name for label in self.labels)

    @property
    def most_series(self) -> int:
        """How many series one process exposes at most."""
        each = len(self.buckets) + 3 if self.kind == "histogram" else 1
        return each * prod(label.most_values for label in self.labels)


def closed(name: str, *values: str) -> Label:
    """Make a label with a closed set of values."""
    return Label(name, values)


def named_by_operator(name: str, pattern: str, most: int, origin: str) -> Label:
    """Make a label whose values come from the settings or the host of the service itself."""
    return Label(name, pattern=pattern, most=most, origin=origin)


def counter(name: str, text: str, *labels: Label) -> MetricSpec:
    """Make a counter; ``_total`` is added to its name."""
    return MetricSpec(f"{name}_total", "counter", text, labels)


def gauge(name: str, text: str, *labels: Label) -> MetricSpec:
    """Make a gauge."""
    return MetricSpec(name, "gauge", text, labels)


def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: Label) -> MetricSpec:
    """Make a histogram."""
    return MetricSpec(name, "histogram", text, labels, buckets)


def by_name(specs: tuple[MetricSpec, ...]) -> dict[str, MetricSpec]:
    """Return the specs by their exposed name."""
    return {spec.name: spec for spec in specs}
