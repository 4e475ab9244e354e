"""The relay's metrics: one catalogue, and the collector that fills it from shared memory.

Documentation, dashboards and alerts are checked against `CATALOGUE`.  No label has a value that
a remote party can choose.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

__all__ = ["CATALOGUE", "MetricSpec", "RelayCollector", "Sample", "registry"]

Kind = Literal["counter", "gauge"]


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric.  A counter's name ends in ``_total``."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


def _counter(name: str, text: str, *labels: str) -> MetricSpec:
    return MetricSpec(f"wavry_relay_{name}_total", "counter", text, labels)


def _gauge(name: str, text: str, *labels: str) -> MetricSpec:
    return MetricSpec(f"wavry_relay_{name}", "gauge", text, labels)


CATALOGUE: Final[tuple[MetricSpec, ...]] = (
    _gauge("build_info", "Always 1; version of the relay.", "version"),
    _gauge("engine_info", "Always 1; the packet engine in use.", "engine"),
    _gauge("start_time_seconds", "Unix time at which this process started; an upgrade changes it."),
    _counter("upgrades", "Hot upgrades, by result.", "result"),
    _counter("packets_received", "Datagrams received."),
    _counter("bytes_received", "Bytes of received datagrams (UDP payload)."),
    _counter("packets_forwarded", "Datagrams forwarded."),
    _counter("bytes_forwarded", "Bytes of forwarded datagrams (UDP payload)."),
    _counter("packets_dropped", "Datagrams dropped, by reason.", "reason"),
    _counter("soft_limit_packets", "Forwarded datagrams that were over their lease's soft limit."),
    _counter("leases_presented", "LEASE_PRESENT and LEASE_RENEW packets with a token."),
    _counter("leases_accepted", "Leases that took a slot."),
    _counter("leases_reproved", "Accepted leases presented again with a fresh proof."),
    _counter("leases_repeated", "Repeated ACKs of bearer leases (lost ACK)."),
    _counter("leases_renewed", "Leases that replaced the one of a taken slot."),
    _counter("leases_released", "Slots that their peer gave back before the lease ended."),
    _counter("lease_rejects", "LEASE_REJECT answers, by reason.", "reason"),
    _counter(
        "lease_transitions",
        "Steps of leases and their slots from one state to another.",
        "from",
        "to",
    ),
    _counter("limited", "What a limit held back (soft: only counted), by layer.", "layer"),
    _counter("sessions_shed", "New sessions that were refused to shed load."),
    _gauge("shedding", "1 while new sessions are refused, by what is nearly used up.", "cause"),
    _gauge("cookie_gate_workers", "Workers that want a cookie before they check a signature."),
    _counter("cookie_gate_on", "How often a worker began to want cookies."),
    _counter("cookie_demanded", "Leases that were not looked at for want of a cookie."),
    _counter("block_strikes", "Bad leases of sources that had shown the cookie of their path."),
    _counter("networks_blocked", "Networks that were blocked for repeated violations."),
    _counter("blocks_not_entered", "Blocks for which the table had no place."),
    _gauge("blocked_networks", "Networks that are blocked now."),
    _counter("keepalives", "Empty LEASE_RENEW packets that were answered."),
    _counter("nat_rebinds", "Slots that moved to a new address with proof of key and path."),
    _counter("answers_sent", "Answers sent, by type.", "type"),
    _counter("stun_answers_larger", "STUN answers larger than their bare request."),
    _counter("token_cache_hits", "Leases whose signature had been verified before."),
    _counter("internal_errors", "Control packets that ended in an unexpected error."),
    _gauge("sessions", "Live sessions, by state.", "state"),
    _gauge("sessions_max", "Sessions that the relay has room for."),
    _counter("sessions_created", "Sessions whose first peer was accepted."),
    _counter("sessions_activated", "Sessions whose second peer was accepted."),
    _counter("sessions_closed", "Sessions that ended, by reason.", "reason"),
    _gauge("used_leases", "Used leases that are remembered until they expire."),
    _gauge("used_leases_limit", "Used leases from which on no new lease is taken."),
    _gauge("shared_memory_bytes", "Size of the shared memory segment."),
    _gauge("workers", "Worker processes, by state.", "state"),
    _gauge("worker_heartbeat_age_seconds", "Time since a worker's last heartbeat.", "worker"),
    _counter("worker_restarts", "Replaced workers, by cause.", "cause"),
    _counter("reloads", "Reloads of the settings, by outcome.", "outcome"),
    _gauge("udp_sockets", "UDP sockets; fewer than workers if those must share.", "listen"),
    _gauge("steering_attached", "1 if the kernel steers sessions to workers.", "listen"),
    _gauge(
        "socket_buffer_bytes",
        "Buffer of the UDP sockets as the kernel gave it, the smallest of each address.",
        "listen",
        "direction",
    ),
    _gauge("draining", "1 while no new sessions are taken."),
    _gauge("keys", "Signing keys in use."),
    _gauge("keyset_serial", "Serial of the key set in use, 0 without one."),
    _gauge("keyset_refused", "1 if the last key set from the master was refused."),
    _gauge("master_state", "1 for the present state of the link to the master.", "state"),
    _counter("master_registrations", "Registrations with the master, by result.", "result"),
    _counter("master_heartbeats", "Heartbeats to the master, by result.", "result"),
    _gauge("revocations", "Revocations in force."),
    _gauge("revocation_number", "Last row of the master's revocation log that took effect."),
    _counter("revocations_received", "Revocations taken from the master, by way.", "way"),
    _counter("revocations_evicted", "Revocations given up before their time: the table is full."),
    _gauge("revocations_unsaved", "1 while the disk does not take the revocations."),
    _gauge("event_stream_connected", "1 while the master's event stream is open."),
    _counter("event_connections", "Connections of the event stream, by result.", "result"),
    _counter("event_polls", "Polls of the master's events, by result.", "result"),
    _counter("event_frames_refused", "Frames and pages of the master that did not fit."),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A value of a metric; `labels` in the order of its `MetricSpec`."""

    name: str
    value: float
    labels: tuple[str, ...] = ()


class SampleSource(Protocol):
    """Where the values come from."""

    def samples(self) -> Iterable[Sample]:
        """All values of the moment; names without ``wavry_relay_`` and ``_total``."""


class RelayCollector(Collector):
    """Fills the catalogue at each scrape."""

    def __init__(self, source: SampleSource) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """Every metric of the catalogue, also those without a value yet."""
        values: dict[str, list[Sample]] = {}
        for sample in self._source.samples():
            values.setdefault(sample.name, []).append(sample)
        for spec in CATALOGUE:
            short = spec.name.removeprefix("wavry_relay_").removesuffix("_total")
            family: CounterMetricFamily | GaugeMetricFamily
            if spec.kind == "counter":
                family = CounterMetricFamily(spec.name, spec.help, labels=spec.labels)
            else:
                family = GaugeMetricFamily(spec.name, spec.help, labels=spec.labels)
            for sample in values.pop(short, ()):
                family.add_metric(sample.labels, sample.value)
            yield family
        if values:
            raise LookupError(f"metrics are not in the catalogue: {sorted(values)}")


def registry(source: SampleSource) -> CollectorRegistry:
    """A registry of its own, with nothing in it but the relay's metrics."""
    made = CollectorRegistry()
    made.register(RelayCollector(source))
    return made
