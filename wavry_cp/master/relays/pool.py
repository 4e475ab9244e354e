"""The relays of one master as others may ask about them; `RelayRegistry` changes them."""

from collections import Counter
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from typing import Final

from msgspec.structs import replace

from wavry_cp.app.refusal import RefusedError
from wavry_cp.master.health.probe_outcome import ProbeTarget
from wavry_cp.master.leases.selection import RelayCandidate
from wavry_cp.master.leases.tally import LiveLeases
from wavry_peer.protocol.http.api import RelayInfo
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.relay_terms import Enrolment, RelayState, ReportedState

from . import rules
from .rules import RelayRecord
from .table import KnownRelay, RelayTable

__all__ = ["RelayPool"]

_WITH_FAULTS: Final = frozenset({RelayState.NEW, RelayState.DEGRADED})


class RelayPool:
    """Questions about the relays.

    Args:
        heartbeat_interval_s: three missed ones and a second make a relay OFFLINE.
        probe_interval_s: between two probes of a relay; 0 takes relays at their word.
    """

    def __init__(self, heartbeat_interval_s: float, probe_interval_s: float = 0.0) -> None:
        self._probe_interval_s = probe_interval_s
        self._offline_after_s = rules.offline_after_s(heartbeat_interval_s)
        self._relays = RelayTable()

    def record(self, relay_id: str) -> RelayRecord | None:
        """Return the durable record."""
        relay = self._relays.get(relay_id)
        return None if relay is None else relay.record

    def find(self, text: str) -> RelayRecord:
        """Return the record of the relay that an operator means by an id, its start, or a name.

        Raises:
            RefusedError: ``unknown_relay`` or ``ambiguous_relay``.
        """
        return self._relays.find(text).record

    def named(self, name: str) -> RelayRecord | None:
        """Return the record of the relay with exactly this name."""
        relay = self._relays.named(name)
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
        """Return the key ids that each live relay says it holds.

        A banned relay and one that nobody enrolled do not count: neither may stop a rotation.
        """
        return {
            relay.record.relay_id: self.held_kids(relay.record.relay_id) or frozenset()
            for relay in self._voters(monotonic_s)
        }

    def keyset_serials(self, monotonic_s: float) -> dict[str, int]:
        """Return the serial of the key set that each live relay reported."""
        return {
            relay.record.relay_id: relay.status.keyset_serial
            for relay in self._voters(monotonic_s)
            if relay.status is not None
        }

    def is_stranger(self, relay_id: str) -> bool:
        """Return whether nobody enrolled this relay."""
        record = self.record(relay_id)
        return record is not None and record.is_stranger

    def strangers(self) -> frozenset[str]:
        """Return the ids of the relays that nobody enrolled."""
        return frozenset(
            relay.record.relay_id for relay in self._relays if relay.record.is_stranger
        )

    def probe_targets(self, monotonic_s: float, *, active_kid: str) -> list[ProbeTarget]:
        """Return the relays that can be probed now: those that could take a session.

        A relay that drains refuses new sessions, and one without the key can check none.
        """
        return [
            ProbeTarget(
                relay.record.relay_id,
                relay.record.endpoints,
                relay.condition.verdict.unproved(),
            )
            for relay in self._relays
            if relay.status is not None
            and relay.status.reported == ReportedState.READY
            and active_kid in relay.status.held_kids
            and relay.record.state is not RelayState.DRAINING
            and relay.record.token_hash is not None
            and self.is_heard(relay.record.relay_id, monotonic_s)
            and self._state(relay, monotonic_s) is not RelayState.BANNED
        ]

    def usable_endpoints(self, relay_id: str) -> tuple[str, ...]:
        """Return the endpoints of a relay that peers may be sent to."""
        relay = self._relays.get(relay_id)
        if relay is None:
            return ()
        return (
            relay.condition.verdict.usable() if self._probe_interval_s else relay.record.endpoints
        )

    def is_pool_silent(self, monotonic_s: float) -> bool:
        """Whether no relay that is heard answers the master's own sessions, though some did.

        Then the master's own network is as likely the cause as all of theirs.
        """
        states = [
            (self._state(relay, monotonic_s), self._is_only_silent(relay)) for relay in self._relays
        ]
        silent = any(state is RelayState.DEGRADED and only for state, only in states)
        return silent and not any(state is RelayState.ACTIVE for state, _ in states)

    def candidates(
        self,
        monotonic_s: float,
        *,
        active_kid: str,
        live: Callable[[str], LiveLeases],
    ) -> list[RelayCandidate]:
        """Return the enrolled relays that may get new sessions.

        Those that reported that they are ready and hold the signing key.  Where there is none,
        those of which the master's own sessions have no answer any more and nothing else is wrong:
        its own network may be at fault, and no relay at all would be the worse guess.  Else,
        right after a start, those that are presumed alive.

        Args:
            monotonic_s: monotonic seconds.
            active_kid: key that they must hold.
            live: gives the sessions of a relay by the master's own book.
        """
        heard = []
        silent = []
        presumed = []
        for relay in self._relays:
            state = self._state(relay, monotonic_s)
            if relay.status is not None and active_kid not in relay.status.held_kids:
                continue
            if state is RelayState.ACTIVE:
                heard.append(_candidate(relay, live))
            elif state is RelayState.DEGRADED and self._is_only_silent(relay):
                silent.append(_candidate(relay, live))
            elif (
                relay.presumed
                and not relay.record.is_stranger
                and relay.record.state is RelayState.ACTIVE
                and self.serves_sessions(relay.record.relay_id, monotonic_s)
            ):
                presumed.append(_candidate(relay, live))
        return heard or silent or presumed

    def on_probation(self, monotonic_s: float, *, active_kid: str) -> list[RelayCandidate]:
        """Return the relays that nobody enrolled and that may get their small share."""
        return [
            _candidate(relay, _no_book)
            for relay in self._relays
            if relay.record.is_stranger
            and relay.status is not None
            and active_kid in relay.status.held_kids
            and self._state(relay, monotonic_s) is RelayState.PROBATION
        ]

    def infos(self, monotonic_s: float) -> list[RelayInfo]:
        """Return all rows of ``GET /v1/relays`` by relay id."""
        relays = sorted(self._relays, key=lambda relay: relay.record.relay_id)
        return [self._info(relay, monotonic_s) for relay in relays]

    def seen_infos(self, monotonic_s: float) -> list[RelayInfo]:
        """Return the rows of the relays whose state this process knows.

        One that is only presumed alive is left out as long as it may still be: its state is what
        it was.
        """
        return [
            self._info(relay, monotonic_s)
            for relay in self._relays
            if not (relay.presumed and self._alive(relay, monotonic_s))
        ]

    def info(self, relay_id: str, monotonic_s: float) -> RelayInfo:
        """Return one row, of the relay that `find` finds.

        Raises:
            RefusedError: ``unknown_relay`` or ``ambiguous_relay``.
        """
        return self._info(self._relays.find(relay_id), monotonic_s)

    def count_by_state(self, monotonic_s: float) -> Counter[RelayState]:
        """Return the number of relays in each state."""
        return Counter(self._state(relay, monotonic_s) for relay in self._relays)

    def count_by_enrolment(self) -> Counter[Enrolment]:
        """Return the number of relays that came in by each way."""
        return Counter(relay.record.enrolment for relay in self._relays)

    def heartbeat_ages_s(self, *, now_s: int, monotonic_s: float) -> dict[RelayState, int]:
        """Return the age of the oldest sign of life in each state, without deregistered relays."""
        ages: dict[RelayState, int] = {}
        for relay in self._relays:
            record, status = relay.record, relay.status
            if record.token_hash is None:
                continue
            heard_s = max(record.last_heartbeat_at_s, record.registered_at_s)
            age_s = max(0, now_s - (heard_s if status is None else status.at_s))
            state = self._state(relay, monotonic_s)
            ages[state] = max(ages.get(state, 0), age_s)
        return ages

    def pool_sessions(self, monotonic_s: float) -> tuple[int, int]:
        """Return the sessions that reachable relays reported, and the room of ACTIVE relays.

        What strangers say of themselves is not in it.
        """
        held = room = 0
        for relay in self._relays:
            if relay.record.is_stranger:
                continue
            state = self._state(relay, monotonic_s)
            if state is not RelayState.OFFLINE and relay.status is not None:
                held += relay.status.active_sessions
            if state is RelayState.ACTIVE:
                room += relay.record.max_sessions
        return held, room

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

    def _voters(self, monotonic_s: float) -> Iterator[KnownRelay]:
        for relay in self._relays:
            if not relay.record.is_stranger and self.serves_sessions(
                relay.record.relay_id, monotonic_s
            ):
                yield relay

    def _known(self, relay_id: str) -> KnownRelay:
        relay = self._relays.get(relay_id)
        if relay is None:
            raise RefusedError(ErrorCode.UNKNOWN_RELAY, "no relay with this id; register it")
        return relay

    def _authenticated(self, relay_id: str, token: str | None) -> KnownRelay:
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

    def _alive(self, relay: KnownRelay, monotonic_s: float) -> bool:
        return monotonic_s - relay.seen_s <= self._offline_after_s

    def _state(self, relay: KnownRelay, monotonic_s: float) -> RelayState:
        alive = not relay.presumed and self._alive(relay, monotonic_s)
        return rules.state_now(
            relay.record,
            relay.status,
            alive=alive,
            reached=relay.condition.is_reached,
            degraded=relay.condition.is_degraded,
        )

    @staticmethod
    def _is_only_silent(relay: KnownRelay) -> bool:
        return relay.condition.is_only_silent and not relay.record.is_stranger

    def _info(self, relay: KnownRelay, monotonic_s: float) -> RelayInfo:
        state, condition = self._state(relay, monotonic_s), relay.condition
        info = rules.relay_info(relay.record, relay.status, state)
        return replace(
            info,
            faults=condition.faults() if state in _WITH_FAULTS else (),
            probe_loss_pct=_rounded(condition.verdict.loss_pct()),
            probe_rtt_ms=_rounded(condition.verdict.rtt_ms()),
            clock_ahead_s=_rounded(condition.heartbeats.clock_ahead_s),
            rejects_last_minute=condition.heartbeats.rejects_last_minute,
        )


def _no_book(_relay_id: str) -> LiveLeases:
    return LiveLeases()


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _candidate(relay: KnownRelay, live: Callable[[str], LiveLeases]) -> RelayCandidate:
    status = relay.status
    proven = live(relay.record.relay_id).proven
    relay.proven_peak = max(relay.proven_peak, proven)
    return RelayCandidate(
        relay_id=relay.record.relay_id,
        region=relay.record.region,
        load_pct=status.load_pct if status else 0.0,
        packet_loss_pct=relay.condition.loss_pct(status),
        active_sessions=status.active_sessions if status else 0,
        max_sessions=relay.record.max_sessions,
        recent_picks=relay.recent_picks,
        proven_sessions=proven,
        proven_peak=relay.proven_peak,
    )
