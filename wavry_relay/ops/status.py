"""The relay seen from outside: what /health, /ready, /metrics and heartbeats tell.

One object reads the shared memory, the worker pool, the key ring and the master link; the surfaces
only format what it says.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from wavry_peer.protocol.constants import RejectReason
from wavry_peer.protocol.errors import LocalError
from wavry_peer.protocol.http import api
from wavry_peer.service.clock import Clock
from wavry_relay.master.event_link import EventLink
from wavry_relay.master.key_ring import KeyRing
from wavry_relay.master.link import MASTER_STATES, MasterLink, RelayLoad
from wavry_relay.master.revocations import RelayRevocations
from wavry_relay.shm.blocks import Block, Blocks
from wavry_relay.shm.control import ControlBlock, Drain, EngineKind, Shedding
from wavry_relay.shm.counters import totals
from wavry_relay.shm.segment import Segment
from wavry_relay.shm.sessions import SessionTable
from wavry_relay.shm.tags import Tags
from wavry_relay.shm.used_leases import UsedLeases
from wavry_relay.supervisor.pool import WorkerPool
from wavry_relay.udp.sockets import ReuseportGroup
from wavry_relay.upgrade.messages import Counts

from .metrics import Sample

__all__ = ["RELOAD_OUTCOMES", "RelayStatus"]

RELOAD_OUTCOMES: Final = ("applied", "partial", "unchanged", "failed")
"""All new values are in force; some wait for a restart; there are none; the settings are wrong."""

_LEASE_COUNTERS: Final = {
    "lease_presented": "leases_presented",
    "lease_accepted": "leases_accepted",
    "lease_reproved": "leases_reproved",
    "lease_repeated": "leases_repeated",
    "lease_renewed": "leases_renewed",
    "lease_released": "leases_released",
    "nat_rebind": "nat_rebinds",
    "received_packets": "packets_received",
    "received_bytes": "bytes_received",
    "forwarded_packets": "packets_forwarded",
    "forwarded_bytes": "bytes_forwarded",
    "session_created": "sessions_created",
    "session_activated": "sessions_activated",
}
"""Counters in shared memory whose metric has another name."""

_BY_LABEL: Final = {
    "drop_": "packets_dropped",
    "dropped_bytes_": "bytes_dropped",
    "reject_": "lease_rejects",
    "session_closed_": "sessions_closed",
    "sent_": "answers_sent",
}
"""Counters that are one metric with a label, by prefix."""

_LAYERS: Final = {
    "host": ("limited_host", "limited_bytes_host"),
    "network": ("limited_network", "limited_bytes_network"),
    "identity": ("limited_identity", "limited_bytes_identity"),
    "soft": ("soft_limit_packets", "soft_limit_bytes"),
    "peer": ("drop_peer_rate", "dropped_bytes_peer_rate"),
    "session": ("drop_session_rate", "dropped_bytes_session_rate"),
    "global": ("drop_global_rate", "dropped_bytes_global_rate"),
}
"""Layers of limits, from the single address to the whole relay, and what counts their datagrams
and bytes."""

_REASONS_NOT_READY: Final = (
    "stopping", "draining", "workers_missing", "no_keys", "master_registering", "master_failing",
)  # fmt: skip

_LOSSES: Final = ("drop_send_blocked", "drop_send_failed", "drop_lock_busy", "drop_global_rate")
"""What the relay itself loses; limits of a lease and bad packets are the sender's."""

_UPGRADE_RESULTS: Final = ("done", "failed")

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class RelayStatus:
    """Reads the state of a running relay, and drains it."""

    relay_id: str
    version: str
    max_bitrate_kbps: int
    segment: Segment
    groups: list[ReuseportGroup]
    pool: WorkerPool
    keyring: KeyRing
    clock: Clock
    revocations: RelayRevocations
    link: MasterLink | None = None
    events: EventLink | None = None
    stopping: bool = False
    reload: Callable[[], dict[str, Any]] | None = None
    reloads: Counter[str] = field(default_factory=Counter)
    upgrades: Counter[str] = field(default_factory=Counter)
    """Hot upgrades by result, ``done`` or ``failed``; handed on to the successor."""
    _started_ms: int = field(init=False)
    _started_ns: int = field(init=False)
    _control: ControlBlock = field(init=False)
    _table: SessionTable = field(init=False)
    _used: UsedLeases = field(init=False)
    _blocks: Blocks = field(init=False)
    _last: tuple[int, dict[str, int]] = field(init=False)

    def __post_init__(self) -> None:
        self._started_ns, self._started_ms = self.clock.now()
        self._control = ControlBlock(self.segment)
        self._table = SessionTable(self.segment, Tags(self.segment))
        self._used = UsedLeases(self.segment)
        self._blocks = Blocks(self.segment)
        self._last = (self._started_ns, totals(self.segment))

    # -- Drain -----------------------------------------------------------------------------------

    @property
    def drain(self) -> Drain:
        """Who asked to take no new sessions."""
        return Drain(self._control.drain)

    def set_drain(self, bit: Drain, *, drain: bool) -> None:
        """Set or clear one of the reasons to drain."""
        before = self.drain
        after = before | bit if drain else before & ~bit
        if after != before:
            self._control.drain = int(after)
            _log.info("drain_changed", draining=bool(after), by=bit.name)
            if self.link is not None:
                self.link.hasten()

    def drain_by_master(self, *, drain: bool) -> None:
        """Order of the master; `Orders.drain_by_master`."""
        self.set_drain(Drain.MASTER, drain=drain)

    def clear_blocks_by_master(self, subnet: str | None) -> None:
        """Order of the master; `Orders.clear_blocks_by_master`."""
        try:
            self.clear_blocks(subnet)
        except LocalError as error:
            _log.warning(
                "blocks_not_cleared",
                cause=str(error),
                next_step="name a subnet as `wavryctl blocks list` shows it",
            )

    def command(self, name: str, subnet: str | None = None) -> dict[str, Any]:
        """Execute a command of the control socket.

        Args:
            name: of the command.
            subnet: for ``clear_blocks``; None lifts all.

        Raises:
            LocalError: unknown command.
        """
        if name == "reload":
            if self.reload is None:
                raise LocalError("the relay is still starting; try again")
            return self.reload()
        if name == "blocks":
            return {"blocks": self.blocks()}
        if name == "clear_blocks":
            return {"cleared": self.clear_blocks(subnet)}
        if name in ("drain", "undrain"):
            self.set_drain(Drain.LOCAL, drain=name == "drain")
        elif name != "status":
            raise LocalError(
                "unknown command; use status, drain, undrain, reload, blocks,"
                " clear_blocks or upgrade"
            )
        return self.health()

    # -- Blocks ----------------------------------------------------------------------------------

    def _live_blocks(self) -> list[Block]:
        return list(self._blocks.live(self.clock.now().wall_ms))

    def blocks(self) -> list[dict[str, Any]]:
        """Blocked networks, those that last longest first.  Times are unix seconds."""
        return [
            {
                "subnet": block.subnet,
                "since": block.since_ms // 1000,
                "until": -(-block.until_ms // 1000),
                "reason": RejectReason(block.reason).name.lower(),
            }
            for block in sorted(self._live_blocks(), key=lambda block: -block.until_ms)
        ]

    def clear_blocks(self, subnet: str | None) -> int:
        """Lift the block of a subnet, or all; how many there were.

        Raises:
            LocalError: no subnet.
        """
        try:
            cleared = self._blocks.clear(subnet, self.clock.now().wall_ms)
        except ValueError as error:
            raise LocalError(f"{subnet!r} is no subnet; `blocks` shows those there are") from error
        _log.info("blocks_cleared", count=cleared, all=subnet is None)
        return cleared

    # -- Hot upgrade -----------------------------------------------------------------------------

    def counts(self) -> Counts:
        """What a successor must go on counting from."""
        return Counts(
            upgrades=dict(self.upgrades),
            restarts=dict(self.pool.restarts),
            registrations=dict(self.link.registrations) if self.link else {},
            heartbeats=dict(self.link.heartbeats) if self.link else {},
        )

    def go_on_from(self, counts: Counts) -> None:
        """Add a predecessor's counts; called once, when the link is there if there is to be one."""
        self.upgrades.update(counts.upgrades)
        self.pool.restarts.update(counts.restarts)
        if self.link is not None:
            self.link.registrations.update(counts.registrations)
            self.link.heartbeats.update(counts.heartbeats)

    # -- Surfaces --------------------------------------------------------------------------------

    @property
    def engine_name(self) -> str:
        """``reference`` or ``native``."""
        return EngineKind(self._control.engine).name.lower()

    @property
    def summary(self) -> str:
        """One line for the service manager."""
        if self.stopping:
            return f"Stopping, {self.session_count} sessions left"
        state = "Draining" if self.drain else "Serving"
        where = ", ".join(group.endpoint for group in self.groups)
        return f"{state} {where} with {self.pool.running()} workers"

    @property
    def session_count(self) -> int:
        """Live sessions."""
        return sum(self._table.count_states())

    def health(self) -> dict[str, Any]:
        """Body of /health."""
        waiting, active = self._table.count_states()
        now_ns, now_ms = self.clock.now()
        return {
            "status": "ok",
            "relay_id": self.relay_id,
            "version": self.version,
            "pid": os.getpid(),
            "now": now_ms // 1000,
            "not_before_skew_s": self._control.skew_s,
            "started_at": self._started_ms // 1000,
            "uptime_s": (now_ns - self._started_ns) // 1_000_000_000,
            "upgrades": {result: self.upgrades[result] for result in _UPGRADE_RESULTS},
            "engine": {"name": self.engine_name, "pure_python": self.engine_name == "reference"},
            "udp": [group.endpoint for group in self.groups],
            "workers": {
                "wanted": self.pool.count,
                "running": self.pool.running(),
                "pids": self.pool.pids(),
                "restarts": dict(self.pool.restarts),
                "heartbeat_age_ms": [int(age * 1000) for age in self.pool.heartbeat_ages_s()],
            },
            "sessions": {
                "waiting": waiting,
                "active": active,
                "max": self.segment.geometry.max_sessions,
            },
            "draining": self._drain_names(),
            "shedding": _names(Shedding(self._control.shedding)),
            "cookie_gates": self.pool.cookie_gates(),
            "blocks": len(self._live_blocks()),
            "keys": {
                "serial": self.keyring.serial,
                "kids": list(self.keyring.key_ids),
                "refused": self.keyring.refused,
                "fetch_error": self.link.keys_error if self.link else None,
            },
            "master": {
                "state": self.link.state if self.link else "off",
                "error": self.link.last_error if self.link else None,
                "events": self.events.connected if self.events else False,
            },
            "revocations": {
                "in_force": len(self.revocations),
                "number": self.revocations.number,
                "saved": not (self.events and self.events.unsaved),
            },
        }

    def _drain_names(self) -> list[str]:
        return _names(self.drain)

    def not_ready(self) -> list[str]:
        """Why the relay should get no new sessions; empty if it is ready."""
        reasons = []
        if self.stopping:
            reasons.append("stopping")
        if self.drain:
            reasons.append("draining")
        if self.pool.running() < self.pool.count:
            reasons.append("workers_missing")
        if not self.keyring.key_ids:
            reasons.append("no_keys")
        if self.link is not None and self.link.state != "registered":
            reasons.append(f"master_{self.link.state}")
        return reasons

    def measure_load(self) -> RelayLoad:
        """Load since the last call; `Orders.measure_load`.

        A relay that sheds or lacks workers says 100 %: the master gives it only what no other
        relay takes.
        """
        now_ns = self.clock.now().mono_ns
        counts = totals(self.segment)
        last_ns, before = self._last
        self._last = now_ns, counts
        elapsed_ms = max(1, (now_ns - last_ns) // 1_000_000)
        delta = {name: counts[name] - before[name] for name in counts}
        in_kbps = delta["received_bytes"] * 8 // elapsed_ms
        out_kbps = delta["forwarded_bytes"] * 8 // elapsed_ms
        lost = sum(delta[name] for name in _LOSSES)
        passed = delta["forwarded_packets"] + lost
        sessions = self.session_count
        shares = [sessions / self.segment.geometry.max_sessions]
        if self.max_bitrate_kbps:
            shares.append(out_kbps / self.max_bitrate_kbps)
        if self._control.shedding or self.pool.running() < self.pool.count:
            shares.append(1.0)
        return RelayLoad(
            load_pct=round(min(100.0, 100 * max(shares)), 2),
            active_sessions=sessions,
            bandwidth_in_kbps=in_kbps,
            bandwidth_out_kbps=out_kbps,
            packet_loss_pct=round(100 * lost / passed, 3) if passed else 0.0,
            draining=bool(self.drain),
            blocks=tuple(
                api.BlockedNetwork(**block) for block in self.blocks()[: api.MAX_BLOCKS_TOLD]
            ),
        )

    # -- Metrics ---------------------------------------------------------------------------------

    def samples(self) -> Iterator[Sample]:
        """Values of the catalogue, `wavry_peer.service.metrics.relay`."""
        yield from self._counter_samples()
        yield from self._table_samples()
        yield from self._process_samples()
        yield from self._master_samples()
        yield from self._revocation_samples()

    def _limit_samples(self, counts: dict[str, int]) -> Iterator[Sample]:
        for layer, (datagrams, size) in _LAYERS.items():
            yield Sample("limited", counts[datagrams], (layer,))
            yield Sample("limited_bytes", counts[size], (layer,))
        shedding = Shedding(self._control.shedding)
        for cause in Shedding:
            yield Sample("shedding", bool(shedding & cause), ((cause.name or "").lower(),))
        yield Sample("cookie_gate_workers", self.pool.cookie_gates())
        yield Sample("blocked_networks", len(self._live_blocks()))

    def _counter_samples(self) -> Iterator[Sample]:
        counts = totals(self.segment)
        yield from self._limit_samples(counts)
        for name, value in counts.items():
            if name.startswith("limited_") or name == "soft_limit_bytes":
                continue  # `_limit_samples` has them.
            prefix = next((prefix for prefix in _BY_LABEL if name.startswith(prefix)), None)
            if prefix is not None:
                label = name.removeprefix(prefix)
                label = label.removesuffix("s") if prefix == "sent_" else label
                yield Sample(_BY_LABEL[prefix], value, (label,))
            elif name.startswith("transition_"):
                yield Sample("lease_transitions", value, tuple(name.split("_")[1:]))
            elif name == "stun_answers":
                yield Sample("answers_sent", value, ("stun",))
            else:
                yield Sample(_LEASE_COUNTERS.get(name, name), value)

    def _table_samples(self) -> Iterator[Sample]:
        waiting, active = self._table.count_states()
        yield Sample("sessions", waiting, ("waiting",))
        yield Sample("sessions", active, ("active",))
        yield Sample("sessions_max", self.segment.geometry.max_sessions)
        yield Sample("used_leases", self._used.count)
        yield Sample("used_leases_limit", self._used.limit)
        yield Sample("shared_memory_bytes", self.segment.geometry.total_bytes)

    def _process_samples(self) -> Iterator[Sample]:
        yield Sample("build_info", 1, (self.version,))
        yield Sample("engine_info", 1, (self.engine_name,))
        yield Sample("start_time_seconds", self._started_ms / 1000)
        for result in _UPGRADE_RESULTS:
            yield Sample("upgrades", self.upgrades[result], (result,))
        running = self.pool.running()
        yield Sample("workers", running, ("running",))
        yield Sample("workers", self.pool.count - running, ("missing",))
        for number, age_s in enumerate(self.pool.heartbeat_ages_s()):
            yield Sample("worker_heartbeat_age_seconds", age_s, (str(number),))
        for number, cpu_s in self.pool.cpu_seconds().items():
            yield Sample("worker_cpu_seconds", cpu_s, (str(number),))
        for cause in ("died", "hung", "boot_failed"):
            yield Sample("worker_restarts", self.pool.restarts[cause], (cause,))
        for outcome in RELOAD_OUTCOMES:
            yield Sample("reloads", self.reloads[outcome], (outcome,))
        for group in self.groups:
            endpoint = group.endpoint
            yield Sample("udp_sockets", len(group.sockets), (endpoint,))
            yield Sample("steering_attached", group.steering_error is None, (endpoint,))
            yield Sample("socket_buffer_bytes", group.receive_buffer_bytes, (endpoint, "receive"))
            yield Sample("socket_buffer_bytes", group.send_buffer_bytes, (endpoint, "send"))
        yield Sample("draining", bool(self.drain))
        yield Sample("bitrate_limit_kbps", self.max_bitrate_kbps)
        reasons = self.not_ready()
        yield Sample("ready", not reasons)
        for reason in _REASONS_NOT_READY:
            yield Sample("not_ready", reason in reasons, (reason,))

    def _master_samples(self) -> Iterator[Sample]:
        yield Sample("keys", len(self.keyring.key_ids))
        yield Sample("keyset_serial", self.keyring.serial)
        yield Sample("keyset_refused", self.keyring.refused is not None)
        state = self.link.state if self.link else "off"
        for name in MASTER_STATES:
            yield Sample("master_state", name == state, (name,))
        if self.link is not None:
            for result in ("ok", "failed"):
                yield Sample("master_registrations", self.link.registrations[result], (result,))
                yield Sample("master_heartbeats", self.link.heartbeats[result], (result,))
            yield Sample("master_heartbeat_age_seconds", self.link.unheard_s())

    def _revocation_samples(self) -> Iterator[Sample]:
        yield Sample("revocations", len(self.revocations))
        yield Sample("revocation_number", self.revocations.number)
        yield Sample("revocations_evicted", self.revocations.evicted)
        for way in ("stream", "poll"):
            yield Sample("revocations_received", self.revocations.received[way], (way,))
        events = self.events
        yield Sample("event_stream_connected", events is not None and events.connected)
        if events is not None:
            yield Sample("revocations_unsaved", events.unsaved)
            yield Sample("event_frames_refused", events.frames_refused)
            for result in ("ok", "failed"):
                yield Sample("event_connections", events.connections[result], (result,))
                yield Sample("event_polls", events.polls[result], (result,))


def _names(bits: Drain | Shedding) -> list[str]:
    return [(bit.name or "").lower() for bit in bits]
