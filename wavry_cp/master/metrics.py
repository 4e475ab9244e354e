"""Metrics of the master, made from the catalogue (`wavry_peer.service.metrics.master`)."""

import math
from collections import Counter as TallyOf
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from wavry_cp.app.metric_families import Families
from wavry_cp.app.transport.tls import TlsFiles
from wavry_cp.master.health.probe_outcome import ProbeOutcome
from wavry_cp.master.keys.live import LiveKeys
from wavry_cp.operators.bans import BanKind, BanTable
from wavry_cp.operators.switches import SwitchTable
from wavry_peer.protocol.relay_terms import DegradedCause, Enrolment, RelayState
from wavry_peer.service import log_stream
from wavry_peer.service.http_listener import HttpListener
from wavry_peer.service.metrics import MASTER
from wavry_peer.service.version import software_version

__all__ = ["MasterMetrics", "PoolFacts"]

_HEARD = tuple(state for state in RelayState if state is not RelayState.BANNED)


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """The relays at one moment.

    Attributes:
        by_state: how many.
        by_enrolment: how many that came in by each way.
        enrolment_tokens: how many wait for their relays.
        heartbeat_age_s: oldest last heartbeat by state.
        sessions: at relays that are not OFFLINE.
        sessions_max: room of ACTIVE relays.
        without_key: live relays that have not reported the active key.
        degraded: DEGRADED relays by cause.
        clock_off_s: the most that a live relay's clock differs from ours.
        probe_rtt_s: the longest of an ACTIVE relay.
        is_silent: no relay answers the probes although some did.
    """

    by_state: Mapping[RelayState, int]
    by_enrolment: Mapping[Enrolment, int]
    enrolment_tokens: int
    heartbeat_age_s: Mapping[RelayState, int]
    sessions: int
    sessions_max: int
    without_key: int
    degraded: Mapping[str, int]
    clock_off_s: float
    probe_rtt_s: float
    is_silent: bool


class MasterMetrics:
    """Counters, gauges and histograms of one master."""

    def __init__(self) -> None:
        made = self._families = Families(MASTER)
        self.registry = made.registry
        made.labelled_gauge("wavry_master_build_info").labels(software_version()).set(1)
        self._ready = made.gauge("wavry_master_ready")
        self.http_requests = made.labelled_counter("wavry_master_http_requests_total")
        self.http_seconds = made.labelled_histogram("wavry_master_http_request_seconds")
        self.leases_issued = made.counter("wavry_master_leases_issued_total")
        self.lease_renewals = made.labelled_counter("wavry_master_lease_renewals_total")
        self.leases_rejected = made.labelled_counter("wavry_master_leases_rejected_total")
        self._sessions = made.gauge("wavry_master_sessions")
        self.revocations = made.labelled_counter("wavry_master_revocations_total")
        self.revocations_in_force = made.gauge("wavry_master_revocations_in_force")
        self.registrations = made.labelled_counter("wavry_master_registrations_total")
        self.heartbeats = made.labelled_counter("wavry_master_heartbeats_total")
        self._relays = made.labelled_gauge("wavry_master_relays")
        self._relays_enrolled = made.labelled_gauge("wavry_master_relays_enrolled")
        self._enrolment_tokens = made.gauge("wavry_master_enrolment_tokens")
        self.probation_sessions = made.counter("wavry_master_probation_sessions_total")
        self._heartbeat_age = made.labelled_gauge("wavry_master_relay_heartbeat_age_seconds")
        self._degraded = made.labelled_gauge("wavry_master_relays_degraded")
        self._clock_off = made.gauge("wavry_master_relays_clock_off_seconds")
        self._probes = made.labelled_counter("wavry_master_probes_total")
        self._probe_rtt = made.gauge("wavry_master_relays_probe_rtt_seconds")
        self._pool_silent = made.gauge("wavry_master_pool_silent")
        self._heartbeat_interval = made.gauge("wavry_master_heartbeat_interval_seconds")
        self._pool_sessions = made.gauge("wavry_master_pool_sessions")
        self._pool_sessions_max = made.gauge("wavry_master_pool_sessions_max")
        self.event_streams = made.gauge("wavry_master_event_streams")
        self.event_stream_ends = made.labelled_counter("wavry_master_event_stream_ends_total")
        self.event_pages = made.counter("wavry_master_event_pages_total")
        self._keyset_serial = made.gauge("wavry_master_keyset_serial")
        self._keyset_issued = made.gauge("wavry_master_keyset_issued_time_seconds")
        self._keys = made.labelled_gauge("wavry_master_keys")
        self._active_key_age = made.gauge("wavry_master_active_key_age_seconds")
        self._key_end = made.labelled_gauge("wavry_master_key_end_time_seconds")
        self._relays_without_key = made.gauge("wavry_master_relays_without_active_key")
        self.key_steps = made.labelled_counter("wavry_master_key_steps_total")
        self.admin_auth_failures = made.labelled_counter("wavry_master_admin_auth_failures_total")
        self._relay_mode = made.gauge("wavry_master_relay_mode")
        self._tls_stale = made.gauge("wavry_master_tls_certificate_stale")
        self._lockdown = made.gauge("wavry_master_lockdown")
        self.lockdown_refused = made.counter("wavry_master_lockdown_refused_total")
        self._bans = made.labelled_gauge("wavry_master_bans")
        made.counter_of("wavry_master_log_lines_lost_total", log_stream.lines_lost)
        made.counter_of("wavry_master_connections_given_up_total", lambda: HttpListener.given_up)
        made.require_all_made()

    def watch_tls(self, tls: TlsFiles | None) -> None:
        """Read from `tls` at each scrape whether its files changed and could not be taken."""
        self._tls_stale.set_function(lambda: float(tls is not None and tls.is_stale))

    def watch_switches(self, table: SwitchTable) -> None:
        """Read the switches from `table` at each scrape."""
        self._relay_mode.set_function(lambda: float(table.relay_mode))
        self._lockdown.set_function(lambda: float(table.lockdown))

    def watch_bans(self, table: BanTable, now_s: Callable[[], int]) -> None:
        """Count the bans of `table` at each scrape."""

        def held(kind: BanKind) -> float:
            return table.count(now_s())[kind]

        for kind in BanKind:
            self._bans.labels(kind.value).set_function(partial(held, kind))

    def count_http(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answer, see `observe_requests`."""
        self.http_requests.labels(route, method, str(status)).inc()
        self.http_seconds.labels(route).observe(seconds)

    def note_store(self, *, ready: bool, sessions: int | None) -> None:
        """Note whether the store works, and its sessions; None where nobody knows."""
        self._ready.set(ready)
        self._sessions.set(math.nan if sessions is None else sessions)

    def note_pool(self, pool: PoolFacts, *, heartbeat_interval_s: float) -> None:
        """Note the relays as they are now."""
        for state in RelayState:
            self._relays.labels(state.value).set(pool.by_state.get(state, 0))
        for kind in Enrolment:
            self._relays_enrolled.labels(kind.value).set(pool.by_enrolment.get(kind, 0))
        self._enrolment_tokens.set(pool.enrolment_tokens)
        for state in _HEARD:
            self._heartbeat_age.labels(state.value).set(pool.heartbeat_age_s.get(state, 0))
        self._heartbeat_interval.set(heartbeat_interval_s)
        self._pool_sessions.set(pool.sessions)
        self._pool_sessions_max.set(pool.sessions_max)
        self._relays_without_key.set(pool.without_key)
        for cause in DegradedCause:
            self._degraded.labels(cause.value).set(pool.degraded.get(cause, 0))
        self._clock_off.set(pool.clock_off_s)
        self._probe_rtt.set(pool.probe_rtt_s)
        self._pool_silent.set(pool.is_silent)

    def note_probe(self, outcome: ProbeOutcome) -> None:
        """Count a probe of one endpoint."""
        if not outcome.has_route:
            result = "no_route"
        elif not outcome.is_conclusive:
            result = "late"
        else:
            result = "passed" if outcome.fault is None else outcome.fault.value
        self._probes.labels(result).inc()

    def note_keys(self, keys: LiveKeys, *, now_s: int, lifetime_s: int) -> None:
        """Note the published keys; `lifetime_s` is the planned life of an active one."""
        self._keyset_serial.set(keys.keyset.serial)
        self._keyset_issued.set(keys.keyset.issued_at)
        statuses = TallyOf(key.status for key in keys.keyset.keys)
        for status in ("pending", "active", "retiring", "revoked"):
            self._keys.labels(status).set(statuses[status])
        self._active_key_age.set(keys.active_age_s(now_s))
        self._key_end.labels("active").set(keys.active_end_s(lifetime_s))
        self._key_end.labels("retiring").set(keys.retiring_end_s())

    def text(self) -> bytes:
        """Return the Prometheus text format."""
        return self._families.text()
