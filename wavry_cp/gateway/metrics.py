"""Metrics of the gateway, made from the catalogue (`wavry_peer.service.metrics.gateway`).

Each application has its own registry, so that two fit in one process.
"""

import math
from collections.abc import Callable, Mapping

from wavry_cp.app.metric_families import Families
from wavry_cp.app.transport.tls import TlsFiles
from wavry_cp.operators.bans import BanTable
from wavry_cp.operators.switches import SwitchTable
from wavry_peer.service import log_stream
from wavry_peer.service.http_listener import HttpListener
from wavry_peer.service.metrics import GATEWAY
from wavry_peer.service.version import software_version

__all__ = ["GatewayMetrics"]


class GatewayMetrics:
    """Counters, gauges and histograms of one gateway."""

    def __init__(self) -> None:
        made = self._families = Families(GATEWAY)
        self.registry = made.registry
        made.labelled_gauge("wavry_gateway_build_info").labels(software_version()).set(1)
        self._ready = made.gauge("wavry_gateway_ready")
        self._master_reachable = made.gauge("wavry_gateway_master_reachable")
        self.http_requests = made.labelled_counter("wavry_gateway_http_requests_total")
        self.http_seconds = made.labelled_histogram("wavry_gateway_http_request_seconds")
        self.logins = made.labelled_counter("wavry_gateway_logins_total")
        self.registrations = made.labelled_counter("wavry_gateway_registrations_total")
        self.token_checks = made.labelled_counter("wavry_gateway_token_checks_total")
        self.binds = made.labelled_counter("wavry_gateway_binds_total")
        self.limited = made.labelled_counter("wavry_gateway_rate_limited_total")
        self.admin_auth_failures = made.labelled_counter("wavry_gateway_admin_auth_failures_total")
        self._tls_stale = made.gauge("wavry_gateway_tls_certificate_stale")
        self.lockdown = made.gauge("wavry_gateway_lockdown")
        self.lockdown_refused = made.counter("wavry_gateway_lockdown_refused_total")
        self.bans = made.gauge("wavry_gateway_bans")
        self.banned_refused = made.counter("wavry_gateway_banned_refused_total")
        self.connections = made.gauge("wavry_gateway_websockets")
        self.connections_closed = made.labelled_counter("wavry_gateway_websockets_closed_total")
        self.online = made.gauge("wavry_gateway_users_online")
        self.messages = made.labelled_counter("wavry_gateway_messages_total")
        self.message_errors = made.labelled_counter("wavry_gateway_message_errors_total")
        self._open_sessions = made.labelled_gauge("wavry_gateway_sessions")
        self.sessions = made.labelled_counter("wavry_gateway_session_events_total")
        self._sessions_by_path = made.labelled_gauge("wavry_gateway_sessions_by_path")
        self.session_paths = made.labelled_counter("wavry_gateway_session_paths_total")
        self.master_calls = made.labelled_counter("wavry_gateway_master_calls_total")
        self.master_seconds = made.labelled_histogram("wavry_gateway_master_call_seconds")
        made.counter_of("wavry_gateway_log_lines_lost_total", log_stream.lines_lost)
        made.counter_of("wavry_gateway_connections_given_up_total", lambda: HttpListener.given_up)
        made.require_all_made()

    def count_http(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answer, see `observe_requests`."""
        self.http_requests.labels(method, route, str(status)).inc()
        self.http_seconds.labels(route).observe(seconds)

    def watch_tls(self, tls: TlsFiles | None) -> None:
        """Read from `tls` at each scrape whether its files changed and could not be taken."""
        self._tls_stale.set_function(lambda: float(tls is not None and tls.is_stale))

    def watch_switches(self, table: SwitchTable) -> None:
        """Read the switches from `table` at each scrape."""
        self.lockdown.set_function(lambda: float(table.lockdown))

    def watch_bans(self, table: BanTable, now_s: Callable[[], int]) -> None:
        """Count the bans of `table` at each scrape."""
        self.bans.set_function(lambda: table.count(now_s()).total())

    def watch_online(self, count: Callable[[], int]) -> None:
        """Read the number of bound users from `count` at each scrape."""
        self.online.set_function(count)

    def note_state(self, *, ready: bool, master_reachable: bool) -> None:
        """Note what /ready says now."""
        self._ready.set(ready)
        self._master_reachable.set(master_reachable)

    def note_sessions(
        self, by_state: Mapping[str, int] | None, by_path: Mapping[str, int] | None
    ) -> None:
        """Open sessions as the store has them; None where it does not answer: nobody knows."""
        for state in ("pending", "accepted", "active"):
            count = math.nan if by_state is None else by_state.get(state, 0)
            self._open_sessions.labels(state).set(count)
        for path in ("direct", "relay", "unreported"):
            count = math.nan if by_path is None else by_path.get(path, 0)
            self._sessions_by_path.labels(path).set(count)

    def text(self) -> bytes:
        """Return the Prometheus text format."""
        return self._families.text()
