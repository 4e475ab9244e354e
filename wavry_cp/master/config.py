"""Settings of the master."""

from dataclasses import dataclass
from pathlib import Path

from wavry_cp.app.http import parse_networks
from wavry_cp.app.requests import ACCESS_LOG_DOC, check_access_log
from wavry_cp.app.transport.guards import is_public, listen_faults, wide_networks
from wavry_peer.protocol import constants as c
from wavry_peer.service.http_listener import IDLE_PER_ADDRESS
from wavry_peer.service.listen_address import parse_listen_address
from wavry_peer.service.settings import SettingsError, setting

__all__ = ["MasterConfig", "check", "insecure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterConfig:
    """Settings of the master; each field names its environment variable."""

    data_dir: Path = setting(
        "WAVRY_MASTER_DATA_DIR", doc="Directory of the database master.db; made if missing."
    )
    keys_dir: Path = setting(
        "WAVRY_MASTER_KEYS_DIR",
        doc="Directory of the key files, made once by `wavryctl keys init`.",
    )
    service_token_file: Path = setting(
        "WAVRY_MASTER_SERVICE_TOKEN_FILE",
        doc="File (mode 0600) with the bearer token of gateways and managed relay pools.",
    )
    admin_token_file: Path = setting(
        "WAVRY_MASTER_ADMIN_TOKEN_FILE", doc="File (mode 0600) with the bearer token of operators."
    )
    listen: str = setting(
        "WAVRY_MASTER_LISTEN",
        "127.0.0.1:8091",
        doc="Address and port; another than loopback needs TLS.",
    )
    tls_certificate_file: Path | None = setting(
        "WAVRY_MASTER_TLS_CERTIFICATE_FILE",
        None,
        doc="PEM file with the certificate and its chain: then this service speaks TLS itself. Read"
        " again when it changes.",
    )
    tls_key_file: Path | None = setting(
        "WAVRY_MASTER_TLS_KEY_FILE",
        None,
        doc="PEM file (mode 0600) with the key of WAVRY_MASTER_TLS_CERTIFICATE_FILE.",
    )
    allow_public_bind: bool = setting(
        "WAVRY_MASTER_ALLOW_PUBLIC_BIND",
        default=False,
        doc="Allow an address that other hosts can reach, without TLS of its own.",
    )
    heartbeat_interval_ms: int = setting(
        "WAVRY_MASTER_HEARTBEAT_INTERVAL_MS",
        5000,
        doc="How often relays report; one is OFFLINE after three missed reports and a second.",
        unit="ms",
        minimum=100,
        maximum=60_000,
    )
    lease_ttl_s: int = setting(
        "WAVRY_MASTER_LEASE_TTL_S",
        c.LEASE_TTL_S,
        doc="Life of a lease where the gateway asks for none.",
        unit="s",
        minimum=c.LEASE_TTL_MIN_S,
        maximum=c.LEASE_TTL_MAX_S,
    )
    soft_limit_kbps: int = setting(
        "WAVRY_MASTER_SOFT_LIMIT_KBPS",
        50_000,
        doc="Rate above which a relay warns a peer.",
        unit="kbit/s",
        minimum=1,
        maximum=2**32 - 1,
    )
    hard_limit_kbps: int = setting(
        "WAVRY_MASTER_HARD_LIMIT_KBPS",
        100_000,
        doc="Rate above which a relay drops packets of a peer.",
        unit="kbit/s",
        minimum=1,
        maximum=2**32 - 1,
    )
    allowed_relays: tuple[str, ...] = setting(
        "WAVRY_MASTER_ALLOWED_RELAYS",
        (),
        doc="Relay ids that may register without a token of `wavryctl relays enrol`.",
    )
    open_enrolment: bool = setting(
        "WAVRY_MASTER_OPEN_ENROLMENT",
        default=False,
        doc="Let relays register that nobody enrolled: they get a fiftieth of the sessions until"
        " `wavryctl relays approve`. Strangers carry your users' (encrypted) traffic then.",
    )
    private_endpoints: bool = setting(
        "WAVRY_MASTER_PRIVATE_ENDPOINTS",
        default=False,
        doc="Let enrolled relays advertise loopback and private addresses: for one host, or one"
        " network that all peers are in.",
    )
    probe_interval_ms: int = setting(
        "WAVRY_MASTER_PROBE_INTERVAL_MS",
        60_000,
        doc="How often the master sends datagrams of its own through each endpoint of each relay,"
        " which it did once before the relay is ACTIVE; 0 takes relays at their word.",
        unit="ms",
        minimum=0,
        maximum=600_000,
    )
    register_per_minute: int = setting(
        "WAVRY_MASTER_REGISTER_PER_MINUTE",
        60,
        doc="Registration calls allowed per IPv4 address or IPv6 /64.",
        unit="calls/min",
        minimum=1,
        maximum=1_000_000,
    )
    admin_failures_per_minute: int = setting(
        "WAVRY_MASTER_ADMIN_FAILURES_PER_MINUTE",
        30,
        doc="Wrong admin tokens answered per IPv4 address or IPv6 /64; more are told to wait.",
        unit="1/min",
        minimum=1,
        maximum=1_000_000,
    )
    key_lifetime_days: int = setting(
        "WAVRY_MASTER_KEY_LIFETIME_DAYS",
        90,
        doc="Planned life of a signing key, for metrics and alerts: it signs on, so rotate before.",
        unit="days",
        minimum=1,
        maximum=3650,
    )
    trusted_proxies: tuple[str, ...] = setting(
        "WAVRY_MASTER_TRUSTED_PROXIES",
        (),
        doc="Networks (CIDR) whose X-Forwarded-For is believed.",
    )
    idle_connections_per_address: int = setting(
        "WAVRY_MASTER_IDLE_CONNECTIONS_PER_ADDRESS",
        IDLE_PER_ADDRESS,
        minimum=1,
        doc="Connections of an address (IPv6: /64) that wait for a request or the rest of one; more"
        " close its oldest ones. Trusted proxies are exempt.",
    )
    metrics_networks: tuple[str, ...] = setting(
        "WAVRY_MASTER_METRICS_NETWORKS",
        ("127.0.0.0/8", "::1/128"),
        doc="Networks (CIDR) that may read /metrics; the admin token may from anywhere.",
    )
    access_log: str = setting("WAVRY_MASTER_ACCESS_LOG", "off", doc=ACCESS_LOG_DOC)
    settings_file: Path | None = setting(
        "WAVRY_MASTER_SETTINGS_FILE",
        None,
        doc="File with any of these settings, TOML (`*.toml`) or NAME=value lines; the command line"
        " and the environment win over it.",
    )
    log_level: str = setting("WAVRY_LOG_LEVEL", "info", doc="debug, info, warning or error.")


def check(config: MasterConfig) -> None:
    """Check what one field alone cannot tell.

    Raises:
        SettingsError: one line for each fault.
    """
    faults = []
    try:
        parse_listen_address(config.listen)
    except ValueError as error:
        faults.append(f"WAVRY_MASTER_LISTEN {error}")
    else:
        faults += listen_faults(
            "MASTER",
            config.listen,
            certificate=config.tls_certificate_file,
            key=config.tls_key_file,
            allow_public_bind=config.allow_public_bind,
        )
    for variable, networks in (
        ("WAVRY_MASTER_TRUSTED_PROXIES", config.trusted_proxies),
        ("WAVRY_MASTER_METRICS_NETWORKS", config.metrics_networks),
    ):
        try:
            parse_networks(networks)
        except ValueError:
            faults.append(f"{variable} must be a list of networks like 10.0.0.0/8")
    if config.soft_limit_kbps > config.hard_limit_kbps:
        faults.append("WAVRY_MASTER_SOFT_LIMIT_KBPS must not be above WAVRY_MASTER_HARD_LIMIT_KBPS")
    if config.log_level.lower() not in ("debug", "info", "warning", "error"):
        faults.append("WAVRY_LOG_LEVEL must be debug, info, warning or error")
    faults += check_access_log("WAVRY_MASTER_ACCESS_LOG", config.access_log)
    if faults:
        raise SettingsError("\n".join(faults))


def insecure(config: MasterConfig) -> list[str]:
    """Name what should not be so in production."""
    found = [
        *wide_networks("WAVRY_MASTER_TRUSTED_PROXIES", parse_networks(config.trusted_proxies)),
        *wide_networks("WAVRY_MASTER_METRICS_NETWORKS", parse_networks(config.metrics_networks)),
    ]
    if config.open_enrolment:
        found.append("WAVRY_MASTER_OPEN_ENROLMENT lets relays of strangers register")
    if is_public(config.listen) and config.tls_certificate_file is None:
        found.append("WAVRY_MASTER_LISTEN can be reached by other hosts, without TLS")
    return found
