"""What describes the relay: /health, /ready, the status line and the control socket's status.

It only reads.  Orders are carried out in `orders`; what heartbeats tell is in `load_meter`.
"""

import os
from typing import Final

from wavry_peer.protocol.http.api import BlockedHost
from wavry_peer.protocol.http.ops import (
    RelayEngineHealth,
    RelayHealth,
    RelayKeysHealth,
    RelayMasterHealth,
    RelayRevocationsHealth,
    RelaySessionsHealth,
    RelayUsedLeasesHealth,
    RelayWorkersHealth,
)
from wavry_peer.protocol.relay_terms import MasterLinkState
from wavry_peer.service.clock import Clock
from wavry_relay.shm.control import Drain, EngineKind, Shedding

from .blocked_hosts import blocked_hosts
from .running_relay import UPGRADE_RESULTS, RunningRelay

__all__ = ["RelayFigures"]

_NEARLY_FULL_PCT: Final = 80
"""Of the used leases; the alert `WavryRelayUsedLeasesHigh` asks for the same."""


class RelayFigures:
    """Reads the state of a running relay.

    Args:
        relay: that is described.
        clock: time.

    Attributes:
        started_ms: unix milliseconds.
    """

    def __init__(self, relay: RunningRelay, clock: Clock) -> None:
        self._relay = relay
        self._clock = clock
        self._started_ns, self.started_ms = clock.now()
        self._tables = relay.tables

    @property
    def drain(self) -> Drain:
        """Who asked to take no new sessions."""
        return Drain(self._tables.control.drain)

    @property
    def shedding(self) -> Shedding:
        """Why new sessions are refused because of load."""
        return Shedding(self._tables.control.shedding)

    @property
    def engine_name(self) -> str:
        """``reference`` or ``native``."""
        return EngineKind(self._tables.control.engine).name.lower()

    @property
    def session_count(self) -> int:
        """Live sessions."""
        return sum(self.sessions())

    @property
    def summary(self) -> str:
        """One line for the service manager."""
        relay = self._relay
        if relay.stopping:
            return f"Stopping, {self.session_count} sessions left"
        state = "Draining" if self.drain else "Serving"
        where = ", ".join(group.endpoint for group in relay.groups)
        return f"{state} {where} with {relay.workers.running()} workers"

    def sessions(self) -> tuple[int, int]:
        """Return the numbers of sessions that wait for their second peer, and of active ones."""
        return self._tables.sessions.count_states()

    def blocks(self) -> list[BlockedHost]:
        """Return the blocked hosts, those that last longest first."""
        return blocked_hosts(self._tables.blocks.live(self._clock.now().wall_ms))

    @property
    def status(self) -> str:
        """``ok``; ``degraded`` while workers or places are missing; ``down`` while none runs."""
        workers, used = self._relay.workers, self._tables.used_leases
        running = workers.running()
        if not running:
            return "down"
        nearly_full = 100 * used.count > _NEARLY_FULL_PCT * used.limit
        return "degraded" if running < workers.count or nearly_full else "ok"

    def health(self) -> RelayHealth:
        """Return the body of /health."""
        relay, master = self._relay, self._relay.master
        workers = relay.workers
        waiting, active = self.sessions()
        now_ns, now_ms = self._clock.now()
        return RelayHealth(
            status=self.status,
            relay_id=relay.relay_id,
            version=relay.version,
            pid=os.getpid(),
            now=now_ms // 1000,
            not_before_skew_s=self._tables.control.skew_s,
            started_at=self.started_ms // 1000,
            uptime_s=(now_ns - self._started_ns) // 1_000_000_000,
            upgrades={result: relay.upgrades[result] for result in UPGRADE_RESULTS},
            engine=RelayEngineHealth(
                name=self.engine_name, pure_python=self.engine_name == "reference"
            ),
            udp=tuple(group.endpoint for group in relay.groups),
            workers=RelayWorkersHealth(
                wanted=workers.count,
                running=workers.running(),
                pids=tuple(workers.pids()),
                restarts=dict(workers.restarts),
                heartbeat_age_ms=tuple(int(age * 1000) for age in workers.heartbeat_ages_s()),
            ),
            sessions=RelaySessionsHealth(
                waiting=waiting, active=active, max=relay.tables.segment.geometry.max_sessions
            ),
            used_leases=RelayUsedLeasesHealth(
                remembered=self._tables.used_leases.count, limit=self._tables.used_leases.limit
            ),
            draining=_names(self.drain),
            shedding=_names(self.shedding),
            cookie_gates=workers.cookie_gates(),
            blocks=len(self.blocks()),
            keys=RelayKeysHealth(
                serial=master.keyring.serial,
                kids=tuple(master.keyring.key_ids),
                refused=master.keyring.refused,
                fetch_error=master.link.keys_error if master.link else None,
            ),
            master=RelayMasterHealth(
                state=master.state,
                error=master.link.last_error if master.link else None,
                events=master.events.connected if master.events else False,
            ),
            revocations=RelayRevocationsHealth(
                in_force=len(master.revocations),
                number=master.revocations.number,
                saved=not (master.events and master.events.unsaved),
            ),
        )

    def not_ready(self) -> list[str]:
        """Return why the relay should get no new sessions; empty if it is ready."""
        relay, state = self._relay, self._relay.master.state
        reasons = []
        if relay.stopping:
            reasons.append("stopping")
        if self.drain:
            reasons.append("draining")
        if relay.workers.running() < relay.workers.count:
            reasons.append("workers_missing")
        if not relay.master.keyring.key_ids:
            reasons.append("no_keys")
        if state not in (MasterLinkState.OFF, MasterLinkState.REGISTERED):
            reasons.append(f"master_{state}")
        return reasons


def _names(bits: Drain | Shedding) -> tuple[str, ...]:
    return tuple((bit.name or "").lower() for bit in bits)
