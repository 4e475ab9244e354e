"""Bodies of /health, /ready and /v1/admin/status, shared by who writes and who reads them.

A reader may be newer than the service: what an older version does not tell has its default.  A
writer gives every field.
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
    """``GET /health`` of gateway and master; `now` is the clock of the process, unix seconds."""

    status: str = ""
    role: str = ""
    version: str = ""
    now: int = 0
    uptime_s: int = 0
    lockdown: bool = False


class MasterHealth(ServiceHealth, frozen=True, kw_only=True):
    """``GET /health`` of the master, which also tells what it knows of the pool."""

    keyset_serial: int = 0
    relays: dict[str, int] = msgspec.field(default_factory=dict)
    relay_mode: str = "on"


class ServiceReady(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /ready`` of gateway and master: 200 where `ready`, else 503 with the reason."""

    ready: bool = False
    reason: str = ""


class GatewayReady(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /ready`` of the gateway: 200 where users can be served.

    Without a master the gateway is ready, for signaling and direct paths work; `master` tells.
    """

    ready: bool = False
    store: str = ""
    master: str = "unknown"
    reason: str = ""


class GatewayStatus(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /v1/admin/status`` of the gateway; `sessions` by state, closed ones left out.

    `master_error` says why the master was not reached, or why its last call failed; it is empty
    again after the next good one.
    """

    version: str = ""
    uptime_s: int = 0
    users: int = 0
    online: int = 0
    websockets: int = 0
    sessions: dict[str, int] = msgspec.field(default_factory=dict)
    store: str = ""
    master: str = ""
    master_url: str = ""
    master_error: str = ""
    lockdown: bool = False


class MasterStatus(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /v1/admin/status`` of the master."""

    role: str = ""
    version: str = ""
    uptime_s: int = 0
    keyset_serial: int = 0
    active_kid: str = ""
    relays: dict[str, int] = msgspec.field(default_factory=dict)
    live_sessions: int = 0
    heartbeat_interval_ms: int = 5000
    relay_mode: str = ""
    lockdown: bool = False


# -- Relay ---------------------------------------------------------------------------------


class RelayEngineHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Which engine forwards."""

    name: str = ""
    pure_python: bool = False


class RelayWorkersHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Worker processes; lists are in their order."""

    wanted: int = 0
    running: int = 0
    pids: tuple[int, ...] = ()
    restarts: dict[str, int] = msgspec.field(default_factory=dict)
    heartbeat_age_ms: tuple[int, ...] = ()


class RelaySessionsHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions that wait for their second peer, active ones, and room."""

    waiting: int = 0
    active: int = 0
    max: int = 0


class RelayUsedLeasesHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Slots of finished sessions that are remembered, and how many at most one by one."""

    remembered: int = 0
    limit: int = 0


class RelayKeysHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of leases, and why newer ones were refused or not fetched."""

    serial: int = 0
    kids: tuple[str, ...] = ()
    refused: str | None = None
    fetch_error: str | None = None


class RelayMasterHealth(msgspec.Struct, frozen=True, kw_only=True):
    """The link to the master; `events` while the event stream stands."""

    state: str = "off"
    error: str | None = None
    events: bool = False


class RelayRevocationsHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Revocations that the relay knows, up to `number` of the master's log."""

    in_force: int = 0
    number: int = 0
    saved: bool = True


class RelayHealth(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /health`` of a relay.  `now` is its clock, unix seconds."""

    status: str = ""
    relay_id: str = ""
    version: str = ""
    pid: int = 0
    now: int = 0
    not_before_skew_s: int = 30
    started_at: int = 0
    uptime_s: int = 0
    upgrades: dict[str, int] = msgspec.field(default_factory=dict)
    engine: RelayEngineHealth = RelayEngineHealth()
    udp: tuple[str, ...] = ()
    workers: RelayWorkersHealth = RelayWorkersHealth()
    sessions: RelaySessionsHealth = RelaySessionsHealth()
    used_leases: RelayUsedLeasesHealth = RelayUsedLeasesHealth()
    draining: tuple[str, ...] = ()
    shedding: tuple[str, ...] = ()
    cookie_gates: int = 0
    blocks: int = 0
    keys: RelayKeysHealth = RelayKeysHealth()
    master: RelayMasterHealth = RelayMasterHealth()
    revocations: RelayRevocationsHealth = RelayRevocationsHealth()


class RelayReady(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``GET /ready`` of a relay: 200 where `ready`, else 503 with reasons and the first of them."""

    ready: bool
    reason: str = ""
    reasons: tuple[str, ...] = ()
