"""The relay's metrics: the collector that fills the catalogue from shared memory.

The catalogue is `wavry_peer.service.metrics.relay`.  A value that it does not declare is an
error here, so no label has one that a remote party chose.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from wavry_peer.service.metrics import RELAY

__all__ = ["RelayCollector", "Sample", "SampleSource", "registry"]

_PREFIX: Final = "wavry_relay_"
_OWN: Final = tuple(spec for spec in RELAY if spec.name.startswith(_PREFIX))
"""Without those of the process, which the client library fills."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A value of a metric; `labels` in the order of its `MetricSpec`."""

    name: str
    value: float
    labels: tuple[str, ...] = ()


class SampleSource(Protocol):
    """Where the values come from."""

    def samples(self) -> Iterable[Sample]:
        """Return all values of the moment; names without ``wavry_relay_`` and ``_total``."""


class RelayCollector(Collector):
    """Fills the catalogue at each scrape."""

    def __init__(self, source: SampleSource) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the catalogue, also those without a value yet."""
        values: dict[str, list[Sample]] = {}
        for sample in self._source.samples():
            values.setdefault(sample.name, []).append(sample)
        for spec in _OWN:
            short = spec.name.removeprefix(_PREFIX).removesuffix("_total")
            family: CounterMetricFamily | GaugeMetricFamily
            if spec.kind == "counter":
                family = CounterMetricFamily(spec.name, spec.help, labels=spec.label_names)
            else:
                family = GaugeMetricFamily(spec.name, spec.help, labels=spec.label_names)
            for sample in values.pop(short, ()):
                for label, value in zip(spec.labels, sample.labels, strict=True):
                    if not label.allows(value):
                        raise LookupError(f"{spec.name}: {label.name} is not declared as {value!r}")
                family.add_metric(sample.labels, sample.value)
            yield family
        if values:
            raise LookupError(f"metrics are not in the catalogue: {sorted(values)}")


def registry(source: SampleSource) -> CollectorRegistry:
    """Make a registry with nothing in it but the relay's metrics."""
    made = CollectorRegistry()
    ProcessCollector(registry=made)
    made.register(RelayCollector(source))
    return made
