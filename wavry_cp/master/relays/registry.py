"""The relays as this master knows them: durable records, and what each said last.

Records are written before they are believed, one change at a time.  Heartbeats stay in memory and
are written now and then: losing a few seconds of them costs nothing, as relays report again.
After a start the relays that were alive when the last master wrote are *presumed* alive for as
long as a heartbeat may take, so that a restart neither ends sessions nor leaves users without a
relay.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from wavry_cp.app.refusal import RefusedError
from wavry_cp.master.enrolment.tokens import EnrolmentToken, Entry, refused_token
from wavry_cp.master.health.condition import RelayCondition
from wavry_cp.master.health.probe_outcome import ProbeOutcome
from wavry_cp.operators.audit import AuditEntry
from wavry_cp.operators.bans import Ban
from wavry_peer.protocol.http.api import HeartbeatRequest, RegisterRequest
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.relay_terms import Enrolment, RelayState, ReportedState

from . import rules
from .claims import KEPT, Claim, displaced_by
from .pool import RelayPool
from .rules import RegistrationTerms, RelayEvent, RelayRecord, RelayReport
from .store import RelayStore
from .strangers import is_forgotten
from .table import KnownRelay

__all__ = ["Registered", "RelayRegistry"]

PRESUME_WITHIN_S: Final = 300
"""A relay that was not heard for the life of a lease has no session left to keep."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A registration that was written.

    Attributes:
        record: as it is now.
        gone: ids of the strangers that had to go for it.
        spent: the enrolment token that was used.
    """

    record: RelayRecord
    gone: tuple[str, ...]
    spent: EnrolmentToken | None


class RelayRegistry(RelayPool):
    """All relays of one master, and every change of them."""

    def __init__(
        self,
        store: RelayStore,
        *,
        heartbeat_interval_s: float,
        is_door_open: bool = False,
        probe_interval_s: float = 0.0,
    ) -> None:
        super().__init__(heartbeat_interval_s, probe_interval_s)
        self._store = store
        self._is_door_open = is_door_open
        self._unsaved: dict[str, int] = {}
        self._changing = asyncio.Lock()
        self.on_ready: list[Callable[[str], None]] = []
        """Called with the id of a relay that may be probed from now on."""
        self.on_state: list[Callable[[str], None]] = []
        """Called with the id of a relay whose state may have changed."""

    async def load(self, *, now_s: int, monotonic_s: float) -> None:
        """Read the records; called once, before anything else."""
        for record in await self._store.relays():
            if record.is_stranger and not self._is_door_open and record.state not in KEPT:
                await self._store.remove_relay(record.relay_id)
                continue
            heard_at_s = max(record.last_heartbeat_at_s, record.registered_at_s)
            presumed = now_s - heard_at_s <= PRESUME_WITHIN_S
            seen_s = monotonic_s if presumed else monotonic_s - self._offline_after_s - 1
            was_reached = record.state is not RelayState.NEW and not record.is_stranger
            condition = self._condition(record, presumed=was_reached)
            self._relays.put(KnownRelay(record, seen_s, condition, presumed=presumed))

    # -- Changing --------------------------------------------------------------------------

    async def register(
        self,
        body: RegisterRequest,
        decide: Callable[[RelayRecord | None], tuple[Entry, tuple[str, ...]]],
        *,
        token_hash: str,
        network: str,
        now_s: int,
        monotonic_s: float,
    ) -> Registered:
        """Write a registration of a relay that proved its key.

        Args:
            body: what it says.
            decide: gives by what the relay is let in, and its canonical endpoints; asked of the
                record that it has at this moment.
            token_hash: of the new relay token.
            network: that it called from.
            now_s: unix seconds.
            monotonic_s: monotonic seconds.

        Raises:
            RefusedError: what `decide` and `rules.register` raise; ``endpoint_taken``,
                ``name_taken``, ``too_many_strangers``, ``enrolment_token_invalid``.
        """
        async with self._changing:
            known = self.record(body.relay_id)
            entry, endpoints = decide(known)
            claim = Claim(body.relay_id, entry.kind is Enrolment.OPEN, endpoints, network)
            gone = displaced_by(claim, self._relays, lambda r: self._state(r, monotonic_s))
            terms = RegistrationTerms(
                name=self._name_for(body.relay_id, entry.name),
                enrolment=entry.kind,
                endpoints=endpoints,
                region=entry.region or body.region,
            )
            record = rules.register(body, known, terms, token_hash=token_hash, now_s=now_s)
            for relay_id in gone:
                await self._remove(relay_id)
            if entry.token is None:
                await self._store.save_relay(record)
            else:
                audit = AuditEntry(
                    now_s, "relay", "enrolled", f"{record.relay_id} as {record.name}"
                )
                if not await self._store.enrol_relay(record, entry.token.token_id, now_s, audit):
                    raise refused_token("was used or replaced meanwhile")
            condition = self._condition_after(record)
            self._relays.put(KnownRelay(record, monotonic_s, condition, source=network))
            return Registered(record, gone, entry.token)

    def _name_for(self, relay_id: str, name: str | None) -> str:
        if name is None:
            return self._relays.free_name(relay_id)
        self._require_free_name(relay_id, name)
        return name

    def _require_free_name(self, relay_id: str, name: str) -> None:
        other = self._relays.named(name)
        if other is not None and other.record.relay_id != relay_id:
            raise RefusedError(
                ErrorCode.NAME_TAKEN,
                f"{name} is the name of {other.record.relay_id}: rename or remove that relay",
            )

    async def heartbeat(
        self,
        body: HeartbeatRequest,
        token: str | None,
        *,
        network: str = "",
        wall_s: float,
        monotonic_s: float,
    ) -> tuple[RelayRecord, RelayReport]:
        """Take a heartbeat, which came from `network`; `wall_s` is unix seconds.

        Raises:
            RefusedError: ``unknown_relay``, ``invalid_relay_token`` or ``banned``.
        """
        relay = self._authenticated(body.relay_id, token)
        rules.transition(relay.record.state, RelayEvent.HEARTBEAT)
        now_s = int(wall_s)
        status = RelayReport.from_heartbeat(body, now_s)
        is_ready = status.reported == ReportedState.READY
        if relay.record.undrain_pending and is_ready:
            async with self._changing:
                relay = self._authenticated(body.relay_id, token)
                record = rules.after_event(relay.record, RelayEvent.HEARTBEAT)
                await self._save(relay, replace(record, undrain_pending=False))
        await self._note_reached(body.relay_id)
        relay = self._authenticated(body.relay_id, token)
        before = self._state(relay, monotonic_s)
        became_ready = is_ready and (relay.status is None or relay.status.reported != body.state)
        relay.status = status
        relay.condition.heartbeats.take(
            status, clock_ahead_s=body.clock_ms / 1000 - wall_s if body.clock_ms else None
        )
        relay.seen_s = monotonic_s
        relay.presumed = False
        relay.recent_picks = 0
        relay.source = network
        self._unsaved[body.relay_id] = now_s
        if became_ready:
            self._tell(self.on_ready, body.relay_id)
        if self._state(relay, monotonic_s) is not before:
            self._tell(self.on_state, body.relay_id)
        return relay.record, status

    async def take_probes(self, relay_id: str, outcomes: Sequence[ProbeOutcome]) -> float:
        """See `ProbedRelays`."""
        relay = self._relays.get(relay_id)
        if relay is None:
            return self._probe_interval_s
        status = relay.status
        is_full = status is not None and status.active_sessions >= relay.record.max_sessions
        condition = relay.condition
        before = condition.is_reached, condition.faults()
        for outcome in outcomes:
            condition.take_probe(outcome, is_full=is_full)
        await self._note_reached(relay_id)
        if before != (condition.is_reached, condition.faults()):
            self._tell(self.on_state, relay_id)
        return relay.condition.verdict.next_in_s(self._probe_interval_s)

    async def _note_reached(self, relay_id: str) -> None:
        """Record it where sessions get through to a relay for the first time."""
        if not self._is_new_and_reached(relay_id):
            return
        async with self._changing:
            relay = self._relays.get(relay_id)
            if relay is not None and self._is_new_and_reached(relay_id):
                await self._save(relay, rules.after_event(relay.record, RelayEvent.REACHED))

    def _is_new_and_reached(self, relay_id: str) -> bool:
        relay = self._relays.get(relay_id)
        is_new = relay is not None and relay.record.state is RelayState.NEW
        return is_new and relay is not None and relay.condition.is_reached

    def _condition(self, record: RelayRecord, *, presumed: bool = False) -> RelayCondition:
        return RelayCondition(
            record.endpoints,
            presumed=presumed,
            strict=record.is_stranger,
            is_probed=self._probe_interval_s > 0,
        )

    def _condition_after(self, record: RelayRecord) -> RelayCondition:
        """Return what is known of a relay that registered (again), at its present endpoints."""
        known = self._relays.get(record.relay_id)
        if known is not None and known.record.endpoints == record.endpoints:
            return known.condition
        return self._condition(record)

    @staticmethod
    def _tell(listeners: Iterable[Callable[[str], None]], relay_id: str) -> None:
        for listener in listeners:
            listener(relay_id)

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
            self._relays.change(relay, record)
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
            self._relays.change(relay, record)

    async def deregister(
        self, relay_id: str, *, who: str, by_operator: bool, now_s: int, reason: str = ""
    ) -> None:
        """Take the token of a relay away, and forget it where that costs nothing.

        The record of a banned relay stays, and that of a draining one unless the operator
        removes it: else a relay could deregister and come back clean.  A relay that says farewell
        itself stays enrolled, unless it needs nothing to come back: one of a pool, or a stranger.

        Raises:
            RefusedError: ``unknown_relay``.
        """
        async with self._changing:
            relay = self._known(relay_id)
            action = "remove" if by_operator else "deregister"
            audit = AuditEntry(now_s, who, action, relay_id, reason)
            record, state = relay.record, relay.record.state
            passing = record.enrolment in (Enrolment.POOL, Enrolment.OPEN)
            is_kept = state is RelayState.BANNED or not (
                by_operator or (passing and state not in KEPT)
            )
            if is_kept:
                await self._save(relay, replace(record, token_hash=None), audit)
            else:
                # A stranger that comes and goes must not fill the log.
                silent = record.is_stranger and not by_operator
                await self._remove(relay_id, None if silent else audit)

    async def _remove(self, relay_id: str, audit: AuditEntry | None = None) -> None:
        await self._store.remove_relay(relay_id, audit)
        self._relays.drop(relay_id)
        self._unsaved.pop(relay_id, None)

    async def approve(
        self, relay_id: str, name: str | None, *, who: str, now_s: int, reason: str = ""
    ) -> RelayRecord:
        """Make a full relay of a stranger, under a name of the operator's where he gives one.

        Raises:
            RefusedError: ``unknown_relay``, ``name_taken``; ``wrong_state``: it is enrolled.
        """
        async with self._changing:
            relay = self._known(relay_id)
            if not relay.record.is_stranger:
                raise RefusedError(
                    ErrorCode.WRONG_STATE, f"the relay {relay.record.name} is enrolled already"
                )
            name = self._name_for(relay_id, name or relay.record.name)
            record = replace(relay.record, name=name, enrolment=Enrolment.APPROVED)
            audit = AuditEntry(now_s, who, "approve", relay_id, reason)
            await self._save(relay, record, audit)
            return relay.record

    async def rename(
        self, relay_id: str, name: str, *, who: str, now_s: int, reason: str = ""
    ) -> RelayRecord:
        """Give a relay another name.

        Raises:
            RefusedError: ``unknown_relay`` or ``name_taken``.
        """
        async with self._changing:
            relay = self._known(relay_id)
            self._require_free_name(relay_id, name)
            audit = AuditEntry(now_s, who, "rename", f"{relay_id} to {name}", reason)
            await self._save(relay, replace(relay.record, name=name), audit)
            return relay.record

    async def forget_strangers(self, now_s: int) -> tuple[str, ...]:
        """Forget the strangers that were silent for a day; gives their ids."""
        async with self._changing:
            gone = [
                relay.record.relay_id
                for relay in self._relays
                if relay.record.is_stranger
                and relay.record.state not in KEPT
                and is_forgotten(relay, now_s)
            ]
            for relay_id in gone:
                await self._remove(relay_id)
            return tuple(gone)

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
        relay = self._relays.get(relay_id)
        if relay is not None:
            relay.recent_picks += 1

    # -- Inside ----------------------------------------------------------------------------

    async def _save(
        self, relay: KnownRelay, record: RelayRecord, audit: AuditEntry | None = None
    ) -> None:
        if relay.status is not None:
            record = replace(record, last_heartbeat_at_s=relay.status.at_s)
        await self._store.save_relay(record, audit)
        self._relays.change(relay, record)
