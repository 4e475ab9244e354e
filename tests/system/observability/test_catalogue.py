"""The catalogue by itself, and against the code that fills it."""

import re

import pytest
from support.control.gateway import make_config
from support.control.master import MasterFiles
from support.paths import REPOSITORY

from wavry_cp.app.metric_families import Families
from wavry_cp.gateway.app import make_app
from wavry_cp.gateway.gateway import open_gateway
from wavry_cp.gateway.metrics import GatewayMetrics
from wavry_cp.master.app import make_app as make_master_app
from wavry_cp.master.master import open_master
from wavry_cp.master.metrics import MasterMetrics
from wavry_peer.service.metrics import CATALOGUE, GATEWAY, MASTER, OTHER, RELAY, MetricSpec, by_name
from wavry_peer.service.metrics.spec import closed, counter
from wavry_relay.ops import running_relay
from wavry_relay.shm import layout, lease_states

EVERY = [pytest.param(s, id=f"{k}-{s.name}") for k, specs in CATALOGUE.items() for s in specs]


@pytest.mark.parametrize("spec", EVERY)
def test_a_metric_follows_the_rules(spec: MetricSpec) -> None:
    assert re.fullmatch(r"(wavry_(relay|master|gateway)|process)_[a-z][a-z0-9_]*", spec.name)
    assert spec.name.endswith("_total") == (spec.kind == "counter")
    assert spec.help.endswith(".")
    assert "\n" not in spec.help
    assert bool(spec.buckets) == (spec.kind == "histogram")
    assert sorted(spec.buckets) == list(spec.buckets)
    for label in spec.labels:
        assert re.fullmatch(r"[a-z_]+", label.name)
        assert len(set(label.values)) == len(label.values)
        assert bool(label.values) != bool(label.pattern), "values, or who makes them"
        assert label.values or (label.most and label.origin)


def test_names_are_unique_in_a_service() -> None:
    for specs in CATALOGUE.values():
        assert len(by_name(specs)) == len(specs)


def _values(specs: tuple[MetricSpec, ...], name: str, label: str) -> set[str]:
    return next(set(one.values) for one in by_name(specs)[name].labels if one.name == label)


async def test_routes_are_those_of_the_applications(tmp_path) -> None:
    async with open_gateway(make_config(tmp_path, "http://127.0.0.1:1")) as gateway:
        app = make_app(gateway)
        found = {r.resource.canonical for r in app.router.routes() if r.resource is not None}
    declared = _values(GATEWAY, "wavry_gateway_http_requests_total", "route")
    assert found == declared - {"unmatched"}


async def test_routes_of_the_master(tmp_path) -> None:
    async with open_master(MasterFiles.make(tmp_path).config()) as master:
        app = make_master_app(master)
        found = {r.resource.canonical for r in app.router.routes() if r.resource is not None}
    declared = _values(MASTER, "wavry_master_http_requests_total", "route")
    assert found == declared - {"unmatched"}


def test_relay_values_are_those_of_the_shared_memory_and_the_status() -> None:
    drops = {name.removeprefix("drop_") for name in layout.COUNTERS if name.startswith("drop_")}
    for name in ("packets_dropped", "bytes_dropped"):
        assert _values(RELAY, f"wavry_relay_{name}_total", "reason") == drops
    states = {str(state) for state in lease_states.LeaseState}
    assert _values(RELAY, "wavry_relay_lease_transitions_total", "from") == states
    assert _values(RELAY, "wavry_relay_reloads_total", "outcome") == set(
        running_relay.RELOAD_OUTCOMES
    )


def test_bytes_of_drops_stand_where_the_engine_writes_them() -> None:
    for number, name in enumerate(layout.COUNTERS):
        if name.startswith("drop_"):
            behind = layout.COUNTERS[number + layout.DROP_BYTES_AHEAD]
            assert behind == "dropped_bytes_" + name.removeprefix("drop_")


def test_errors_of_the_gateway_are_declared() -> None:
    """Codes that the WebSocket can answer; those of HTTP alone are not counted there."""
    http_only = {
        "invalid_credentials", "admin_disabled", "forbidden", "origin_not_allowed",
        "username_taken", "too_many_attempts", "too_many_connections", "admin_check_unavailable",
        "busy_session", "invalid_query", "shutting_down", "websocket_required", "invalid_reset",
        "unknown_login", "unknown_user",
    }  # fmt: skip
    texts = [path.read_text() for path in (REPOSITORY / "wavry_cp/gateway").rglob("*.py")]
    used = {name.lower() for text in texts for name in re.findall(r"ErrorCode\.([A-Z_]+)", text)}
    assert len(used) > 20
    declared = _values(GATEWAY, "wavry_gateway_message_errors_total", "code")
    assert used - http_only <= declared


def _codes(pattern: str, *modules: str) -> set[str]:
    texts = [(REPOSITORY / "wavry_cp" / module).read_text() for module in modules]
    found = {code.lower() for text in texts for code in re.findall(pattern, text)}
    assert found, "the pattern fits nothing: mend this test"
    return found


REFUSED = r"RefusedError\(\s*ErrorCode\.([A-Z_]+)"
CLOSED = r'CLOSE_[A-Z_]+,\s*(?:"|ErrorCode\.)([A-Za-z_]+)'


def test_refusals_of_the_master_are_declared() -> None:
    leases = _codes(REFUSED, "master/leases/service.py", "master/leases/rules.py")
    assert leases <= _values(MASTER, "wavry_master_leases_rejected_total", "reason")
    directory = _codes(REFUSED, "master/relays/rules.py", "master/relays/registry.py")
    results = ("registrations", "heartbeats")
    declared = {
        value
        for name in results
        for value in _values(MASTER, f"wavry_master_{name}_total", "result")
    }
    assert directory <= declared
    rooms = ("challenges", "endpoints", "registrar", "tokens")
    registration = _codes(REFUSED, *(f"master/enrolment/{name}.py" for name in rooms))
    registration |= _codes(REFUSED, "master/relays/claims.py", "master/relays/strangers.py")
    assert registration <= _values(MASTER, "wavry_master_registrations_total", "result")
    ends = _codes(r'self\.end\(\s*"([a-z_]+)"', "master/relays/event_stream.py")
    assert ends <= _values(MASTER, "wavry_master_event_stream_ends_total", "cause")


def test_ends_of_connections_are_declared() -> None:
    causes = _codes(r'\.cut\("([a-z_]+)"\)', "gateway/signaling/connection.py")
    modules = ("hub", "connection", "service")
    causes |= _codes(CLOSED, *(f"gateway/signaling/{module}.py" for module in modules))
    assert causes <= _values(GATEWAY, "wavry_gateway_websockets_closed_total", "cause")
    assert "client_left" in causes


@pytest.mark.parametrize("made", [GatewayMetrics, MasterMetrics])
def test_a_service_makes_every_metric_of_its_catalogue(made) -> None:
    made()  # raises LookupError where one is forgotten


def test_a_value_that_is_not_declared_becomes_other() -> None:
    families = Families((counter("wavry_gateway_x", "X.", closed("why", "a", OTHER)),))
    metric = families.labelled_counter("wavry_gateway_x_total")
    metric.labels("<colour>").inc()
    metric.labels("a").inc(2)
    text = families.text().decode()
    assert 'wavry_gateway_x_total{why="other"} 1.0' in text
    assert 'wavry_gateway_x_total{why="a"} 2.0' in text
    assert "colour" not in text


def test_a_forgotten_metric_is_an_error() -> None:
    families = Families((counter("wavry_gateway_x", "X."), counter("wavry_gateway_y", "Y.")))
    families.counter("wavry_gateway_x_total")
    with pytest.raises(LookupError, match="wavry_gateway_y_total"):
        families.require_all_made()
    with pytest.raises(LookupError, match="another kind"):
        families.gauge("wavry_gateway_x_total")
