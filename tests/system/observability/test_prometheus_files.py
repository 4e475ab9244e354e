"""Scrape configuration, rules, their unit tests and the dashboard: all against the catalogue."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.paths import REPOSITORY
from support.system.metrics import names_in, promtool, spec_of

PROMETHEUS = REPOSITORY / "docker" / "prometheus"
RULES = PROMETHEUS / "rules" / "wavry.yml"
UNIT_TESTS = (PROMETHEUS / "rules" / "wavry_test.yml", PROMETHEUS / "rules" / "wavry_days_test.yml")
DASHBOARD = json.loads((REPOSITORY / "docker" / "grafana" / "wavry.json").read_text())
RUNBOOKS = {
    "gateway-unhealthy", "master-unhealthy", "relay-unhealthy", "bad-key-rotation",
    "high-relay-load", "nat-churn",
}  # fmt: skip

ROWS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in ROWS if "alert" in rule}
RECORDED = {rule["record"]: rule["expr"] for rule in ROWS if "record" in rule}
OF_PROMETHEUS = {"up": {"job", "instance"}}
"""Made by the scrape itself."""


def check_expression(expression: str) -> None:
    """Every metric is in the catalogue, every label is one of its metrics', every value exists."""
    names, labels = names_in(expression)
    assert names
    known: dict[str, list[Any]] = {"instance": [], "job": [], "le": []}
    for name in names:
        if name in RECORDED:
            for label in names_in(RECORDED[name])[1]:
                known.setdefault(label, [])
            for inner in names_in(RECORDED[name])[0]:
                for label in getattr(spec_of(inner), "labels", ()):
                    known.setdefault(label.name, []).append(label)
        elif name not in OF_PROMETHEUS:
            spec = spec_of(name)
            assert spec is not None, f"{name} is not in the catalogue"
            for label in spec.labels:
                known.setdefault(label.name, []).append(label)
    for label, values in labels.items():
        assert label in known, f"no metric of the query has the label {label}"
        for value in values if known[label] and all(one.values for one in known[label]) else ():
            fits = [v for one in known[label] for v in one.values if re.fullmatch(value, v)]
            assert fits, f"{label}={value!r} is no value of the catalogue"


def test_scrape_configuration_is_valid() -> None:
    assert "SUCCESS" in promtool("check", "config", PROMETHEUS / "prometheus.yml")


def test_jobs_of_the_rules_are_scraped() -> None:
    scraped = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    jobs = {job["job_name"] for job in scraped["scrape_configs"]}
    named = set(re.findall(r'job="([^"]+)"', RULES.read_text()))
    assert named == jobs
    assert scraped["rule_files"] == ["rules/wavry.yml"]


def test_rules_are_valid() -> None:
    assert f"{len(ROWS)} rules found" in promtool("check", "rules", RULES)


@pytest.mark.parametrize("name", [*ALERTS, *RECORDED])
def test_rule_names_only_what_the_catalogue_has(name: str) -> None:
    check_expression(RECORDED.get(name) or ALERTS[name]["expr"])


@pytest.mark.parametrize("name", ALERTS)
def test_alert_says_how_bad_what_and_what_to_do(name: str) -> None:
    alert = ALERTS[name]
    assert name.startswith("Wavry")
    assert alert["labels"]["severity"] in ("critical", "warning")
    texts = alert["annotations"]
    assert set(texts) == {"summary", "description", "runbook"}
    assert re.search(r"\d|\$value", texts["description"]), "a description holds a figure"
    assert len(texts["description"]) > len(texts["summary"])
    match = re.fullmatch(r"docs/runbooks/([a-z-]+)\.md", texts["runbook"])
    assert match is not None
    assert match[1] in RUNBOOKS


def test_every_runbook_has_an_alert_that_names_it() -> None:
    named = {Path(alert["annotations"]["runbook"]).stem for alert in ALERTS.values()}
    assert named == RUNBOOKS


def test_each_alert_is_tested_firing_and_silent() -> None:
    fires, silent = set(), set()
    for path in UNIT_TESTS:
        for case in yaml.safe_load(path.read_text())["tests"]:
            for check in case["alert_rule_test"]:
                (fires if check["exp_alerts"] else silent).add(check["alertname"])
                assert case["input_series"], "silence without input proves nothing"
    assert fires == set(ALERTS)
    assert silent == set(ALERTS)


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_unit_tests_of_the_rules_pass(path: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", path)


# -- Dashboard ---------------------------------------------------------------------------------

VARIABLES = {"$__rate_interval": "5m", "$relay": "a|b", "$__range": "6h"}


def dashboard_queries() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        assert not panel.get("panels"), "rows are open, so that every panel is in the list"
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            yield f"{panel['title']} {target['refId']}", expression


QUERIES = [
    pytest.param(query, id=f"{n}-{name}") for n, (name, query) in enumerate(dashboard_queries())
]


@pytest.mark.parametrize("query", QUERIES)
def test_dashboard_query_names_only_what_the_catalogue_has(query: str) -> None:
    assert "$" not in query, "an unknown variable"
    check_expression(query.replace('instance=~"a|b"', "").replace(",}", "}"))


def test_dashboard_queries_are_promql(tmp_path: Path) -> None:
    queries = [query for _, query in dashboard_queries()]
    assert len(queries) > 50
    rules = [{"record": f"query:{n}", "expr": query} for n, query in enumerate(queries)]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(queries)} rules found" in promtool("check", "rules", path)


def test_dashboard_has_its_rows_and_one_datasource_variable() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Overview", "Gateway", "Master", "Relays", "Leases", "Keys"]
    kinds = {variable["name"]: variable["type"] for variable in DASHBOARD["templating"]["list"]}
    assert kinds == {"datasource": "datasource", "relay": "query"}
    assert "wavry_relay_build_info" in DASHBOARD["templating"]["list"][1]["definition"]
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            assert panel["targets"]
            for part in (panel, *panel["targets"]):
                assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_dashboard_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


# -- The checks themselves ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression",
    [
        "rate(wavry_relay_invented_total[5m])",
        "sum by (colour) (wavry_relay_sessions)",
        'wavry_relay_sessions{state="sleeping"}',
        "wavry_gateway_http_request_seconds",
        'wavry:lease_rejects:rate5m{reason="misspelt"}',
    ],
)
def test_an_expression_that_does_not_fit_is_found(expression: str) -> None:
    with pytest.raises(AssertionError):
        check_expression(expression)
