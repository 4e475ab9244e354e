"""Metrics of the master.  No label holds anything that an outsider can choose."""

from collections import Counter as TallyOf
from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from wavry_cp.control.bans import BanBook, BanKind
from wavry_cp.control.switches import SwitchBook

from .live_keys import LiveKeys
from .registry import RelayState

__all__ = ["MasterMetrics"]

_METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})


class MasterMetrics:
    """The catalogue, on a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.leases_issued = Counter(
            "wavry_master_leases_issued",
            "Leases signed for new or moved sessions, one per role.",
            registry=self.registry,
        )
        self.lease_renewals = Counter(
            "wavry_master_lease_renewals",
            "Renewals answered: renewed, or repeated after a lost answer.",
            ["result"],
            registry=self.registry,
        )
        self.leases_rejected = Counter(
            "wavry_master_leases_rejected",
            "Lease and renewal calls refused, by error code.",
            ["reason"],
            registry=self.registry,
        )
        self.registrations = Counter(
            "wavry_master_registrations",
            "Registration steps: challenged, registered, or the error code of the refusal.",
            ["result"],
            registry=self.registry,
        )
        self.heartbeats = Counter(
            "wavry_master_heartbeats",
            "Heartbeats: accepted, or the error code of the refusal.",
            ["result"],
            registry=self.registry,
        )
        self.admin_auth_failures = Counter(
            "wavry_master_admin_auth_failures",
            "Admin calls refused for their token: wrong_token, limited, forbidden (role).",
            ["cause"],
            registry=self.registry,
        )
        self.relays = Gauge(
            "wavry_master_relays", "Relays by state.", ["state"], registry=self.registry
        )
        self.relay_mode = Gauge(
            "wavry_master_relay_mode",
            "1 where new leases are given, 0 where the kill switch has ended that.",
            registry=self.registry,
        )
        self.lockdown = Gauge(
            "wavry_master_lockdown",
            "1 where only admin calls pass, else 0.",
            registry=self.registry,
        )
        self.lockdown_refused = Counter(
            "wavry_master_lockdown_refused",
            "Calls turned away by the lockdown.",
            registry=self.registry,
        )
        self.bans = Gauge(
            "wavry_master_bans",
            "Bans that hold, by kind: user, relay.",
            ["kind"],
            registry=self.registry,
        )
        self.revocations = Counter(
            "wavry_master_revocations",
            "Revocations ordered, by what they name.",
            ["kind"],
            registry=self.registry,
        )
        self.revocations_in_force = Gauge(
            "wavry_master_revocations_in_force",
            "Revocations that a lease may still be hit by.",
            registry=self.registry,
        )
        self.event_streams = Gauge(
            "wavry_master_event_streams",
            "Relays that hold an event stream open.",
            registry=self.registry,
        )
        self.event_stream_ends = Counter(
            "wavry_master_event_stream_ends",
            "Event streams that ended, by cause.",
            ["cause"],
            registry=self.registry,
        )
        self.event_pages = Counter(
            "wavry_master_event_pages",
            "Answers to relays that asked for events without a stream.",
            registry=self.registry,
        )
        self.keyset_serial = Gauge(
            "wavry_master_keyset_serial",
            "Serial of the published key-set document.",
            registry=self.registry,
        )
        self.keys = Gauge(
            "wavry_master_keys", "Published signing keys, by status.", ["status"],
            registry=self.registry,
        )  # fmt: skip
        self.active_key_age = Gauge(
            "wavry_master_active_key_age_seconds",
            "Time since the active key began to sign.",
            registry=self.registry,
        )
        self.relays_without_key = Gauge(
            "wavry_master_relays_without_active_key",
            "Live relays that have not reported that they hold the active key.",
            registry=self.registry,
        )
        self.key_steps = Counter(
            "wavry_master_key_steps",
            "Published changes of the key set, by step of the rotation.",
            ["step"],
            registry=self.registry,
        )
        self.http_requests = Counter(
            "wavry_master_http_requests",
            "HTTP requests by route template, method and status.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self.http_seconds = Histogram(
            "wavry_master_http_request_seconds",
            "Time to answer an HTTP request, by route template.",
            ["route"],
            registry=self.registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
        )

    def watch_switches(self, book: SwitchBook) -> None:
        """Read the switches from `book` at each scrape."""
        self.relay_mode.set_function(lambda: float(book.relay_mode))
        self.lockdown.set_function(lambda: float(book.lockdown))

    def watch_bans(self, book: BanBook, now_s: Callable[[], int]) -> None:
        """Count the bans of `book` at each scrape."""

        def held(kind: BanKind) -> float:
            return book.count(now_s())[kind]

        for kind in BanKind:
            self.bans.labels(kind.value).set_function(partial(held, kind))

    def count_http(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answer; an unknown method is "other", as a client can invent any."""
        known = method if method in _METHODS else "other"
        self.http_requests.labels(route, known, str(status)).inc()
        self.http_seconds.labels(route).observe(seconds)

    def render(
        self,
        relays: Mapping[RelayState, int],
        keys: LiveKeys,
        *,
        relays_without_key: int,
        now_s: int,
    ) -> bytes:
        """Prometheus text, with the gauges as they are now."""
        for state in RelayState:
            self.relays.labels(state.value).set(relays.get(state, 0))
        self.keyset_serial.set(keys.keyset.serial)
        statuses = TallyOf(key.status for key in keys.keyset.keys)
        for status in ("pending", "active", "retiring", "revoked"):
            self.keys.labels(status).set(statuses[status])
        self.active_key_age.set(keys.active_age_s(now_s))
        self.relays_without_key.set(relays_without_key)
        return generate_latest(self.registry)
