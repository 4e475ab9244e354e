"""Settings of the gateway, read once from environment variables."""

import dataclasses
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from wavry_cp.app.http import IpNetwork, parse_networks
from wavry_cp.app.requests import ACCESS_LOG_DOC, check_access_log
from wavry_cp.app.transport.guards import is_public, listen_faults, plain_origins, wide_networks
from wavry_cp.gateway.accounts.passwords import PasswordCost
from wavry_cp.gateway.sessions.rules import CallLimits
from wavry_peer.protocol import constants as c
from wavry_peer.service.http_client import is_readable_on_the_way
from wavry_peer.service.http_listener import IDLE_PER_ADDRESS
from wavry_peer.service.listen_address import parse_listen_address
from wavry_peer.service.settings import SettingsError, setting

__all__ = ["GatewayConfig"]

DAY_S: Final = 86_400
OWASP_MEMORY_KIB: Final = 19_456


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Everything that an operator can set."""

    listen: str = setting(
        "WAVRY_GATEWAY_LISTEN",
        "127.0.0.1:8090",
        doc="Address for HTTP and WebSocket; another than loopback needs TLS. Port 0 is any free"
        " one.",
    )
    tls_certificate_file: Path | None = setting(
        "WAVRY_GATEWAY_TLS_CERTIFICATE_FILE",
        None,
        doc="PEM file with the certificate and its chain: then this service speaks TLS itself. Read"
        " again when it changes.",
    )
    tls_key_file: Path | None = setting(
        "WAVRY_GATEWAY_TLS_KEY_FILE",
        None,
        doc="PEM file (mode 0600) with the key of WAVRY_GATEWAY_TLS_CERTIFICATE_FILE.",
    )
    allow_public_bind: bool = setting(
        "WAVRY_GATEWAY_ALLOW_PUBLIC_BIND",
        default=False,
        doc="Allow an address that other hosts can reach, without TLS of its own.",
    )
    data_dir: Path = setting(
        "WAVRY_GATEWAY_DATA_DIR", doc="Directory of gateway.db; made with mode 0700 if missing."
    )
    master_url: str = setting(
        "WAVRY_GATEWAY_MASTER_URL", doc="Base URL of the master, e.g. http://127.0.0.1:8091."
    )
    allow_http: bool = setting(
        "WAVRY_GATEWAY_ALLOW_HTTP",
        default=False,
        doc="Let WAVRY_GATEWAY_MASTER_URL be http:// to another host: only inside a network that"
        " you trust.",
    )
    service_token_file: Path = setting(
        "WAVRY_GATEWAY_SERVICE_TOKEN_FILE",
        doc="File (mode 0600) with the service token that the master knows.",
    )
    admin_token_file: Path | None = setting(
        "WAVRY_GATEWAY_ADMIN_TOKEN_FILE",
        None,
        doc="File (mode 0600) with the admin token; without it the admin calls are off.",
    )
    admin_failures_per_minute: int = setting(
        "WAVRY_GATEWAY_ADMIN_FAILURES_PER_MINUTE",
        30,
        doc="Wrong admin tokens answered per IPv4 address or IPv6 /64; more are told to wait.",
        unit="1/min",
        minimum=1,
        maximum=1_000_000,
    )
    trusted_proxies: tuple[str, ...] = setting(
        "WAVRY_GATEWAY_TRUSTED_PROXIES",
        (),
        doc="Networks (CIDR) whose X-Forwarded-For is believed; its last foreign address counts.",
    )
    cors_origins: tuple[str, ...] = setting(
        "WAVRY_GATEWAY_CORS_ORIGINS",
        (),
        doc="Web origins that browsers may call from, e.g. https://app.example.org.",
    )
    metrics_networks: tuple[str, ...] = setting(
        "WAVRY_GATEWAY_METRICS_NETWORKS",
        ("127.0.0.0/8", "::1/128"),
        doc="Networks that may read /metrics without the admin token.",
    )
    access_log: str = setting("WAVRY_GATEWAY_ACCESS_LOG", "off", doc=ACCESS_LOG_DOC)
    settings_file: Path | None = setting(
        "WAVRY_GATEWAY_SETTINGS_FILE",
        None,
        doc="File with any of these settings, TOML (`*.toml`) or NAME=value lines; the command line"
        " and the environment win over it.",
    )
    log_level: str = setting("WAVRY_LOG_LEVEL", "info", doc="debug, info, warning or error.")

    argon2_passes: int = setting(
        "WAVRY_GATEWAY_ARGON2_PASSES",
        2,
        minimum=1,
        maximum=16,
        doc="Argon2id passes. With 64 MiB this is libsodium's INTERACTIVE cost, three times the "
        "OWASP minimum of memory: about 0.2 s of one core, so that two cores still log in "
        "ten users a second. Stored hashes of another cost are redone at the next login.",
    )
    argon2_memory_kib: int = setting(
        "WAVRY_GATEWAY_ARGON2_MEMORY_KIB",
        65_536,
        unit="KiB",
        minimum=8,
        maximum=4_194_304,
        doc="Argon2id memory of one password check; below 19456 only for tests.",
    )
    argon2_concurrency: int = setting(
        "WAVRY_GATEWAY_ARGON2_CONCURRENCY",
        2,
        minimum=1,
        maximum=64,
        doc="Password checks that run at once; each takes the memory above.",
    )
    argon2_waiting: int = setting(
        "WAVRY_GATEWAY_ARGON2_WAITING",
        64,
        minimum=1,
        maximum=10_000,
        doc="Password checks running or waiting; one more is answered 503 busy.",
    )
    token_ttl_s: int = setting(
        "WAVRY_GATEWAY_TOKEN_TTL_S",
        7 * DAY_S,
        unit="s",
        minimum=1,
        maximum=365 * DAY_S,
        doc="Life of a login.",
    )
    tokens_per_user: int = setting(
        "WAVRY_GATEWAY_TOKENS_PER_USER",
        32,
        minimum=1,
        maximum=1000,
        doc="Logins that a user has at once; one more ends the oldest.",
    )
    register_per_minute: float = setting(
        "WAVRY_GATEWAY_REGISTER_PER_MINUTE",
        6.0,
        unit="1/min",
        minimum=0.001,
        doc="Registrations per address (IPv6: /64) in the long run.",
    )
    register_burst: int = setting(
        "WAVRY_GATEWAY_REGISTER_BURST",
        20,
        minimum=1,
        doc="Registrations per address at once.",
    )
    login_per_minute: float = setting(
        "WAVRY_GATEWAY_LOGIN_PER_MINUTE",
        30.0,
        unit="1/min",
        minimum=0.001,
        doc="Logins per address (IPv6: /64) in the long run.",
    )
    login_burst: int = setting(
        "WAVRY_GATEWAY_LOGIN_BURST", 20, minimum=1, doc="Logins per address at once."
    )

    requests_per_s: float = setting(
        "WAVRY_GATEWAY_REQUESTS_PER_S",
        20.0,
        unit="1/s",
        minimum=0.001,
        doc="Calls of /v1/sessions per user in the long run.",
    )
    requests_burst: int = setting(
        "WAVRY_GATEWAY_REQUESTS_BURST",
        100,
        minimum=1,
        doc="Calls of /v1/sessions per user at once.",
    )
    messages_per_s: float = setting(
        "WAVRY_GATEWAY_MESSAGES_PER_S",
        30.0,
        unit="1/s",
        minimum=0.001,
        doc="Signaling messages per user in the long run.",
    )
    messages_burst: int = setting(
        "WAVRY_GATEWAY_MESSAGES_BURST",
        120,
        minimum=1,
        doc="Signaling messages per user at once; a call with many candidates takes about 40.",
    )
    calls_per_minute: float = setting(
        "WAVRY_GATEWAY_CALLS_PER_MINUTE",
        30.0,
        unit="1/min",
        minimum=0.001,
        doc="New calls per user in the long run.",
    )
    calls_burst: int = setting(
        "WAVRY_GATEWAY_CALLS_BURST", 20, minimum=1, doc="New calls per user at once."
    )
    relay_requests_per_minute: float = setting(
        "WAVRY_GATEWAY_RELAY_REQUESTS_PER_MINUTE",
        30.0,
        unit="1/min",
        minimum=0.001,
        doc="Relay requests and renewals per session and user in the long run.",
    )
    relay_requests_burst: int = setting(
        "WAVRY_GATEWAY_RELAY_REQUESTS_BURST",
        10,
        minimum=1,
        doc="Relay requests and renewals per session and user at once.",
    )

    pending_s: int = setting(
        "WAVRY_GATEWAY_PENDING_S",
        60,
        unit="s",
        minimum=1,
        maximum=3600,
        doc="How long a call waits for its answer.",
    )
    session_idle_s: int = setting(
        "WAVRY_GATEWAY_SESSION_IDLE_S",
        DAY_S,
        unit="s",
        minimum=60,
        maximum=30 * DAY_S,
        doc="An accepted session is closed when neither user asked for a lease for so long.",
    )
    pending_per_caller: int = setting(
        "WAVRY_GATEWAY_PENDING_PER_CALLER",
        8,
        minimum=1,
        doc="Unanswered calls that one user may have open.",
    )
    pending_per_pair: int = setting(
        "WAVRY_GATEWAY_PENDING_PER_PAIR",
        3,
        minimum=1,
        doc="Unanswered calls of one user to one other.",
    )
    open_per_caller: int = setting(
        "WAVRY_GATEWAY_OPEN_PER_CALLER",
        256,
        minimum=1,
        doc="Sessions that one user may have started and not ended.",
    )

    bind_timeout_s: float = setting(
        "WAVRY_GATEWAY_BIND_TIMEOUT_S",
        float(c.BIND_TIMEOUT_S),
        unit="s",
        minimum=0.05,
        maximum=60,
        doc="A WebSocket that has not bound by then is closed.",
    )
    connections_per_address: int = setting(
        "WAVRY_GATEWAY_CONNECTIONS_PER_ADDRESS",
        1024,
        minimum=1,
        doc="WebSockets per address (IPv6: /64) at once: as many as an office may have; a user has"
        " one.",
    )
    max_connections: int = setting(
        "WAVRY_GATEWAY_MAX_CONNECTIONS",
        10_000,
        minimum=1,
        doc="WebSockets at once; at most three quarters of the limit of open files.",
    )
    idle_connections_per_address: int = setting(
        "WAVRY_GATEWAY_IDLE_CONNECTIONS_PER_ADDRESS",
        IDLE_PER_ADDRESS,
        minimum=1,
        doc="Connections of an address (IPv6: /64) that wait for a request, the rest of one or a"
        " BIND; more close its oldest ones. Trusted proxies are exempt.",
    )
    connects_per_minute: float = setting(
        "WAVRY_GATEWAY_CONNECTS_PER_MINUTE",
        1200.0,
        unit="1/min",
        minimum=0.001,
        doc="New WebSockets per address (IPv6: /64) in the long run.",
    )
    connects_burst: int = setting(
        "WAVRY_GATEWAY_CONNECTS_BURST", 600, minimum=1, doc="New WebSockets per address at once."
    )
    binds_per_minute: float = setting(
        "WAVRY_GATEWAY_BINDS_PER_MINUTE",
        60.0,
        unit="1/min",
        minimum=0.001,
        doc="New WebSockets of one user in the long run, whichever addresses he comes from.",
    )
    binds_burst: int = setting(
        "WAVRY_GATEWAY_BINDS_BURST", 30, minimum=1, doc="New WebSockets of one user at once."
    )
    queue_messages: int = setting(
        "WAVRY_GATEWAY_QUEUE_MESSAGES",
        128,
        minimum=4,
        doc="Messages that wait for one client; one more closes its WebSocket.",
    )
    queue_bytes: int = setting(
        "WAVRY_GATEWAY_QUEUE_BYTES",
        512 * 1024,
        unit="bytes",
        minimum=c.MAX_SIGNALING_FRAME_BYTES,
        doc="Bytes that wait for one client; more close its WebSocket.",
    )
    send_timeout_s: float = setting(
        "WAVRY_GATEWAY_SEND_TIMEOUT_S",
        10.0,
        unit="s",
        minimum=0.05,
        doc="A client that takes nothing for so long is disconnected.",
    )
    heartbeat_s: float = setting(
        "WAVRY_GATEWAY_HEARTBEAT_S",
        20.0,
        unit="s",
        minimum=0.1,
        doc="Interval of WebSocket pings; half of it without a pong ends the connection.",
    )

    master_timeout_s: float = setting(
        "WAVRY_GATEWAY_MASTER_TIMEOUT_S",
        1.8,
        unit="s",
        minimum=0.05,
        maximum=1.9,
        doc="Total time of one call of the master; a user has an answer within 2 s.",
    )

    def __post_init__(self) -> None:
        """Check what a single value cannot show.

        Raises:
            SettingsError: names each variable that does not fit.
        """
        faults = self._listen_faults()
        for variable, check in (
            ("WAVRY_GATEWAY_TRUSTED_PROXIES", lambda: self.trusted_proxy_networks),
            ("WAVRY_GATEWAY_METRICS_NETWORKS", lambda: self.open_metrics_networks),
            ("WAVRY_GATEWAY_MASTER_URL", lambda: _check_url(self.master_url, with_path=True)),
            (
                "WAVRY_GATEWAY_CORS_ORIGINS",
                lambda: _check_origins(self.cors_origins),
            ),
        ):
            try:
                check()
            except ValueError as error:
                faults.append(f"{variable} {error}")
        if not self.allow_http and is_readable_on_the_way(self.master_url):
            faults.append(
                "WAVRY_GATEWAY_MASTER_URL is http:// to another host, so the service token could be"
                " read on the way: use https://, or set WAVRY_GATEWAY_ALLOW_HTTP=1 inside a network"
                " that you trust"
            )
        if self.log_level.lower() not in {"debug", "info", "warning", "error"}:
            faults.append("WAVRY_LOG_LEVEL must be debug, info, warning or error")
        faults += check_access_log("WAVRY_GATEWAY_ACCESS_LOG", self.access_log)
        if faults:
            raise SettingsError("\n".join(faults))

    def _listen_faults(self) -> list[str]:
        try:
            parse_listen_address(self.listen)
        except ValueError as error:
            return [f"WAVRY_GATEWAY_LISTEN {error}"]
        return list(
            listen_faults(
                "GATEWAY",
                self.listen,
                certificate=self.tls_certificate_file,
                key=self.tls_key_file,
                allow_public_bind=self.allow_public_bind,
            )
        )

    def insecure(self) -> list[str]:
        """Name what should not be so in production."""
        found = [
            *wide_networks("WAVRY_GATEWAY_TRUSTED_PROXIES", self.trusted_proxy_networks),
            *wide_networks("WAVRY_GATEWAY_METRICS_NETWORKS", self.open_metrics_networks),
            *plain_origins("WAVRY_GATEWAY_CORS_ORIGINS", self.cors_origins),
        ]
        if is_public(self.listen) and self.tls_certificate_file is None:
            found.append("WAVRY_GATEWAY_LISTEN can be reached by other hosts, without TLS")
        if is_readable_on_the_way(self.master_url):
            found.append("WAVRY_GATEWAY_MASTER_URL is http:// to another host")
        if self.argon2_memory_kib < OWASP_MEMORY_KIB:
            found.append(
                f"WAVRY_GATEWAY_ARGON2_MEMORY_KIB is below {OWASP_MEMORY_KIB}: stolen hashes are"
                " cheap to guess"
            )
        return found

    @property
    def trusted_proxy_networks(self) -> tuple[IpNetwork, ...]:
        """`trusted_proxies`, parsed."""
        return parse_networks(self.trusted_proxies)

    @property
    def open_metrics_networks(self) -> tuple[IpNetwork, ...]:
        """`metrics_networks`, parsed."""
        return parse_networks(self.metrics_networks)

    @property
    def password_cost(self) -> PasswordCost:
        """Argon2id cost."""
        return PasswordCost(self.argon2_passes, self.argon2_memory_kib)

    @property
    def call_limits(self) -> CallLimits:
        """Bounds of open sessions."""
        return CallLimits(self.pending_per_caller, self.pending_per_pair, self.open_per_caller)


def _check_origins(origins: tuple[str, ...]) -> None:
    for origin in origins:
        _check_url(origin, with_path=False)


def _check_url(text: str, *, with_path: bool) -> None:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
        raise ValueError("must be an http:// or https:// URL without a user in it")
    if parts.query or parts.fragment or (parts.path and not with_path):
        raise ValueError("must end after the host and port")
