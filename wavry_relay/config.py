"""Settings of the relay: one frozen dataclass, validated once."""

import dataclasses
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from wavry_peer.protocol import base64url
from wavry_peer.service.http_client import is_readable_on_the_way
from wavry_peer.service.listen_address import why_unfit
from wavry_peer.service.settings import SettingsError, parse_address, setting
from wavry_relay.cpus import usable_cpus
from wavry_relay.shm.control import Limits
from wavry_relay.shm.layout import MAX_SESSIONS, MAX_WORKERS

__all__ = ["MAX_LISTEN_ADDRESSES", "ListenAddress", "RelayConfig"]

MAX_LISTEN_ADDRESSES = 8
_KBPS_MAX = 2**32 - 1
_BUFFER_MAX_BYTES = (2**31 - 1) // 2
"""The kernel keeps twice the number in a signed 32-bit word."""
_BURST_MAX_MS = 10_000
"""More than that is no burst; and the soft limit's word counts 32 bits of microseconds."""
_COUNT_MAX = 1_000_000_000
_BUSY_POLL_MAX_US = 50_000
"""A round of the worker: from here on it never sleeps."""


class ListenAddress(NamedTuple):
    """An IP address without brackets, and a port (0 = any free one)."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this host can reach it."""
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for every address of the host, and so is none to tell others."""
        return ipaddress.ip_address(self.host).is_unspecified

    @property
    def is_link_local(self) -> bool:
        """Whether it means something on one link only (IPv6: with the name of an interface)."""
        return ":" in self.host and ipaddress.ip_address(self.host).is_link_local


def _is_service_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None


def _parse_ip(text: str) -> ListenAddress:
    host, port = parse_address(text)
    return ListenAddress(str(ipaddress.ip_address(host)), port)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelayConfig:
    """Settings of `wavry-relay run`.

    Raises:
        SettingsError: two settings do not fit together, or a guard is not lifted.
    """

    listen: tuple[str, ...] = setting(
        "WAVRY_RELAY_LISTEN",
        ("127.0.0.1:4500",),
        doc="UDP addresses to serve, IPv4 and [IPv6]; port 0 takes any free one.",
    )
    workers: int = setting(
        "WAVRY_RELAY_WORKERS",
        0,
        doc="Worker processes; 0 means one for each CPU that affinity and cgroup quota allow.",
        minimum=0,
        maximum=MAX_WORKERS,
    )
    state_dir: Path = setting(
        "WAVRY_RELAY_STATE_DIR",
        Path("/var/lib/wavry-relay"),
        doc="Directory of identity.key, keyset.json and the control socket; made with mode 0700.",
    )
    master_url: str | None = setting(
        "WAVRY_RELAY_MASTER_URL",
        None,
        doc="Base URL of the master; without it the relay uses the key set in its state directory.",
    )
    root_key: str | None = setting(
        "WAVRY_RELAY_ROOT_KEY",
        None,
        doc="Pinned root public key (base64url, from `wavryctl keys`); every key set must be signed"
        " by it.",
    )
    root_key_file: Path | None = setting(
        "WAVRY_RELAY_ROOT_KEY_FILE",
        None,
        doc="File that holds the pinned root public key, instead of WAVRY_RELAY_ROOT_KEY.",
    )
    enrolment_token_file: Path | None = setting(
        "WAVRY_RELAY_ENROLMENT_TOKEN_FILE",
        None,
        doc="File (mode 0600) with the token of `wavryctl relays enrol`, or the service token of a"
        " managed pool; needed until the first registration.",
    )
    name: str | None = setting(
        "WAVRY_RELAY_NAME",
        None,
        doc="Name that a relay of a pool or of the master's list asks for when it comes in; a token"
        " of `wavryctl relays enrol` has the name in it.",
    )
    ops_listen: str = setting(
        "WAVRY_RELAY_OPS_LISTEN",
        "127.0.0.1:4501",
        doc="Address of /health, /ready and /metrics.",
    )
    advertise: tuple[str, ...] = setting(
        "WAVRY_RELAY_ADVERTISE",
        (),
        doc="Addresses told to the master and by it to peers; default: the listen addresses.",
    )
    region: str | None = setting(
        "WAVRY_RELAY_REGION", None, doc="Region told to the master, e.g. eu-central."
    )
    max_sessions: int = setting(
        "WAVRY_RELAY_MAX_SESSIONS",
        10_000,
        doc="Sessions at a time; each takes about 1030 bytes of shared memory.",
        minimum=1,
        maximum=MAX_SESSIONS,
    )
    max_bitrate_kbps: int = setting(
        "WAVRY_RELAY_MAX_BITRATE_KBPS",
        1_000_000,
        doc="Limit of everything the relay forwards; 0 means none.",
        unit="kbit/s",
        minimum=0,
        maximum=_KBPS_MAX,
        live=True,
    )
    max_pps: int = setting(
        "WAVRY_RELAY_MAX_PPS",
        0,
        doc="Limit of the datagrams the relay forwards; 0 means none.",
        unit="packets/s",
        minimum=0,
        maximum=_KBPS_MAX,
        live=True,
    )
    session_kbps: int = setting(
        "WAVRY_RELAY_SESSION_KBPS",
        0,
        doc="Hard limit of a session, both directions together; 0 means the hard limits of its two"
        " leases alone.",
        unit="kbit/s",
        minimum=0,
        maximum=_KBPS_MAX,
        live=True,
    )
    ip_per_s: int = setting(
        "WAVRY_RELAY_IP_PER_S",
        50,
        doc="Control packets (leases, STUN) from an IPv4 address or IPv6 /64, or a live slot.",
        unit="packets/s",
        minimum=1,
        maximum=1_000_000,
        live=True,
    )
    ip_burst: int = setting(
        "WAVRY_RELAY_IP_BURST",
        100,
        doc="Control packets from one address that may come at once.",
        unit="packets",
        minimum=1,
        maximum=1_000_000,
        live=True,
    )
    network_per_s: int = setting(
        "WAVRY_RELAY_NETWORK_PER_S",
        0,
        doc="Control packets from one IPv4 /24 or IPv6 /48 together; 0 means 20 times"
        " WAVRY_RELAY_IP_PER_S.",
        unit="packets/s",
        minimum=0,
        maximum=20_000_000,
        live=True,
    )
    network_burst: int = setting(
        "WAVRY_RELAY_NETWORK_BURST",
        0,
        doc="Control packets from one such network that may come at once; 0 means 20 times"
        " WAVRY_RELAY_IP_BURST.",
        unit="packets",
        minimum=0,
        maximum=20_000_000,
        live=True,
    )
    identity_per_s: int = setting(
        "WAVRY_RELAY_IDENTITY_PER_S",
        5,
        doc="Accepted leases of one identity.",
        unit="leases/s",
        minimum=1,
        maximum=1_000_000,
        live=True,
    )
    identity_burst: int = setting(
        "WAVRY_RELAY_IDENTITY_BURST",
        20,
        doc="Leases of one identity that may come at once.",
        unit="leases",
        minimum=1,
        maximum=1_000_000,
        live=True,
    )
    peer_burst_ms: int = setting(
        "WAVRY_RELAY_PEER_BURST_MS",
        250,
        doc="How far a peer may be ahead of the soft and the hard limit of its lease: 250 ms let a"
        " key frame through at once.",
        unit="ms",
        minimum=1,
        maximum=_BURST_MAX_MS,
        live=True,
    )
    session_burst_ms: int = setting(
        "WAVRY_RELAY_SESSION_BURST_MS",
        250,
        doc="How far a session may be ahead of WAVRY_RELAY_SESSION_KBPS.",
        unit="ms",
        minimum=1,
        maximum=_BURST_MAX_MS,
        live=True,
    )
    global_burst_ms: int = setting(
        "WAVRY_RELAY_GLOBAL_BURST_MS",
        100,
        doc="How far the whole relay may be ahead of WAVRY_RELAY_MAX_BITRATE_KBPS and"
        " WAVRY_RELAY_MAX_PPS; many streams together are smoother than one.",
        unit="ms",
        minimum=1,
        maximum=_BURST_MAX_MS,
        live=True,
    )
    shed_at_pct: int = setting(
        "WAVRY_RELAY_SHED_AT_PCT",
        95,
        doc="Share of WAVRY_RELAY_MAX_SESSIONS, and of WAVRY_RELAY_MAX_BITRATE_KBPS where that is"
        " set, from which on new sessions get SESSION_FULL, until the load is a tenth below it;"
        " 100 takes sessions until there is no room.",
        unit="%",
        minimum=1,
        maximum=100,
        live=True,
    )
    cookie_at_verifies_per_s: int = setting(
        "WAVRY_RELAY_COOKIE_AT_VERIFIES_PER_S",
        1000,
        doc="Leases that come to one worker from which on each must bring the cookie of its path"
        " before its signature is checked; 0 always asks for it (one round trip"
        " more).",
        unit="leases/s",
        minimum=0,
        maximum=_COUNT_MAX,
        live=True,
    )
    block_after: int = setting(
        "WAVRY_RELAY_BLOCK_AFTER",
        100,
        doc="Bad leases with the cookie of their path after which a host (IPv6: /64) is blocked;"
        " one is forgiven each second. 0 blocks nobody.",
        unit="leases",
        minimum=0,
        maximum=1_000_000,
        live=True,
    )
    block_s: int = setting(
        "WAVRY_RELAY_BLOCK_S",
        600,
        doc="How long an address stays blocked.",
        unit="s",
        minimum=1,
        maximum=86_400,
        live=True,
    )
    not_before_skew_s: int = setting(
        "WAVRY_RELAY_NBF_SKEW_S",
        30,
        doc="How far ahead a lease's nbf may be (clock difference); exp has no tolerance.",
        unit="s",
        minimum=0,
        maximum=300,
        live=True,
    )
    socket_buffer_bytes: int = setting(
        "WAVRY_RELAY_SOCKET_BUFFER_BYTES",
        16 * 1024 * 1024,
        doc="Receive and send buffer of each worker's socket: what waits in it while a worker is"
        " replaced is not lost. The kernel's net.core.rmem_max and wmem_max bound it, unless the"
        " relay has CAP_NET_ADMIN.",
        unit="bytes",
        minimum=4096,
        maximum=_BUFFER_MAX_BYTES,
        live=True,
    )
    busy_poll_us: int = setting(
        "WAVRY_RELAY_BUSY_POLL_US",
        0,
        doc="How long an idle worker asks its sockets again and again before it sleeps; it needs"
        " a core of its own for each worker. 0 sleeps at once; the pure engine always does.",
        unit="µs",
        minimum=0,
        maximum=_BUSY_POLL_MAX_US,
    )
    pin_workers: bool = setting(
        "WAVRY_RELAY_PIN_WORKERS",
        default=False,
        doc="Keep each worker on one CPU of those that the relay may use, in turn.",
    )
    hang_timeout_s: float = setting(
        "WAVRY_RELAY_HANG_TIMEOUT_S",
        5.0,
        doc="A worker whose packet loop is silent this long is aborted and replaced.",
        unit="s",
        minimum=0.5,
        maximum=600,
        live=True,
    )
    event_poll_s: float = setting(
        "WAVRY_RELAY_EVENT_POLL_S",
        30.0,
        doc="How often revocations are polled, as the net under the master's event stream.",
        unit="s",
        minimum=0.1,
        maximum=300,
    )
    drain_timeout_s: float = setting(
        "WAVRY_RELAY_DRAIN_TIMEOUT_S",
        30.0,
        doc="How long SIGTERM waits for live sessions to move or end before the relay stops; "
        "a second signal stops it at once.",
        unit="s",
        minimum=0,
        maximum=86_400,
        live=True,
    )
    engine: str = setting(
        "WAVRY_RELAY_ENGINE", "auto", doc="Packet engine: auto, reference or native."
    )
    allow_public_bind: bool = setting(
        "WAVRY_RELAY_ALLOW_PUBLIC_BIND",
        default=False,
        doc="Allow listen addresses that other hosts can reach.",
    )
    allow_http: bool = setting(
        "WAVRY_RELAY_ALLOW_HTTP",
        default=False,
        doc="Let WAVRY_RELAY_MASTER_URL be http:// to another host: only inside a network that you"
        " trust.",
    )
    allow_insecure_dev: bool = setting(
        "WAVRY_RELAY_ALLOW_INSECURE_DEV",
        default=False,
        doc="Start without a pinned root key and trust the first key set the master gives."
        " Never in production.",
    )
    settings_file: Path | None = setting(
        "WAVRY_RELAY_SETTINGS_FILE",
        None,
        doc="File with any of these settings, TOML (`*.toml`) or NAME=value lines; the command line"
        " and the environment win over it. Read again at a reload.",
    )
    log_level: str = setting(
        "WAVRY_LOG_LEVEL", "info", doc="debug, info, warning or error.", live=True
    )

    def __post_init__(self) -> None:
        faults = [*self._address_faults(), *self._other_faults()]
        if faults:
            raise SettingsError("\n".join(faults))

    def _address_faults(self) -> list[str]:
        faults = []
        for variable, texts in (
            ("WAVRY_RELAY_LISTEN", self.listen),
            ("WAVRY_RELAY_ADVERTISE", self.advertise),
            ("WAVRY_RELAY_OPS_LISTEN", (self.ops_listen,)),
        ):
            for text in texts:
                try:
                    address = _parse_ip(text)
                except ValueError:
                    faults.append(f"{variable} must have IP:PORT or [IPV6]:PORT, not a host name")
                    continue
                if why := why_unfit(*address):
                    faults.append(f"{variable} {why}")
        if not 1 <= len(self.listen) <= MAX_LISTEN_ADDRESSES:
            faults.append(f"WAVRY_RELAY_LISTEN must name 1 to {MAX_LISTEN_ADDRESSES} addresses")
        return faults or self.guard(self.listen_addresses)

    def guard(
        self, listen: Sequence[ListenAddress], source: str = "WAVRY_RELAY_LISTEN"
    ) -> list[str]:
        """Tell why the relay must not serve these addresses; empty if it may.

        Args:
            listen: the settings' own, or those of passed sockets.
            source: where they come from, for the message.
        """
        faults = []
        if not self.allow_public_bind and not all(address.is_loopback for address in listen):
            faults.append(
                f"{source} has an address that other hosts can reach; if that is meant,"
                " set WAVRY_RELAY_ALLOW_PUBLIC_BIND=1"
            )
        told = [_parse_ip(text) for text in self.advertise]
        if any(address.is_wildcard or not address.port for address in told):
            faults.append("WAVRY_RELAY_ADVERTISE must not have a wildcard address or port 0")
        if any(address.is_link_local for address in told):
            faults.append("WAVRY_RELAY_ADVERTISE must not have a link-local address")
        if self.master_url and not told:
            for kind, has in (
                ("wildcard", any(address.is_wildcard for address in listen)),
                ("link-local", any(address.is_link_local for address in listen)),
            ):
                if has:
                    faults.append(
                        f"WAVRY_RELAY_ADVERTISE must be set: {source} has a {kind} address,"
                        " which peers cannot be told"
                    )
        return faults

    def _other_faults(self) -> list[str]:
        faults = []
        if self.root_key and self.root_key_file:
            faults.append("set WAVRY_RELAY_ROOT_KEY or WAVRY_RELAY_ROOT_KEY_FILE, not both")
        if not self.root_key and not self.root_key_file and not self.allow_insecure_dev:
            faults.append(
                "WAVRY_RELAY_ROOT_KEY must be set: without a pinned root key anybody who answers"
                " for the master could sign leases (for a test on one's own machine:"
                " WAVRY_RELAY_ALLOW_INSECURE_DEV=1)"
            )
        if self.engine not in ("auto", "reference", "native"):
            faults.append("WAVRY_RELAY_ENGINE must be auto, reference or native")
        if self.log_level.lower() not in ("debug", "info", "warning", "error"):
            faults.append("WAVRY_LOG_LEVEL must be debug, info, warning or error")
        if self.master_url is not None:
            if not _is_service_url(self.master_url):
                faults.append(
                    "WAVRY_RELAY_MASTER_URL must be an http:// or https:// URL without a user in it"
                )
            elif not self.allow_http and is_readable_on_the_way(self.master_url):
                faults.append(
                    "WAVRY_RELAY_MASTER_URL is http:// to another host, so the relay's token could"
                    " be read on the way: use https://, or set WAVRY_RELAY_ALLOW_HTTP=1 inside a"
                    " network that you trust"
                )
        return faults

    def insecure(self) -> list[str]:
        """Name what should not be so in production."""
        found = []
        if self.allow_insecure_dev:
            found.append("WAVRY_RELAY_ALLOW_INSECURE_DEV trusts the first key set that it is given")
        if self.master_url and is_readable_on_the_way(self.master_url):
            found.append("WAVRY_RELAY_MASTER_URL is http:// to another host")
        return found

    @property
    def listen_addresses(self) -> tuple[ListenAddress, ...]:
        """`listen`, parsed."""
        return tuple(_parse_ip(text) for text in self.listen)

    @property
    def ops_address(self) -> ListenAddress:
        """`ops_listen`, parsed."""
        return _parse_ip(self.ops_listen)

    @property
    def worker_count(self) -> int:
        """`workers`, or the number of cores this process may use."""
        return self.workers or min(usable_cpus(), MAX_WORKERS)

    @property
    def limits(self) -> Limits:
        """Limits for the control block."""
        return Limits(
            skew_s=self.not_before_skew_s,
            global_kbps=self.max_bitrate_kbps,
            global_pps=self.max_pps,
            session_kbps=self.session_kbps,
            ip_per_s=self.ip_per_s,
            ip_burst=self.ip_burst,
            identity_per_s=self.identity_per_s,
            identity_burst=self.identity_burst,
            network_per_s=self.network_per_s,
            network_burst=self.network_burst,
            peer_burst_ms=self.peer_burst_ms,
            session_burst_ms=self.session_burst_ms,
            global_burst_ms=self.global_burst_ms,
            cookie_at_per_s=self.cookie_at_verifies_per_s,
            block_after=self.block_after,
            block_s=self.block_s,
        )

    def trusted_root(self) -> bytes | None:
        """Return the pinned root public key (32 bytes), None in insecure development mode.

        Raises:
            SettingsError: the key or its file does not fit.
        """
        text, source = self.root_key, "WAVRY_RELAY_ROOT_KEY"
        if self.root_key_file is not None:
            source = f"WAVRY_RELAY_ROOT_KEY_FILE ({self.root_key_file})"
            try:
                text = self.root_key_file.read_text(encoding="ascii")
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"{source} cannot be read: {error}") from error
        if text is None:
            return None
        try:
            return base64url.decode(text.strip(), size=32)
        except ValueError as error:
            raise SettingsError(f"{source} is {error}; it must be the root public key") from error
