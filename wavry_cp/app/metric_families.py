"""Prometheus families made from the catalogue, which take no label value that it does not declare.

Where the series of a metric are few they are all there from the start, at 0: the first event then
shows as an increase, which a series that appears with the value 1 does not.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Generic, TypeVar

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.core import Metric as MetricFamily
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from wavry_peer.service.metrics import OTHER, MetricSpec, by_name

__all__ = ["Families", "LabelledCounter", "LabelledGauge", "LabelledHistogram"]

PREMADE_SERIES: Final = 100
"""Above it only requests count: methods times routes times statuses is thousands, all of them in
theory only."""

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each; process_start_time_seconds tells a reset.

_log = structlog.get_logger(__name__)
Metric = TypeVar("Metric", bound=MetricWrapperBase)


class _Labelled(Generic[Metric]):
    """A metric with labels; `labels` gives the one for these values."""

    def __init__(self, spec: MetricSpec, metric: Metric) -> None:
        self._spec = spec
        self._metric = metric
        if spec.most_series <= PREMADE_SERIES and all(label.values for label in spec.labels):
            for values in itertools.product(*(label.values for label in spec.labels)):
                metric.labels(*values)

    def labels(self, *values: object) -> Metric:
        """Return the series of these values; one that is not declared counts as "other"."""
        return self._metric.labels(
            *(self._known(at, str(value)) for at, value in enumerate(values))
        )

    def _known(self, at: int, value: str) -> str:
        label = self._spec.labels[at]
        if label.allows(value):
            return value
        _log.error(
            "metric_label_not_declared",
            metric=self._spec.name,
            label=label.name,
            value=value[:64],
            next_step="report this: the catalogue of metrics lacks a value",
        )
        return OTHER


LabelledCounter = _Labelled[Counter]
LabelledGauge = _Labelled[Gauge]
LabelledHistogram = _Labelled[Histogram]


class _ReadCounter(Collector):
    """A counter that is kept elsewhere."""

    def __init__(self, spec: MetricSpec, read: Callable[[], float]) -> None:
        self._spec = spec
        self._read = read

    def collect(self) -> Iterator[MetricFamily]:
        """Yield the value of the moment."""
        yield CounterMetricFamily(self._spec.name, self._spec.help, value=self._read())


class Families:
    """Makes the metrics of one service, each once, on a registry of its own.

    Args:
        specs: of the service.
    """

    def __init__(self, specs: Sequence[MetricSpec]) -> None:
        self.registry = CollectorRegistry()
        self._specs = by_name(tuple(specs))
        self._unmade = {name for name in self._specs if not name.startswith("process_")}
        ProcessCollector(registry=self.registry)

    def counter(self, name: str) -> Counter:
        """Return a counter without labels, by its exposed name; raise KeyError for none."""
        spec = self._take(name, "counter", labelled=False)
        return Counter(spec.name, spec.help, registry=self.registry)

    def counter_of(self, name: str, read: Callable[[], float]) -> None:
        """Make a counter without labels whose value `read` gives at each scrape."""
        spec = self._take(name, "counter", labelled=False)
        self.registry.register(_ReadCounter(spec, read))

    def labelled_counter(self, name: str) -> LabelledCounter:
        """Return a counter with labels."""
        spec = self._take(name, "counter", labelled=True)
        metric = Counter(spec.name, spec.help, spec.label_names, registry=self.registry)
        return LabelledCounter(spec, metric)

    def gauge(self, name: str) -> Gauge:
        """Return a gauge without labels."""
        spec = self._take(name, "gauge", labelled=False)
        return Gauge(spec.name, spec.help, registry=self.registry)

    def labelled_gauge(self, name: str) -> LabelledGauge:
        """Return a gauge with labels."""
        spec = self._take(name, "gauge", labelled=True)
        metric = Gauge(spec.name, spec.help, spec.label_names, registry=self.registry)
        return LabelledGauge(spec, metric)

    def labelled_histogram(self, name: str) -> LabelledHistogram:
        """Return a histogram with labels."""
        spec = self._take(name, "histogram", labelled=True)
        metric = Histogram(
            spec.name, spec.help, spec.label_names, registry=self.registry, buckets=spec.buckets
        )
        return LabelledHistogram(spec, metric)

    def require_all_made(self) -> None:
        """Raise LookupError where a metric of the catalogue was forgotten."""
        if self._unmade:
            raise LookupError(f"metrics of the catalogue are not made: {sorted(self._unmade)}")

    def text(self) -> bytes:
        """Return the Prometheus text format."""
        return generate_latest(self.registry)

    def _take(self, name: str, kind: str, *, labelled: bool) -> MetricSpec:
        spec = self._specs[name]
        if spec.kind != kind or bool(spec.labels) is not labelled:
            raise LookupError(f"{name} is another kind of metric in the catalogue")
        self._unmade.discard(name)
        return spec
