"""The values of the relay's metrics, read from shared memory, processes and the master link."""

from collections.abc import Iterator
from typing import Final

from wavry_peer.protocol.relay_terms import LimitLayer, MasterLinkState
from wavry_peer.service import log_stream
from wavry_peer.service.http_listener import HttpListener
from wavry_relay.shm.control import Shedding
from wavry_relay.shm.counters import totals

from .figures import RelayFigures
from .metrics import Sample
from .running_relay import RELOAD_OUTCOMES, UPGRADE_RESULTS, RunningRelay

__all__ = ["LIMIT_LAYERS", "RelaySamples"]

_LEASE_COUNTERS: Final = {
    "lease_presented": "leases_presented",
    "lease_accepted": "leases_accepted",
    "lease_reproved": "leases_reproved",
    "lease_renewed": "leases_renewed",
    "lease_released": "leases_released",
    "nat_rebind": "nat_rebinds",
    "received_packets": "packets_received",
    "received_bytes": "bytes_received",
    "forwarded_packets": "packets_forwarded",
    "forwarded_bytes": "bytes_forwarded",
    "session_created": "sessions_created",
    "session_activated": "sessions_activated",
}
"""Counters in shared memory whose metric has another name."""

_BY_LABEL: Final = {
    "drop_": "packets_dropped",
    "dropped_bytes_": "bytes_dropped",
    "reject_": "lease_rejects",
    "session_closed_": "sessions_closed",
    "sent_": "answers_sent",
}
"""Counters that are one metric with a label, by prefix."""

LIMIT_LAYERS: Final = {
    LimitLayer.SLOT: ("limited_slot", "limited_bytes_slot"),
    LimitLayer.HOST: ("limited_host", "limited_bytes_host"),
    LimitLayer.NETWORK: ("limited_network", "limited_bytes_network"),
    LimitLayer.IDENTITY: ("limited_identity", "limited_bytes_identity"),
    LimitLayer.SOFT: ("soft_limit_packets", "soft_limit_bytes"),
    LimitLayer.PEER: ("drop_peer_rate", "dropped_bytes_peer_rate"),
    LimitLayer.SESSION: ("drop_session_rate", "dropped_bytes_session_rate"),
    LimitLayer.GLOBAL: ("drop_global_rate", "dropped_bytes_global_rate"),
}
"""What counts the datagrams and bytes of each layer."""

_REASONS_NOT_READY: Final = (
    "stopping", "draining", "workers_missing", "no_keys", "master_registering", "master_failing",
)  # fmt: skip


class RelaySamples:
    """Reads the values of the moment.

    Args:
        relay: that is measured.
        figures: of the same relay.
    """

    def __init__(self, relay: RunningRelay, figures: RelayFigures) -> None:
        self._relay = relay
        self._figures = figures

    def samples(self) -> Iterator[Sample]:
        """Yield the values of the catalogue, `wavry_peer.service.metrics.relay`."""
        yield from self._counter_samples()
        yield from self._table_samples()
        yield from self._process_samples()
        yield from self._master_samples()
        yield from self._revocation_samples()

    def _limit_samples(self, counts: dict[str, int]) -> Iterator[Sample]:
        for layer, (datagrams, size) in LIMIT_LAYERS.items():
            yield Sample("limited", counts[datagrams], (layer,))
            yield Sample("limited_bytes", counts[size], (layer,))
        shedding = self._figures.shedding
        for cause in Shedding:
            yield Sample("shedding", bool(shedding & cause), ((cause.name or "").lower(),))
        yield Sample("cookie_gate_workers", self._relay.workers.cookie_gates())
        yield Sample("blocked_hosts", len(self._figures.blocks()))

    def _counter_samples(self) -> Iterator[Sample]:
        counts = totals(self._relay.tables.segment)
        counts["log_lines_lost"] += log_stream.lines_lost()  # The supervisor's own.
        yield from self._limit_samples(counts)
        for name, value in counts.items():
            if name.startswith("limited_") or name == "soft_limit_bytes":
                continue  # `_limit_samples` has them.
            prefix = next((prefix for prefix in _BY_LABEL if name.startswith(prefix)), None)
            if prefix is not None:
                label = name.removeprefix(prefix)
                label = label.removesuffix("s") if prefix == "sent_" else label
                yield Sample(_BY_LABEL[prefix], value, (label,))
            elif name.startswith("transition_"):
                yield Sample("lease_transitions", value, tuple(name.split("_")[1:]))
            elif name == "stun_answers":
                yield Sample("answers_sent", value, ("stun",))
            else:
                yield Sample(_LEASE_COUNTERS.get(name, name), value)

    def _table_samples(self) -> Iterator[Sample]:
        waiting, active = self._figures.sessions()
        yield Sample("sessions", waiting, ("waiting",))
        yield Sample("sessions", active, ("active",))
        yield Sample("sessions_max", self._relay.tables.segment.geometry.max_sessions)
        used = self._relay.tables.used_leases
        yield Sample("used_leases", used.count)
        yield Sample("used_leases_limit", used.limit)
        yield Sample("shared_memory_bytes", self._relay.tables.segment.geometry.total_bytes)

    def _process_samples(self) -> Iterator[Sample]:
        relay, figures = self._relay, self._figures
        yield Sample("build_info", 1, (relay.version,))
        yield Sample("engine_info", 1, (figures.engine_name,))
        yield Sample("connections_given_up", HttpListener.given_up)
        yield Sample("start_time_seconds", figures.started_ms / 1000)
        for result in UPGRADE_RESULTS:
            yield Sample("upgrades", relay.upgrades[result], (result,))
        running = relay.workers.running()
        yield Sample("workers", running, ("running",))
        yield Sample("workers", relay.workers.count - running, ("missing",))
        for number, age_s in enumerate(relay.workers.heartbeat_ages_s()):
            yield Sample("worker_heartbeat_age_seconds", age_s, (str(number),))
        for number, cpu_s in relay.workers.cpu_seconds().items():
            yield Sample("worker_cpu_seconds", cpu_s, (str(number),))
        for cause in ("died", "hung", "boot_failed"):
            yield Sample("worker_restarts", relay.workers.restarts[cause], (cause,))
        for outcome in RELOAD_OUTCOMES:
            yield Sample("reloads", relay.reloads[outcome], (outcome,))
        for group in relay.groups:
            endpoint = group.endpoint
            yield Sample("udp_sockets", len(group.sockets), (endpoint,))
            yield Sample("steering_attached", group.steering_error is None, (endpoint,))
            yield Sample("socket_buffer_bytes", group.receive_buffer_bytes, (endpoint, "receive"))
            yield Sample("socket_buffer_bytes", group.send_buffer_bytes, (endpoint, "send"))
        yield Sample("draining", bool(figures.drain))
        yield Sample("bitrate_limit_kbps", relay.load.max_bitrate_kbps)
        reasons = figures.not_ready()
        yield Sample("ready", not reasons)
        for reason in _REASONS_NOT_READY:
            yield Sample("not_ready", reason in reasons, (reason,))

    def _master_samples(self) -> Iterator[Sample]:
        master, link = self._relay.master, self._relay.master.link
        yield Sample("keys", len(master.keyring.key_ids))
        yield Sample("keyset_serial", master.keyring.serial)
        yield Sample("keyset_refused", master.keyring.refused is not None)
        state = master.state
        for name in MasterLinkState:
            yield Sample("master_state", name == state, (name,))
        if link is not None:
            for result in ("ok", "failed"):
                yield Sample("master_registrations", link.registrations[result], (result,))
                yield Sample("master_heartbeats", link.heartbeats[result], (result,))
            yield Sample("master_heartbeat_age_seconds", link.unheard_s())

    def _revocation_samples(self) -> Iterator[Sample]:
        revocations, events = self._relay.master.revocations, self._relay.master.events
        yield Sample("revocations", len(revocations))
        yield Sample("revocation_number", revocations.number)
        yield Sample("revocations_evicted", revocations.evicted)
        for way in ("stream", "poll"):
            yield Sample("revocations_received", revocations.received[way], (way,))
        yield Sample("event_stream_connected", events is not None and events.connected)
        if events is not None:
            yield Sample("revocations_unsaved", events.unsaved)
            yield Sample("event_frames_refused", events.frames_refused)
            for result in ("ok", "failed"):
                yield Sample("event_connections", events.connections[result], (result,))
                yield Sample("event_polls", events.polls[result], (result,))
