"""The relays as this master knows them: durable records, and what each said last.

Records are written before they are believed, one change at a time.  Heartbeats stay in memory and
are written now and then: losing a few seconds of them costs nothing, as relays report again.
After a start the relays that were alive when the last master wrote are *presumed* alive for as
long as a heartbeat may take, so that a restart neither ends sessions nor leaves users without a
relay.
"""

import asyncio
from collections import Counter
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Final

from wavry_cp.app.refusal import RefusedError
from wavry_cp.master.leases.selection import RelayCandidate
from wavry_cp.operators.audit import AuditEntry
from wavry_cp.operators.bans import Ban
from wavry_peer.protocol.http.api import HeartbeatRequest, RegisterRequest, RelayInfo
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.relay_terms import RelayState, ReportedState

from . import rules
from .rules import RelayEvent, RelayRecord, RelayReport
from .store import RelayStore

__all__ = ["RelayRegistry"]

PRESUME_WITHIN_S: Final = 300
"""A relay that was not heard for the life of a lease has no session left to keep."""


@dataclass(slots=True)
class _Relay:
    record: RelayRecord
    seen_s: float
    """Monotonic seconds of the last sign of life."""
    status: RelayReport | None = None
    presumed: bool = False
    """No sign of life came to this process yet."""
    recent_picks: int = 0


class RelayRegistry:
    """All relays of one master."""

    def __init__(self, store: RelayStore, *, heartbeat_interval_s: float) -> None:
        self._store = store
        self._offline_after_s = rules.offline_after_s(heartbeat_interval_s)
        self._relays: dict[str, _Relay] = {}
        self._unsaved: dict[str, int] = {}
        self._changing = asyncio.Lock()

    async def load(self, *, now_s: int, monotonic_s: float) -> None:
        """Read the records; called once, before anything else."""
        for record in await self._store.relays():
            heard_at_s = max(record.last_heartbeat_at_s, record.registered_at_s)
            presumed = now_s - heard_at_s <= PRESUME_WITHIN_S
            seen_s = monotonic_s if presumed else monotonic_s - self._offline_after_s - 1
            self._relays[record.relay_id] = _Relay(record, seen_s, presumed=presumed)

    # -- Reading ---------------------------------------------------------------------------

    def record(self, relay_id: str) -> RelayRecord | None:
        """Return the durable record."""
        relay = self._relays.get(relay_id)
        return None if relay is None else relay.record

    def state(self, relay_id: str, monotonic_s: float) -> RelayState | None:
        """Return the state now, or None for an unknown relay."""
        relay = self._relays.get(relay_id)
        return None if relay is None else self._state(relay, monotonic_s)

    def is_heard(self, relay_id: str, monotonic_s: float) -> bool:
        """Return whether this process heard the relay within the time-out."""
        relay = self._relays.get(relay_id)
        return relay is not None and not relay.presumed and self._alive(relay, monotonic_s)

    def serves_sessions(self, relay_id: str, monotonic_s: float) -> bool:
        """Return whether leases of the relay's sessions may be renewed: also while it drains."""
        relay = self._relays.get(relay_id)
        if relay is None or relay.record.token_hash is None:
            return False
        return relay.record.state is not RelayState.BANNED and self._alive(relay, monotonic_s)

    def held_kids(self, relay_id: str) -> AbstractSet[str] | None:
        """Return the key ids that a relay reported last, None before its first report to us."""
        relay = self._relays.get(relay_id)
        if relay is None or relay.status is None:
            return None
        return frozenset(relay.status.held_kids)

    def held_by_live(self, monotonic_s: float) -> dict[str, AbstractSet[str]]:
        """Return the key ids that each live relay says it holds; a banned one does not count."""
        return {
            relay_id: self.held_kids(relay_id) or frozenset()
            for relay_id in self._relays
            if self.serves_sessions(relay_id, monotonic_s)
        }

    def keyset_serials(self, monotonic_s: float) -> dict[str, int]:
        """Return the serial of the key set that each live relay reported."""
        return {
            relay_id: relay.status.keyset_serial
            for relay_id, relay in self._relays.items()
            if relay.status is not None and self.serves_sessions(relay_id, monotonic_s)
        }

    def candidates(self, monotonic_s: float, *, active_kid: str) -> list[RelayCandidate]:
        """Return the relays that may get new sessions.

        Those that reported that they are ready and hold the signing key; only where there is
        none, right after a start, those that are presumed alive.
        """
        heard = []
        presumed = []
        for relay in self._relays.values():
            state = self._state(relay, monotonic_s)
            if state is RelayState.ACTIVE and relay.status is not None:
                if active_kid in relay.status.held_kids:
                    heard.append(_candidate(relay, relay.status))
            elif (
                relay.presumed
                and relay.record.state is RelayState.ACTIVE
                and self.serves_sessions(relay.record.relay_id, monotonic_s)
            ):
                presumed.append(_candidate(relay, None))
        return heard or presumed

    def infos(self, monotonic_s: float) -> list[RelayInfo]:
        """Return all rows of ``GET /v1/relays`` by relay id."""
        return [self._info(self._relays[key], monotonic_s) for key in sorted(self._relays)]

    def info(self, relay_id: str, monotonic_s: float) -> RelayInfo:
        """Return one row.

        Raises:
            RefusedError: ``unknown_relay``.
        """
        return self._info(self._known(relay_id), monotonic_s)

    def count_by_state(self, monotonic_s: float) -> Counter[RelayState]:
        """Return the number of relays in each state."""
        return Counter(self._state(relay, monotonic_s) for relay in self._relays.values())

    def heartbeat_ages_s(self, *, now_s: int, monotonic_s: float) -> dict[RelayState, int]:
        """Return the age of the oldest sign of life in each state, without deregistered relays."""
        ages: dict[RelayState, int] = {}
        for relay in self._relays.values():
            record, status = relay.record, relay.status
            if record.token_hash is None:
                continue
            heard_s = max(record.last_heartbeat_at_s, record.registered_at_s)
            age_s = max(0, now_s - (heard_s if status is None else status.at_s))
            state = self._state(relay, monotonic_s)
            ages[state] = max(ages.get(state, 0), age_s)
        return ages

    def pool_sessions(self, monotonic_s: float) -> tuple[int, int]:
        """Return the sessions that reachable relays reported, and the room of ACTIVE relays."""
        held = room = 0
        for relay in self._relays.values():
            state = self._state(relay, monotonic_s)
            if state is not RelayState.OFFLINE and relay.status is not None:
                held += relay.status.active_sessions
            if state is RelayState.ACTIVE:
                room += relay.record.max_sessions
        return held, room

    # -- Changing --------------------------------------------------------------------------

    async def register(
        self, body: RegisterRequest, *, token_hash: str, now_s: int, monotonic_s: float
    ) -> RelayRecord:
        """Write a registration; raises what `rules.register` raises."""
        async with self._changing:
            known = self.record(body.relay_id)
            record = rules.register(body, known, token_hash=token_hash, now_s=now_s)
            await self._store.save_relay(record)
            self._relays[body.relay_id] = _Relay(record, monotonic_s)
            return record

    async def heartbeat(
        self, body: HeartbeatRequest, token: str | None, *, now_s: int, monotonic_s: float
    ) -> tuple[RelayRecord, RelayReport]:
        """Take a heartbeat.

        Raises:
            RefusedError: ``unknown_relay``, ``invalid_relay_token`` or ``banned``.
        """
        relay = self._authenticated(body.relay_id, token)
        rules.transition(relay.record.state, RelayEvent.HEARTBEAT)
        status = RelayReport.from_heartbeat(body, now_s)
        if relay.record.state is RelayState.NEW or (
            relay.record.undrain_pending and status.reported == ReportedState.READY
        ):
            async with self._changing:
                relay = self._authenticated(body.relay_id, token)
                record = rules.after_event(relay.record, RelayEvent.HEARTBEAT)
                pending = record.undrain_pending and status.reported != ReportedState.READY
                await self._save(relay, replace(record, undrain_pending=pending))
        relay.status = status
        relay.seen_s = monotonic_s
        relay.presumed = False
        relay.recent_picks = 0
        self._unsaved[body.relay_id] = now_s
        return relay.record, status

    async def order(
        self, relay_id: str, event: RelayEvent, *, who: str, now_s: int, reason: str = ""
    ) -> RelayRecord:
        """Carry out an operator's order (drain, undrain) and write it into the audit log.

        Raises:
            RefusedError: ``unknown_relay``, or what `rules.transition` raises.
        """
        async with self._changing:
            relay = self._known(relay_id)
            record = rules.after_event(relay.record, event)
            audit = AuditEntry(now_s, who, event.value, relay_id, reason)
            await self._save(relay, record, audit)
            return relay.record

    async def ban(self, ban: Ban, audit: AuditEntry) -> Ban:
        """Ban a relay, which need not be known yet; gives the ban as it was written."""
        async with self._changing:
            relay = self._relays.get(ban.value)
            if relay is None:
                await self._store.ban_relay(None, ban, audit)
                return ban
            if relay.record.state is RelayState.DRAINING:
                ban = replace(ban, was_draining=True)
            record = rules.after_event(relay.record, RelayEvent.BAN)
            await self._store.ban_relay(record, ban, audit)
            relay.record = record
            return ban

    async def unban(self, ban: Ban, audit: AuditEntry) -> None:
        """End a ban; the relay starts as a new one, or goes back into its drain."""
        async with self._changing:
            relay = self._relays.get(ban.value)
            if relay is None or relay.record.state is not RelayState.BANNED:
                await self._store.unban_relay(None, ban.value, audit)
                return
            record = rules.after_event(relay.record, RelayEvent.UNBAN)
            if ban.was_draining:
                record = rules.after_event(record, RelayEvent.DRAIN)
            await self._store.unban_relay(record, ban.value, audit)
            relay.record = record

    async def deregister(
        self, relay_id: str, *, who: str, by_operator: bool, now_s: int, reason: str = ""
    ) -> None:
        """Forget a relay, as far as that shakes off neither a ban nor a drain.

        The record of a banned relay stays, and that of a draining one unless the operator
        removes it: else a relay could deregister and come back clean.

        Raises:
            RefusedError: ``unknown_relay``.
        """
        async with self._changing:
            relay = self._known(relay_id)
            audit = AuditEntry(now_s, who, "deregister", relay_id, reason)
            state = relay.record.state
            if state is RelayState.BANNED or (state is RelayState.DRAINING and not by_operator):
                await self._save(relay, replace(relay.record, token_hash=None), audit)
            else:
                await self._store.remove_relay(relay_id, audit)
                del self._relays[relay_id]
                self._unsaved.pop(relay_id, None)

    async def save_heartbeats(self) -> None:
        """Write the heartbeats that came since the last call."""
        unsaved, self._unsaved = self._unsaved, {}
        if unsaved:
            try:
                await self._store.save_heartbeats(unsaved)
            except BaseException:
                self._unsaved = unsaved | self._unsaved
                raise

    def note_pick(self, relay_id: str) -> None:
        """Count a session that was just given to a relay."""
        if relay_id in self._relays:
            self._relays[relay_id].recent_picks += 1

    def authenticate(self, relay_id: str, token: str | None) -> RelayRecord:
        """Return the record of a relay that shows its own token.

        Raises:
            RefusedError: ``unknown_relay``, ``invalid_relay_token`` or ``banned``.
        """
        record = self._authenticated(relay_id, token).record
        if record.state is RelayState.BANNED:
            raise RefusedError(ErrorCode.BANNED, "this relay is banned; ask the operator")
        return record

    def relay_token_matches(self, relay_id: str, token: str | None) -> bool:
        """Return whether `token` is this relay's own."""
        relay = self._relays.get(relay_id)
        return relay is not None and rules.token_matches(relay.record, token)

    # -- Inside ----------------------------------------------------------------------------

    async def _save(
        self, relay: _Relay, record: RelayRecord, audit: AuditEntry | None = None
    ) -> None:
        if relay.status is not None:
            record = replace(record, last_heartbeat_at_s=relay.status.at_s)
        await self._store.save_relay(record, audit)
        relay.record = record

    def _known(self, relay_id: str) -> _Relay:
        relay = self._relays.get(relay_id)
        if relay is None:
            raise RefusedError(ErrorCode.UNKNOWN_RELAY, "no relay with this id; register it")
        return relay

    def _authenticated(self, relay_id: str, token: str | None) -> _Relay:
        relay = self._known(relay_id)
        if relay.record.token_hash is None:
            raise RefusedError(
                ErrorCode.UNKNOWN_RELAY, "this relay was deregistered; register again"
            )
        if not rules.token_matches(relay.record, token):
            raise RefusedError(
                ErrorCode.INVALID_RELAY_TOKEN, "relay token is wrong; register again"
            )
        return relay

    def _alive(self, relay: _Relay, monotonic_s: float) -> bool:
        return monotonic_s - relay.seen_s <= self._offline_after_s

    def _state(self, relay: _Relay, monotonic_s: float) -> RelayState:
        alive = not relay.presumed and self._alive(relay, monotonic_s)
        return rules.state_now(relay.record, relay.status, alive=alive)

    def _info(self, relay: _Relay, monotonic_s: float) -> RelayInfo:
        return rules.relay_info(relay.record, relay.status, self._state(relay, monotonic_s))


def _candidate(relay: _Relay, status: RelayReport | None) -> RelayCandidate:
    return RelayCandidate(
        relay_id=relay.record.relay_id,
        region=relay.record.region,
        load_pct=status.load_pct if status else 0.0,
        packet_loss_pct=status.packet_loss_pct if status else 0.0,
        active_sessions=status.active_sessions if status else 0,
        max_sessions=relay.record.max_sessions,
        recent_picks=relay.recent_picks,
    )
