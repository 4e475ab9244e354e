"""The catalogue of the gateway's metrics.

Every label has a bounded set of values that no client can extend: route templates, known message
types, codes of ours.  Each application has its own registry, so that two fit in one process.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from wavry_cp.control.bans import BanBook
from wavry_cp.control.switches import SwitchBook

__all__ = ["GatewayMetrics"]

_HTTP_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)


class GatewayMetrics:
    """Counters, gauges and histograms of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.http_requests = Counter(
            "wavry_gateway_http_requests_total",
            "HTTP requests by route template and status.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.http_seconds = Histogram(
            "wavry_gateway_http_request_seconds",
            "Time of an HTTP request, WebSockets left out.",
            ("route",),
            buckets=_HTTP_BUCKETS,
            registry=self.registry,
        )
        self.logins = Counter(
            "wavry_gateway_logins_total",
            "Logins by result: ok, wrong, delayed, busy.",
            ("result",),
            registry=self.registry,
        )
        self.registrations = Counter(
            "wavry_gateway_registrations_total",
            "Registrations by result: ok, taken.",
            ("result",),
            registry=self.registry,
        )
        self.limited = Counter(
            "wavry_gateway_rate_limited_total",
            "Refused by a limit: register, login, connect, connections, request, message, call, "
            "relay.",
            ("limit",),
            registry=self.registry,
        )
        self.admin_auth_failures = Counter(
            "wavry_gateway_admin_auth_failures_total",
            "Admin calls refused for their token: wrong_token, limited, forbidden (role).",
            ("cause",),
            registry=self.registry,
        )
        self.lockdown = Gauge(
            "wavry_gateway_lockdown",
            "1 where only admin calls pass, else 0.",
            registry=self.registry,
        )
        self.lockdown_refused = Counter(
            "wavry_gateway_lockdown_refused_total",
            "Calls turned away by the lockdown.",
            registry=self.registry,
        )
        self.bans = Gauge("wavry_gateway_bans", "Bans of users that hold.", registry=self.registry)
        self.banned_refused = Counter(
            "wavry_gateway_banned_refused_total",
            "Logins, connections and calls of banned users.",
            registry=self.registry,
        )
        self.connections = Gauge(
            "wavry_gateway_websockets", "Open WebSockets, bound or not.", registry=self.registry
        )
        self.connections_closed = Counter(
            "wavry_gateway_websockets_closed_total",
            "Ended WebSockets by cause.",
            ("cause",),
            registry=self.registry,
        )
        self.online = Gauge("wavry_gateway_users_online", "Bound users.", registry=self.registry)
        self.messages = Counter(
            "wavry_gateway_messages_total",
            "Signaling messages received by type.",
            ("type",),
            registry=self.registry,
        )
        self.message_errors = Counter(
            "wavry_gateway_message_errors_total",
            "ERROR messages sent by code.",
            ("code",),
            registry=self.registry,
        )
        self.sessions = Counter(
            "wavry_gateway_session_events_total",
            "Sessions: called, accepted, refused, relayed, moved, renewed, closed, expired.",
            ("event",),
            registry=self.registry,
        )
        self.master_calls = Counter(
            "wavry_gateway_master_calls_total",
            "Calls of the master by call and result: ok, refused, failed, skipped.",
            ("call", "result"),
            registry=self.registry,
        )
        self.master_seconds = Histogram(
            "wavry_gateway_master_call_seconds",
            "Time of a call of the master.",
            ("call",),
            buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0),
            registry=self.registry,
        )

    def watch_switches(self, book: SwitchBook) -> None:
        """Read the switches from `book` at each scrape."""
        self.lockdown.set_function(lambda: float(book.lockdown))

    def watch_bans(self, book: BanBook, now_s: Callable[[], int]) -> None:
        """Count the bans of `book` at each scrape."""
        self.bans.set_function(lambda: book.count(now_s()).total())

    def watch_online(self, count: Callable[[], int]) -> None:
        """Read the number of bound users from `count` at each scrape."""
        self.online.set_function(count)

    def text(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self.registry)
