"""Metrics of a master."""

from typing import Final

from wavry_peer.protocol.http.codes import ErrorCode as Code
from wavry_peer.protocol.relay_terms import DegradedCause, Enrolment, ProbeFault, RelayState

from .http import ADMIN_AUTH_CAUSE, BODY_FAULTS, HTTP_METHOD, HTTP_STATUS, route
from .process import PROCESS, build_info
from .spec import OTHER, Label, MetricSpec, closed, counter, gauge, histogram

__all__ = ["MASTER"]

_ROUTE: Final = route(
    "/v1/relays/events", "/v1/relays/register", "/v1/relays/register/verify",
    "/v1/relays/heartbeat", "/v1/relays", "/v1/relays/{relay_id}",
    "/v1/relays/{relay_id}/history",
    "/v1/leases", "/v1/leases/renew", "/v1/leases/revoke",
    "/health", "/ready", "/metrics", "/openapi.json", "/.well-known/wavry-keys.json",
    "/v1/admin/status", "/v1/admin/audit", "/v1/admin/revocations",
    "/v1/admin/relays/{relay_id}/drain", "/v1/admin/relays/{relay_id}/undrain",
    "/v1/admin/relays/{relay_id}/blocks/clear", "/v1/admin/blocks",
    "/v1/admin/relay-news", "/v1/admin/leases",
    "/v1/admin/enrolments", "/v1/admin/enrolments/{name}",
    "/v1/admin/relays/{relay_id}/approve", "/v1/admin/relays/{relay_id}/reject",
    "/v1/admin/relays/{relay_id}/rename",
    "/v1/admin/tokens", "/v1/admin/tokens/check", "/v1/admin/tokens/{name}/rotate",
    "/v1/admin/tokens/{name}/revoke",
    "/v1/admin/switches", "/v1/admin/switches/{switch}", "/v1/admin/bans", "/v1/admin/bans/lift",
    "/v1/admin/keys", "/v1/admin/keys/status", "/v1/admin/keys/root", "/v1/admin/keys/create",
    "/v1/admin/keys/activate", "/v1/admin/keys/rollback", "/v1/admin/keys/remove",
    "/v1/admin/keys/revoke",
)  # fmt: skip
_UNFINISHED: Final = (Code.STORE_UNAVAILABLE, Code.INTERNAL_ERROR, "client_left")
_REGISTRATION_REFUSALS: Final = (
    Code.RATE_LIMITED, Code.UNAUTHORIZED, Code.FORBIDDEN, Code.BANNED, Code.RELAY_NOT_ENROLLED,
    Code.ENROLMENT_TOKEN_INVALID, Code.WRONG_REGION, Code.NAME_TAKEN, Code.ENDPOINT_TAKEN,
    Code.TOO_MANY_STRANGERS, Code.INVALID_PUBLIC_KEY, Code.INVALID_RELAY_ID,
    Code.INVALID_ENDPOINT, Code.UNKNOWN_CHALLENGE, Code.INVALID_SIGNATURE, Code.KEY_MISMATCH,
)  # fmt: skip
_HEARTBEAT_REFUSALS: Final = (
    Code.UNAUTHORIZED, Code.UNKNOWN_RELAY, Code.INVALID_RELAY_TOKEN, Code.BANNED, Code.WRONG_STATE,
)  # fmt: skip
_LEASE_REFUSALS: Final = (
    Code.UNAUTHORIZED, Code.FORBIDDEN, Code.RELAY_MODE_OFF, Code.BANNED, Code.REVOKED,
    Code.NO_RELAY_AVAILABLE, Code.RELAY_UNAVAILABLE, Code.RELAY_LACKS_KEY, Code.SAME_PARTY,
    Code.INVALID_CNF, Code.INVALID_SESSION, Code.SESSION_CONFLICT, Code.BUSY_SESSION,
    Code.UNKNOWN_SESSION, Code.STALE_JTI, Code.LEASE_EXPIRED, Code.LEASE_TOO_LARGE,
)  # fmt: skip
_STATES: Final = tuple(state for state in RelayState if state is not RelayState.BANNED)


def _counter(name: str, text: str, *labels: Label) -> MetricSpec:
    return counter(f"wavry_master_{name}", text, *labels)


def _gauge(name: str, text: str, *labels: Label) -> MetricSpec:
    return gauge(f"wavry_master_{name}", text, *labels)


MASTER: Final[tuple[MetricSpec, ...]] = (
    build_info("master"),
    _gauge("ready", "1 while the store works, as /ready says."),
    _counter("log_lines_lost", "Log lines that could not be written."),
    _counter("connections_given_up", "HTTP connections closed or refused: there were too many."),
    _counter(
        "http_requests",
        "HTTP requests by route template, method and status.",
        _ROUTE,
        HTTP_METHOD,
        HTTP_STATUS,
    ),
    histogram(
        "wavry_master_http_request_seconds",
        "Time to answer an HTTP request, by route template.",
        (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
        _ROUTE,
    ),
    # -- Leases
    _counter("leases_issued", "Leases signed for new or moved sessions, one per role."),
    _counter(
        "lease_renewals",
        "Renewals answered; repeated after a lost answer.",
        closed("result", "renewed", "repeated"),
    ),
    _counter(
        "leases_rejected",
        "Lease and renewal calls refused, by error code.",
        closed("reason", *_LEASE_REFUSALS, *BODY_FAULTS, *_UNFINISHED, OTHER),
    ),
    _gauge("sessions", "Sessions with a lease that has not expired."),
    _counter(
        "revocations",
        "Revocations ordered, by what they name.",
        closed("kind", "jti", "session_id", "sub", "kid"),
    ),
    _gauge("revocations_in_force", "Revocations that a lease may still be hit by."),
    # -- Relays
    _counter(
        "registrations",
        "Registration steps: challenged, registered, or the error code of the refusal.",
        closed(
            "result",
            "challenged",
            "registered",
            *_REGISTRATION_REFUSALS,
            *BODY_FAULTS,
            *_UNFINISHED,
            OTHER,
        ),
    ),
    _counter(
        "heartbeats",
        "Heartbeats: accepted, or the error code of the refusal.",
        closed("result", "accepted", *_HEARTBEAT_REFUSALS, *BODY_FAULTS, *_UNFINISHED, OTHER),
    ),
    _gauge("relays", "Relays by state.", closed("state", *RelayState)),
    _gauge(
        "relays_enrolled",
        "Relays by what let them in; open are those that nobody enrolled.",
        closed("enrolment", *Enrolment),
    ),
    _gauge("enrolment_tokens", "Enrolment tokens that wait for their relays."),
    _counter("probation_sessions", "New sessions given to relays that nobody enrolled."),
    _gauge(
        "relay_heartbeat_age_seconds",
        "Age of the oldest last heartbeat among the relays of a state; 0 where there is none.",
        closed("state", *_STATES),
    ),
    _gauge(
        "relays_degraded",
        "DEGRADED relays by cause; one with several causes counts under each.",
        closed("cause", *DegradedCause),
    ),
    _gauge(
        "relays_clock_off_seconds",
        "The most that the clock of a live relay differs from the master's.",
    ),
    _counter(
        "probes",
        "Sessions of the master's own through an endpoint of a relay: passed, what failed, or why"
        " nothing could be concluded.",
        closed("result", "passed", "late", "no_route", *ProbeFault),
    ),
    _gauge(
        "relays_probe_rtt_seconds",
        "The longest time that a datagram of a probe takes through an ACTIVE relay and back.",
    ),
    _gauge(
        "pool_silent",
        "1 while no relay answers the master's probes although some did before.",
    ),
    _gauge("heartbeat_interval_seconds", "How often relays are told to report."),
    _gauge("pool_sessions", "Sessions at the relays that are not OFFLINE, as they reported."),
    _gauge("pool_sessions_max", "Sessions that the ACTIVE relays have room for."),
    _gauge("event_streams", "Relays that hold an event stream open."),
    _counter(
        "event_stream_ends",
        "Event streams that ended, by cause.",
        closed(
            "cause",
            "relay_left",
            "replaced",
            "stopping",
            "not_allowed",
            "banned",
            "slow_relay",
            "no_ack",
            "bad_frame",
            "bad_number",
            "cancelled",
            OTHER,
        ),
    ),
    _counter("event_pages", "Answers to relays that asked for events without a stream."),
    # -- Keys
    _gauge("keyset_serial", "Serial of the published key-set document."),
    _gauge("keyset_issued_time_seconds", "Unix time at which the root signed the document."),
    _gauge(
        "keys",
        "Published signing keys, by status.",
        closed("status", "pending", "active", "retiring", "revoked"),
    ),
    _gauge("active_key_age_seconds", "Time since the active key began to sign."),
    _gauge(
        "key_end_time_seconds",
        "Unix time of a key's end: active, where its planned life (WAVRY_MASTER_KEY_LIFETIME_DAYS) "
        "ends, though it goes on signing; retiring, where its last lease has expired; 0 for none.",
        closed("status", "active", "retiring"),
    ),
    _gauge(
        "relays_without_active_key",
        "Live relays that have not reported that they hold the active key.",
    ),
    _counter(
        "key_steps",
        "Published changes of the key set, by step of the rotation.",
        closed("step", "create", "activate", "rollback", "remove", "revoke", "root"),
    ),
    # -- Operators
    _counter(
        "admin_auth_failures",
        "Admin calls refused for their token, by cause (forbidden: its role is not enough).",
        ADMIN_AUTH_CAUSE,
    ),
    _gauge("relay_mode", "1 where new leases are given, 0 where the kill switch has ended that."),
    _gauge(
        "tls_certificate_stale",
        "1 where the TLS files changed and do not fit, so that the old certificate is in use.",
    ),
    _gauge("lockdown", "1 where only admin calls pass, else 0."),
    _counter("lockdown_refused", "Calls turned away by the lockdown."),
    _gauge("bans", "Bans that hold, by kind.", closed("kind", "user", "relay")),
    *PROCESS,
)
