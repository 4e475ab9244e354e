"""Bodies of /health, /ready and /v1/admin/status, shared by who writes and who reads them.

Every field is required: a key that was renamed makes an answer that cannot be read, which the
reader says, and not one that reads as if all were well.
"""

import msgspec

__all__ = [
    "GatewayReady",
    "GatewayStatus",
    "MasterHealth",
    "MasterStatus",
    "RelayEngineHealth",
    "RelayHealth",
    "RelayKeysHealth",
    "RelayMasterHealth",
    "RelayReady",
    "RelayRevocationsHealth",
    "RelaySessionsHealth",
    "RelayUsedLeasesHealth",
    "RelayWorkersHealth",
    "ServiceHealth",
    "ServiceReady",
]


# -- Gateway and master --------------------------------------------------------------------


class ServiceHealth(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /health`` of gateway and master; `now` is the clock of the process, unix seconds.

    `tls` is ``off`` (plain HTTP, a proxy may stand before it), ``ok``, or ``stale``: the files of
    its certificate changed and do not fit, so the old one is in use.
    """

    status: str
    role: str
    version: str
    now: int
    uptime_s: int
    lockdown: bool
    tls: str


class MasterHealth(ServiceHealth, frozen=True, kw_only=True):
    """``GET /health`` of the master, which also tells what it knows of the pool."""

    keyset_serial: int
    relays: dict[str, int]
    relay_mode: str


class ServiceReady(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /ready`` of gateway and master: 200 where `ready`, else 503 with the reason.

    `warning` says why the database may not be the one that was here before; it is empty where all
    is well.
    """

    ready: bool
    reason: str
    warning: str


class GatewayReady(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /ready`` of the gateway: 200 where users can be served.

    Without a master the gateway is ready, for accounts and signaling work; `master` tells.
    """

    ready: bool
    store: str
    master: str
    reason: str
    warning: str


class GatewayStatus(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /v1/admin/status`` of the gateway; `sessions` by state, closed ones left out.

    `master_error` says why the master was not reached, or why its last call failed; it is empty
    again after the next good one.
    """

    version: str
    uptime_s: int
    users: int
    online: int
    websockets: int
    sessions: dict[str, int]
    store: str
    master: str
    master_url: str
    master_error: str
    lockdown: bool


class MasterStatus(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /v1/admin/status`` of the master."""

    role: str
    version: str
    uptime_s: int
    keyset_serial: int
    active_kid: str
    relays: dict[str, int]
    live_sessions: int
    heartbeat_interval_ms: int
    relay_mode: str
    lockdown: bool


# -- Relay ---------------------------------------------------------------------------------


class RelayEngineHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Which engine forwards."""

    name: str
    pure_python: bool


class RelayWorkersHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Worker processes; lists are in their order."""

    wanted: int
    running: int
    pids: tuple[int, ...]
    restarts: dict[str, int]
    heartbeat_age_ms: tuple[int, ...]


class RelaySessionsHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions that wait for their second peer, active ones, and room."""

    waiting: int
    active: int
    max: int


class RelayUsedLeasesHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Slots of finished sessions that are remembered, and how many at most one by one."""

    remembered: int
    limit: int


class RelayKeysHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of leases, and why newer ones were refused or not fetched."""

    serial: int
    kids: tuple[str, ...]
    refused: str | None
    fetch_error: str | None


class RelayMasterHealth(msgspec.Struct, frozen=True, kw_only=True):
    """The link to the master; `events` while the event stream stands."""

    state: str
    error: str | None
    events: bool


class RelayRevocationsHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Revocations that the relay knows, up to `number` of the master's log."""

    in_force: int
    number: int
    saved: bool


class RelayHealth(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /health`` of a relay.  `now` is its clock, unix seconds."""

    status: str
    relay_id: str
    version: str
    pid: int
    now: int
    not_before_skew_s: int
    started_at: int
    uptime_s: int
    upgrades: dict[str, int]
    engine: RelayEngineHealth
    udp: tuple[str, ...]
    workers: RelayWorkersHealth
    sessions: RelaySessionsHealth
    used_leases: RelayUsedLeasesHealth
    draining: tuple[str, ...]
    shedding: tuple[str, ...]
    cookie_gates: int
    blocks: int
    keys: RelayKeysHealth
    master: RelayMasterHealth
    revocations: RelayRevocationsHealth


class RelayReady(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``GET /ready`` of a relay: 200 where `ready`, else 503 with reasons and the first of them.

    A relay that is ready leaves both out.
    """

    ready: bool
    reason: str = ""
    reasons: tuple[str, ...] = ()
