"""Rules of the relay registry: who may register, which states a relay has, what it is told.

Two kinds of facts make the state that others see.  The *recorded state* (NEW, ACTIVE, DRAINING,
BANNED) is durable and moves only along `TRANSITIONS`.  Being OFFLINE is no event but a fact about
time: it is worked out from the last sign of life whenever somebody asks, so that no time-out
depends on a message that never comes.  DEGRADED is what `health` finds: workers are missing, the
master's own sessions do not get through, and the like; such a relay gets nothing new and its
sessions renew.  ACTIVE is recorded when such a session got through each of its endpoints.
PROBATION is what a relay that nobody enrolled is in place of ACTIVE, until an operator approves it.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from wavry_cp.app.refusal import RefusedError
from wavry_peer.protocol import base64url, keyset
from wavry_peer.protocol.http.api import HeartbeatRequest, RegisterRequest, RelayInfo
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.relay_terms import DrainOrder, Enrolment, RelayState, ReportedState

__all__ = [
    "TRANSITIONS",
    "RegistrationTerms",
    "RelayEvent",
    "RelayRecord",
    "RelayReport",
    "check_identity",
    "commands_for",
    "offline_after_s",
    "register",
    "relay_info",
    "state_now",
    "token_digest",
    "token_matches",
    "transition",
]

MISSED_HEARTBEATS: Final = 3
HEARTBEAT_MARGIN_S: Final = 1.0
"""For scheduling and one slow round trip; a lost packet is what the three intervals are for."""


class RelayEvent(StrEnum):
    """What moves the recorded state of a relay."""

    REGISTERED = "registered"
    HEARTBEAT = "heartbeat"
    REACHED = "reached"
    """A session of the master's own got through each of its endpoints."""
    DRAIN = DrainOrder.DRAIN.value
    UNDRAIN = DrainOrder.UNDRAIN.value
    BAN = "ban"
    UNBAN = "unban"


TRANSITIONS: Final[dict[tuple[RelayState, RelayEvent], RelayState]] = {
    (RelayState.NEW, RelayEvent.REGISTERED): RelayState.NEW,
    (RelayState.NEW, RelayEvent.HEARTBEAT): RelayState.NEW,
    (RelayState.NEW, RelayEvent.REACHED): RelayState.ACTIVE,
    (RelayState.NEW, RelayEvent.DRAIN): RelayState.DRAINING,
    (RelayState.NEW, RelayEvent.UNDRAIN): RelayState.NEW,
    (RelayState.NEW, RelayEvent.BAN): RelayState.BANNED,
    (RelayState.ACTIVE, RelayEvent.REGISTERED): RelayState.ACTIVE,
    (RelayState.ACTIVE, RelayEvent.HEARTBEAT): RelayState.ACTIVE,
    (RelayState.ACTIVE, RelayEvent.DRAIN): RelayState.DRAINING,
    (RelayState.ACTIVE, RelayEvent.UNDRAIN): RelayState.ACTIVE,
    (RelayState.ACTIVE, RelayEvent.BAN): RelayState.BANNED,
    # Registering again never ends a drain: only the operator does.
    (RelayState.DRAINING, RelayEvent.REGISTERED): RelayState.DRAINING,
    (RelayState.DRAINING, RelayEvent.HEARTBEAT): RelayState.DRAINING,
    (RelayState.DRAINING, RelayEvent.DRAIN): RelayState.DRAINING,
    (RelayState.DRAINING, RelayEvent.UNDRAIN): RelayState.ACTIVE,
    (RelayState.DRAINING, RelayEvent.BAN): RelayState.BANNED,
    # A banned relay can neither register nor report; the missing rows are refusals.
    (RelayState.BANNED, RelayEvent.BAN): RelayState.BANNED,
    (RelayState.BANNED, RelayEvent.UNBAN): RelayState.NEW,
}


@dataclass(frozen=True, slots=True)
class RelayRecord:
    """What the master keeps of a relay, durably.

    Attributes:
        relay_id: derived from `public_key`.
        name: an operator's word for it, unique; else made of the id.
        enrolment: by what it came to be known.
        public_key: base64url, Ed25519.
        endpoints: canonical, as `check_endpoint` writes them.
        region: of its enrolment, else as the relay says, or None.
        asn: autonomous system number, as the relay says, or None.
        max_sessions: capacity.
        max_bitrate_kbps: most kbit/s that one session may use; 0 is no limit of the relay's.
        features: names, for the operator.
        version: of the relay's software.
        state: the recorded one; never OFFLINE.
        undrain_pending: the operator ended a drain and the relay has not said "ready" since.
        token_hash: hex SHA-256 of the relay token; None once deregistered.
        registered_at_s: unix seconds of the last registration.
        last_heartbeat_at_s: unix seconds, written now and then; 0 before the first.
    """

    relay_id: str
    name: str
    enrolment: Enrolment
    public_key: str
    endpoints: tuple[str, ...]
    region: str | None
    asn: int | None
    max_sessions: int
    max_bitrate_kbps: int
    features: tuple[str, ...]
    version: str
    state: RelayState
    undrain_pending: bool
    token_hash: str | None
    registered_at_s: int
    last_heartbeat_at_s: int = 0

    @property
    def is_stranger(self) -> bool:
        """Whether nobody enrolled it: its word counts for nothing."""
        return self.enrolment is Enrolment.OPEN


@dataclass(frozen=True, slots=True)
class RelayReport:
    """What a relay said in its last heartbeat; `at_s` in unix seconds, the rest as in the body."""

    at_s: int
    load_pct: float
    active_sessions: int
    packet_loss_pct: float
    held_kids: tuple[str, ...]
    keyset_serial: int
    reported: str
    workers_wanted: int = 0
    workers_missing: int = 0
    disk_failing: bool = False
    rejects: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_heartbeat(cls, body: HeartbeatRequest, now_s: int) -> "RelayReport":
        """Return the status that a heartbeat reports."""
        return cls(
            at_s=now_s,
            load_pct=body.load_pct,
            active_sessions=body.active_sessions,
            packet_loss_pct=body.packet_loss_pct,
            held_kids=body.held_kids,
            keyset_serial=body.keyset_serial,
            reported=body.state,
            workers_wanted=body.workers_wanted,
            workers_missing=body.workers_missing,
            disk_failing=body.disk_failing,
            rejects=body.rejects,
        )


def transition(state: RelayState, event: RelayEvent) -> RelayState:
    """Return the state after an event.

    Raises:
        RefusedError: ``banned``, or ``wrong_state`` where the event means nothing now.
    """
    following = TRANSITIONS.get((state, event))
    if following is None:
        if state is RelayState.BANNED:
            raise RefusedError(ErrorCode.BANNED, "this relay is banned; ask the operator")
        raise RefusedError(ErrorCode.WRONG_STATE, f"a relay that is {state} cannot {event}")
    return following


def check_identity(body: RegisterRequest) -> None:
    """Check that a relay's id is the one of the key that it says it has.

    Raises:
        RefusedError: ``invalid_public_key`` or ``invalid_relay_id``.
    """
    try:
        public_key = base64url.decode(body.public_key, size=32)
    except ValueError as error:
        raise RefusedError(ErrorCode.INVALID_PUBLIC_KEY, f"public_key is {error}") from error
    if keyset.relay_id(public_key) != body.relay_id:
        raise RefusedError(
            ErrorCode.INVALID_RELAY_ID, "relay_id is not the one derived from public_key"
        )


@dataclass(frozen=True, slots=True)
class RegistrationTerms:
    """What the master decided about a relay that registers.

    Attributes:
        name: that it has from now on.
        enrolment: by what it is let in.
        endpoints: canonical.
        region: that it is in.
    """

    name: str
    enrolment: Enrolment
    endpoints: tuple[str, ...]
    region: str | None


def register(
    body: RegisterRequest,
    known: RelayRecord | None,
    terms: RegistrationTerms,
    *,
    token_hash: str,
    now_s: int,
) -> RelayRecord:
    """Return the record after a registration with a proved key.

    Args:
        body: passed `check_identity`.
        known: the record so far; its state stays, so that neither ban nor drain is shaken off.
        terms: what the master decided.
        token_hash: of the new relay token; the old token is worth nothing from now on.
        now_s: unix seconds.

    Raises:
        RefusedError: ``banned``, or ``key_mismatch`` where the id belongs to another key.
    """
    if known is not None and known.public_key != body.public_key:
        raise RefusedError(ErrorCode.KEY_MISMATCH, "relay_id is registered with another key")
    state = RelayState.NEW if known is None else known.state
    if state is RelayState.ACTIVE and known is not None and known.endpoints != terms.endpoints:
        state = RelayState.NEW  # Nobody has reached it there.
    return RelayRecord(
        relay_id=body.relay_id,
        name=terms.name,
        enrolment=terms.enrolment,
        public_key=body.public_key,
        endpoints=terms.endpoints,
        region=terms.region,
        asn=body.asn,
        max_sessions=body.max_sessions,
        max_bitrate_kbps=body.max_bitrate_kbps,
        features=body.features,
        version=body.version,
        state=transition(state, RelayEvent.REGISTERED),
        undrain_pending=known is not None and known.undrain_pending,
        token_hash=token_hash,
        registered_at_s=now_s,
        last_heartbeat_at_s=0 if known is None else known.last_heartbeat_at_s,
    )


def after_event(record: RelayRecord, event: RelayEvent) -> RelayRecord:
    """Return the record after an operator's order or a heartbeat.

    Raises:
        RefusedError: see `transition`.
    """
    state = transition(record.state, event)
    pending = record.undrain_pending
    if event in (RelayEvent.DRAIN, RelayEvent.UNDRAIN):
        pending = event is RelayEvent.UNDRAIN and record.state is RelayState.DRAINING
    return replace(record, state=state, undrain_pending=pending)


def offline_after_s(heartbeat_interval_s: float) -> float:
    """Return the seconds without a sign of life after which a relay counts as OFFLINE."""
    return MISSED_HEARTBEATS * heartbeat_interval_s + HEARTBEAT_MARGIN_S


def state_now(
    record: RelayRecord,
    status: RelayReport | None,
    *,
    alive: bool,
    reached: bool = True,
    degraded: bool = False,
) -> RelayState:
    """Return the state that others see.

    Args:
        record: with the recorded state.
        status: last heartbeat since the relay registered, if any.
        alive: a sign of life came within `offline_after_s`.
        reached: sessions get through to it.
        degraded: there is a fault for which it gets nothing new.
    """
    if record.state is RelayState.BANNED:
        return RelayState.BANNED
    if record.token_hash is None or not alive:
        return RelayState.OFFLINE
    if record.state is RelayState.DRAINING:
        return RelayState.DRAINING
    if status is None or status.reported == ReportedState.STARTING:
        return RelayState.NEW
    if status.reported == ReportedState.DRAINING:
        return RelayState.DRAINING
    if not reached:
        return RelayState.NEW
    if degraded:
        return RelayState.DEGRADED
    return RelayState.PROBATION if record.is_stranger else RelayState.ACTIVE


def commands_for(
    record: RelayRecord, status: RelayReport, *, keyset_serial: int, active_kid: str
) -> tuple[str, ...]:
    """Return what the answer to a heartbeat orders, until the relay reports that it is done."""
    commands: list[str] = []
    if record.state is RelayState.DRAINING and status.reported == ReportedState.READY:
        commands.append(DrainOrder.DRAIN)
    if record.undrain_pending and status.reported == ReportedState.DRAINING:
        commands.append(DrainOrder.UNDRAIN)
    if status.keyset_serial < keyset_serial or active_kid not in status.held_kids:
        commands.append("refresh_keys")
    return tuple(commands)


def relay_info(record: RelayRecord, status: RelayReport | None, state: RelayState) -> RelayInfo:
    """Return the row of ``GET /v1/relays`` as far as relay and operator made it."""
    return RelayInfo(
        relay_id=record.relay_id,
        name=record.name,
        enrolment=record.enrolment.value,
        endpoints=record.endpoints,
        region=record.region,
        state=state.value,
        load_pct=status.load_pct if status else 0.0,
        active_sessions=status.active_sessions if status else 0,
        max_sessions=record.max_sessions,
        version=record.version,
        held_kids=status.held_kids if status else (),
        keyset_serial=status.keyset_serial if status else 0,
        registered_at=record.registered_at_s,
        last_heartbeat_at=status.at_s if status else record.last_heartbeat_at_s,
        reported=status.reported if status else "",
        workers_wanted=status.workers_wanted if status else 0,
        workers_missing=status.workers_missing if status else 0,
    )


def token_digest(token: str) -> str:
    """Return what is stored of a relay token: of 256 random bits, so without a salt."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def token_matches(record: RelayRecord, token: str | None) -> bool:
    """Return whether `token` is the relay's, compared in constant time."""
    if token is None or record.token_hash is None:
        return False
    return hmac.compare_digest(record.token_hash, token_digest(token))
