"""Rules over two readings, and that they speak of metrics which exist."""

import itertools

import pytest

from tests.release.metric_rules import GAUGES, RISES, Sample, faults
from wavry_peer.protocol import constants as c
from wavry_peer.service.metrics import CATALOGUE

UP = ("wavry_relay_start_time_seconds", ())
UP_TOO = ("process_start_time_seconds", ())
SPECS = {spec.name: spec for specs in CATALOGUE.values() for spec in specs}


def rejects(reason: str) -> Sample:
    return ("wavry_relay_lease_rejects_total", (("reason", reason),))


def requests(status: str) -> Sample:
    return ("wavry_gateway_http_requests_total", (("route", "/x"), ("status", status)))


@pytest.mark.parametrize("rule", [*RISES, *GAUGES], ids=lambda rule: rule.metric)
def test_rule_speaks_of_a_metric_and_of_label_values_that_there_are(rule) -> None:
    spec = SPECS[rule.metric]
    assert spec.kind == ("gauge" if rule in GAUGES else "counter")
    values = [[(label.name, value) for value in label.values] for label in spec.labels]
    assert any(rule.where(dict(labels)) for labels in itertools.product(*values))


def test_start_times_are_metrics() -> None:
    assert "wavry_relay_start_time_seconds" in SPECS
    assert {"process_start_time_seconds"} <= {spec.name for spec in CATALOGUE["gateway"]} & {
        spec.name for spec in CATALOGUE["master"]
    }


def test_reasons_are_those_of_the_protocol() -> None:
    rule = next(rule for rule in RISES if rule.metric == "wavry_relay_lease_rejects_total")
    names = [reason.name.lower() for reason in c.RejectReason]
    taken = [name for name in names if rule.where({"reason": name})]
    assert taken == ["expired", "wrong_relay", "revoked", "not_yet_valid", "unknown_key"]


@pytest.mark.parametrize(
    ("sample", "is_fault"),
    [
        (rejects("unknown_key"), True),
        (rejects("proof_required"), False),
        (rejects("draining"), False),
        (requests("500"), True),
        (requests("502"), True),
        (requests("503"), False),
        (requests("401"), False),
        (("wavry_relay_worker_restarts_total", (("cause", "died"),)), True),
        (("wavry_relay_packets_forwarded_total", ()), False),
        (("wavry_gateway_master_calls_total", (("call", "lease"), ("result", "ok"))), False),
        (("wavry_gateway_master_calls_total", (("call", "lease"), ("result", "failed"))), True),
    ],
)
def test_rise(sample: Sample, is_fault: bool) -> None:
    found = faults({"x": {UP: 5, sample: 2}}, {"x": {UP: 5, sample: 3}})
    assert bool(found) == is_fault
    assert not is_fault or "rose from 2 to 3" in found[0]
    assert faults({"x": {UP: 5, sample: 2}}, {"x": {UP: 5, sample: 2}}) == []
    assert bool(faults({"x": {UP: 5}}, {"x": {UP: 5, sample: 1}})) == is_fault, "new label"


def test_restart_is_seen_by_its_time_and_by_counters_that_fall() -> None:
    for up in (UP, UP_TOO):
        (found,) = faults({"relay": {up: 5}}, {"relay": {up: 6}})
        assert "restarted" in found
    some = requests("200")
    (found,) = faults({"gateway": {some: 9}}, {"gateway": {some: 1}})
    assert "restarted" in found
    (found,) = faults({"gateway": {some: 9}}, {"gateway": {}})
    assert "restarted" in found


def test_service_that_is_gone_or_new() -> None:
    assert faults({"a": {}}, {}) == ["a: has no metrics now"]
    assert faults({}, {"b": {}}) == ["b: had no metrics at the begin"]


@pytest.mark.parametrize("gauge", GAUGES, ids=lambda gauge: gauge.metric)
def test_gauge(gauge) -> None:
    sample = (gauge.metric, ())
    assert faults({"x": {}}, {"x": {sample: gauge.value}}) == []
    (found,) = faults({"x": {}}, {"x": {sample: 1 - gauge.value}})
    assert f"not {gauge.value:g}" in found
