"""What the collector makes of the catalogue."""

import pytest
from prometheus_client.exposition import generate_latest

from wavry_relay.ops.metrics import RelayCollector, Sample, registry


class Source:
    def __init__(self, *samples: Sample) -> None:
        self._samples = samples

    def samples(self):
        return self._samples


def test_values_of_the_catalogue_are_exposed() -> None:
    text = generate_latest(
        registry(Source(Sample("packets_dropped", 3, ("bad_magic",)), Sample("sessions_max", 9)))
    ).decode()
    assert 'wavry_relay_packets_dropped_total{reason="bad_magic"} 3.0' in text
    assert "wavry_relay_sessions_max 9.0" in text
    assert "# TYPE wavry_relay_packets_dropped_total counter" in text


def test_metric_outside_the_catalogue_is_an_error() -> None:
    with pytest.raises(LookupError, match="invented"):
        list(RelayCollector(Source(Sample("invented", 1))).collect())


def test_label_value_outside_the_catalogue_is_an_error() -> None:
    with pytest.raises(LookupError, match="reason is not declared as '<script>'"):
        list(RelayCollector(Source(Sample("packets_dropped", 1, ("<script>",)))).collect())
