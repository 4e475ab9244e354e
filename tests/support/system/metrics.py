"""What a service exposes, compared with the catalogue; and promtool."""

import re
import subprocess
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from support.needs import need_program
from wavry_peer.service.metrics import CATALOGUE, MetricSpec, by_name

Series = tuple[str, tuple[tuple[str, str], ...]]


def scrape(url: str) -> str:
    with urllib.request.urlopen(url + "/metrics", timeout=10) as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        text: str = response.read().decode()
    return text


def families(text: str) -> dict[str, Metric]:
    """By exposed name: the parser takes ``_total`` off a counter's."""
    found = list(text_string_to_metric_families(text))
    return {f.name + ("_total" if f.type == "counter" else ""): f for f in found}


def series_of(text: str) -> set[Series]:
    """Every series: name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in families(text).values()
        for sample in family.samples
    }


def misfits(service: str, text: str) -> list[str]:
    """Where an exposition is not what the catalogue says; both directions."""
    specs, found = by_name(CATALOGUE[service]), families(text)
    faults = [f"{name} is not in the catalogue" for name in found.keys() - specs.keys()]
    faults += [f"{name} is not exposed" for name in specs.keys() - found.keys()]
    for name in found.keys() & specs.keys():
        faults += _family_misfits(specs[name], found[name])
    return faults


def _family_misfits(spec: MetricSpec, family: Metric) -> list[str]:
    faults = []
    if family.type != spec.kind:
        faults.append(f"{spec.name} is a {family.type}")
    if family.documentation != spec.help:
        faults.append(f"{spec.name} has another help text")
    for sample in family.samples:
        labels = dict(sample.labels)
        if spec.kind == "histogram":
            bound = labels.pop("le", None)
            if bound is not None and float(bound) not in (*spec.buckets, float("inf")):
                faults.append(f"{spec.name} has a bucket {bound}")
        if set(labels) != set(spec.label_names):
            faults.append(f"{sample.name} has labels {sorted(labels)}")
            continue
        faults += [
            f"{sample.name}: {label.name}={labels[label.name]!r} is not declared"
            for label in spec.labels
            if not label.allows(labels[label.name])
        ]
    if len(family.samples) > spec.most_series:
        faults.append(f"{spec.name} has {len(family.samples)} series")
    return faults


def promtool(*arguments: str | Path) -> str:
    """Run promtool; its output."""
    need_program("promtool")
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


KEYWORDS = frozenset(
    {
        "and", "or", "unless", "on", "ignoring", "group_left", "group_right", "by", "without",
        "offset", "bool", "sum", "min", "max", "avg", "count", "rate", "increase", "irate",
        "histogram_quantile", "quantile_over_time", "clamp_min", "time", "le",
    }
)  # fmt: skip


def names_in(expression: str) -> tuple[set[str], dict[str, set[str]]]:
    """Names and labels of a PromQL expression.

    Returns:
        The names of metrics, and each label name with the values that matchers compare it with
        (none for a label that only groups).
    """
    labels: dict[str, set[str]] = {}
    matchers = re.compile(r"([a-zA-Z_]\w*)\s*(=~|!~|!=|=)\s*\"((?:[^\"\\]|\\.)*)\"")
    for inner in re.findall(r"\{([^}]*)\}", expression):
        for name, operator, value in matchers.findall(inner):
            values = value.split("|") if "~" in operator else [value]
            labels.setdefault(name, set()).update(values)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", " ", expression)
    for grouped in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", bare):
        for name in filter(None, (part.strip() for part in grouped.split(","))):
            labels.setdefault(name, set())
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    words = set(re.findall(r"(?<![\w.:])[a-zA-Z_:][\w:]*", bare))
    return words - KEYWORDS, labels


def spec_of(name: str) -> MetricSpec | None:
    """The metric that a name in a query is of: a histogram has three."""
    every: Sequence[MetricSpec] = [spec for specs in CATALOGUE.values() for spec in specs]
    specs = {spec.name: spec for spec in every}
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    if base != name and base in specs and specs[base].kind == "histogram":
        return specs[base]
    found = specs.get(name)
    return found if found is not None and found.kind != "histogram" else None
