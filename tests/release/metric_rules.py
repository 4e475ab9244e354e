"""What the metrics of a healthy canary say: rules over two readings of all services. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["GAUGES", "RISES", "Reading", "Sample", "faults"]

Sample = tuple[str, tuple[tuple[str, str], ...]]
"""Name and sorted labels."""
Reading = Mapping[str, Mapping[Sample, float]]
"""Samples of each service by its name, e.g. ``gateway`` or ``relay rly-…``."""

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Rise:
    """A counter that must not rise while a canary is used as it should be.

    Attributes:
        metric: name.
        where: which labels count.
    """

    metric: str
    where: Callable[[Labels], bool] = lambda _labels: True


@dataclass(frozen=True)
class Gauge:
    """A gauge that must have one value at the end.

    Attributes:
        metric: name.
        value: the healthy one.
        where: which labels count.
    """

    metric: str
    value: float
    where: Callable[[Labels], bool] = lambda _labels: True


def _is_server_fault(labels: Labels) -> bool:
    # 503 is also the answer where a pool of one relay is drained, or a limit holds.
    return labels["status"].startswith("5") and labels["status"] != "503"


_OUR_REJECTS: Final = frozenset(
    {"unknown_key", "wrong_relay", "expired", "not_yet_valid", "revoked"}
)
"""What a fault of the control plane looks like at a relay.  Others come from the smoke test itself,
which presents forged and stolen leases, or from a drain."""

RISES: Final = (
    Rise("wavry_gateway_http_requests_total", _is_server_fault),
    Rise("wavry_gateway_master_calls_total", lambda labels: labels["result"] == "failed"),
    Rise("wavry_gateway_lockdown_refused_total"),
    Rise("wavry_master_http_requests_total", _is_server_fault),
    Rise("wavry_master_lockdown_refused_total"),
    Rise("wavry_relay_internal_errors_total"),
    Rise("wavry_relay_lease_rejects_total", lambda labels: labels["reason"] in _OUR_REJECTS),
    Rise("wavry_relay_worker_restarts_total"),
    Rise("wavry_relay_event_frames_refused_total"),
    Rise("wavry_relay_revocations_evicted_total"),
    Rise("wavry_relay_upgrades_total", lambda labels: labels["result"] == "failed"),
    Rise("wavry_relay_reloads_total", lambda labels: labels["outcome"] == "failed"),
)
GAUGES: Final = (
    Gauge("wavry_gateway_lockdown", 0),
    Gauge("wavry_master_lockdown", 0),
    Gauge("wavry_master_relay_mode", 1),
    Gauge("wavry_master_relays_without_active_key", 0),
    Gauge("wavry_relay_draining", 0),
    Gauge("wavry_relay_keyset_refused", 0),
    Gauge("wavry_relay_revocations_unsaved", 0),
)
_STARTED: Final = ("wavry_relay_start_time_seconds", "process_start_time_seconds")


def faults(before: Reading, after: Reading) -> list[str]:
    """What is wrong, one text each; empty where all is well.

    Args:
        before: at the canary's begin.
        after: now.
    """
    found = [f"{service}: has no metrics now" for service in before if service not in after]
    for service, now in after.items():
        then = before.get(service)
        if then is None:
            found.append(f"{service}: had no metrics at the begin")
            continue
        found += _restarts(service, then, now)
        found += _rises(service, then, now)
        found += _gauges(service, now)
    return found


def _restarts(service: str, then: Mapping[Sample, float], now: Mapping[Sample, float]) -> list[str]:
    fell = [
        sample for sample, value in then.items()
        if sample[0].endswith("_total") and now.get(sample, 0.0) < value
    ]  # fmt: skip
    started = [(name, ()) for name in _STARTED if (name, ()) in then]
    if fell or any(now.get(sample) != then[sample] for sample in started):
        return [f"{service}: was restarted (its counters begin anew)"]
    return []


def _rises(service: str, then: Mapping[Sample, float], now: Mapping[Sample, float]) -> list[str]:
    found = []
    for sample, value in sorted(now.items()):
        name, labels = sample
        for rule in RISES:
            was = then.get(sample, 0.0)
            if name == rule.metric and value > was and rule.where(dict(labels)):
                found.append(f"{service}: {_text(sample)} rose from {was:g} to {value:g}")
    return found


def _gauges(service: str, now: Mapping[Sample, float]) -> list[str]:
    return [
        f"{service}: {_text(sample)} is {value:g}, not {rule.value:g}"
        for sample, value in sorted(now.items())
        for rule in GAUGES
        if sample[0] == rule.metric and value != rule.value and rule.where(dict(sample[1]))
    ]


def _text(sample: Sample) -> str:
    labels = ",".join(f'{name}="{value}"' for name, value in sample[1])
    return f"{sample[0]}{{{labels}}}" if labels else sample[0]
