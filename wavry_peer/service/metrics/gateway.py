"""Metrics of a gateway."""

from typing import Final

from wavry_peer.protocol.http.codes import ErrorCode as Code

from .http import ADMIN_AUTH_CAUSE, HTTP_METHOD, HTTP_STATUS, route
from .process import PROCESS, build_info
from .spec import OTHER, Label, MetricSpec, closed, counter, gauge, histogram

__all__ = ["GATEWAY"]

_ROUTE: Final = route(
    "/auth/register", "/auth/login", "/auth/logout", "/auth/password", "/auth/reset",
    "/auth/delete", "/auth/export", "/auth/logins", "/auth/logins/end-others",
    "/auth/logins/{login_id}", "/ws",
    "/v1/sessions", "/v1/sessions/{session_id}", "/v1/sessions/{session_id}/accept",
    "/v1/sessions/{session_id}/path", "/v1/sessions/{session_id}/relay",
    "/v1/sessions/{session_id}/renew",
    "/health", "/ready", "/metrics", "/openapi.json",
    "/v1/admin/users", "/v1/admin/users/{username}", "/v1/admin/users/{username}/reset",
    "/v1/admin/users/{username}/logout", "/v1/admin/users/{username}/delete",
    "/v1/admin/sessions", "/v1/admin/sessions/{session_id}", "/v1/admin/sessions/{session_id}/end",
    "/v1/admin/session-news", "/v1/admin/status", "/v1/admin/audit",
    "/v1/admin/switches", "/v1/admin/switches/{switch}", "/v1/admin/bans", "/v1/admin/bans/lift",
)  # fmt: skip
_FRAME_FAULTS: Final = (
    Code.FRAME_TOO_LARGE,
    Code.INVALID_JSON,
    Code.INVALID_MESSAGE,
)
_BIND_CODES: Final = (
    Code.BIND_TIMEOUT, Code.BIND_REQUIRED, Code.INVALID_TOKEN, Code.BANNED, Code.LOCKDOWN,
    *_FRAME_FAULTS, Code.STORE_UNAVAILABLE, Code.INTERNAL_ERROR,
)  # fmt: skip
_BIND_FAULTS: Final = (
    *_BIND_CODES,
    Code.RATE_LIMITED,
    "shutdown",
    "client_left",
    "gone",
    "slow_reader",
)
_PATH: Final = ("direct", "relay")
_CALL: Final = closed("call", "issue", "renew", "check_token")
_ERROR_CODE: Final = closed(
    "code", *_BIND_CODES, Code.DISPLACED, Code.INVALID_TARGET, Code.USER_OFFLINE, Code.RATE_LIMITED,
    Code.BUSY, Code.UNKNOWN_SESSION, Code.SESSION_CLOSED, Code.NOT_ACCEPTED, Code.NOT_CALLED_USER,
    Code.KEY_MISMATCH, Code.IDENTITY_KEY_REQUIRED, Code.NOT_ON_RELAY, Code.RELAY_GONE,
    Code.RELAY_UNAVAILABLE, Code.NO_RELAY_AVAILABLE, Code.RELAY_MODE_OFF, Code.REVOKED,
    Code.STALE_JTI, OTHER,
)  # fmt: skip


def _counter(name: str, text: str, *labels: Label) -> MetricSpec:
    return counter(f"wavry_gateway_{name}", text, *labels)


def _gauge(name: str, text: str, *labels: Label) -> MetricSpec:
    return gauge(f"wavry_gateway_{name}", text, *labels)


GATEWAY: Final[tuple[MetricSpec, ...]] = (
    build_info("gateway"),
    _gauge("ready", "1 while users can be served, as /ready says."),
    _gauge("master_reachable", "1 while the master answers; without it no call gets a relay."),
    _counter("log_lines_lost", "Log lines that could not be written."),
    _counter("connections_given_up", "HTTP connections closed or refused: there were too many."),
    _counter(
        "http_requests",
        "HTTP requests by method, route template and status.",
        HTTP_METHOD,
        _ROUTE,
        HTTP_STATUS,
    ),
    histogram(
        "wavry_gateway_http_request_seconds",
        "Time of an HTTP request, WebSockets left out.",
        (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0),
        _ROUTE,
    ),
    # -- Who may come in
    _counter(
        "logins",
        "Logins by result.",
        closed(
            "result",
            "ok",
            "wrong",
            "delayed",
            "limited",
            Code.BUSY,
            Code.BANNED,
            Code.LOCKDOWN,
        ),
    ),
    _counter(
        "registrations",
        "Registrations by result.",
        closed("result", "ok", "taken", "limited", "busy"),
    ),
    _counter(
        "token_checks",
        "Tokens of users looked at, by way and result (unknown: also expired or logged out).",
        closed("via", "http", "websocket"),
        closed("result", "ok", "missing", "malformed", "unknown", Code.BANNED, Code.LOCKDOWN),
    ),
    _counter(
        "binds",
        "First steps of WebSockets, one for each connection: ok, or why it ended unbound.",
        closed("result", "ok", *_BIND_FAULTS, OTHER),
    ),
    _counter(
        "rate_limited",
        "Refused by a limit.",
        closed(
            "limit",
            "register",
            "login",
            "connect",
            "connections",
            "request",
            "message",
            "call",
            "relay",
        ),
    ),
    _counter(
        "admin_auth_failures",
        "Admin calls refused for their token, by cause (forbidden: its role is not enough).",
        ADMIN_AUTH_CAUSE,
    ),
    _gauge(
        "tls_certificate_stale",
        "1 where the TLS files changed and do not fit, so that the old certificate is in use.",
    ),
    _gauge("lockdown", "1 where only admin calls pass, else 0."),
    _counter("lockdown_refused", "Calls turned away by the lockdown."),
    _gauge("bans", "Bans of users that hold."),
    _counter("banned_refused", "Logins, connections and calls of banned users."),
    # -- Signaling
    _gauge("websockets", "Open WebSockets, bound or not."),
    _counter(
        "websockets_closed",
        "Ended WebSockets by cause.",
        closed("cause", *_BIND_FAULTS, Code.DISPLACED, OTHER),
    ),
    _gauge("users_online", "Bound users."),
    _counter(
        "messages",
        "Signaling messages received by type.",
        closed(
            "type",
            "BIND",
            "OFFER",
            "ANSWER",
            "CANDIDATE",
            "OFFER_RIFT",
            "ANSWER_RIFT",
            "REQUEST_RELAY",
            "BYE",
            "PING",
            "PONG",
        ),
    ),
    _counter("message_errors", "ERROR messages sent by code.", _ERROR_CODE),
    # -- Sessions
    _gauge(
        "sessions", "Open sessions, by state.", closed("state", "pending", "accepted", "active")
    ),
    _counter(
        "session_events",
        "What happened to sessions.",
        closed(
            "event",
            "called",
            "accepted",
            "refused",
            "relayed",
            "moved",
            "renewed",
            "closed",
            "expired",
        ),
    ),
    _gauge(
        "sessions_by_path",
        "Answered sessions by the path that their users reported last.",
        closed("path", *_PATH, "unreported"),
    ),
    _counter(
        "session_paths",
        "Sessions that came to talk on a path, as their users report; a move counts again.",
        closed("path", *_PATH),
    ),
    # -- Master
    _counter(
        "master_calls",
        "Calls of the master by call and result (skipped: it did not answer a moment ago).",
        _CALL,
        closed("result", "ok", "refused", "failed", "skipped"),
    ),
    histogram(
        "wavry_gateway_master_call_seconds",
        "Time of a call of the master.",
        (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0),
        _CALL,
    ),
    *PROCESS,
)
