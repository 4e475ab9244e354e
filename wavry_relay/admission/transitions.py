"""The one place where a slot changes its state: counts each step and tells the log.

Ordinary steps are debug lines, ends are info lines with their cause.  A session is named by a tag
under the relay's boot key, which means nothing elsewhere.  Where the level lets no line through, a
step costs one look at a word of the control block; where a whole relay ends at once (a revoked
key), only so many lines a second are written and the next one says how many were left out.
"""

from typing import Final

from wavry_peer.protocol.packets import Header
from wavry_peer.service.clock import Instant
from wavry_relay.shm.control import DEBUG_LEVEL, INFO_LEVEL
from wavry_relay.shm.counters import CounterRow
from wavry_relay.shm.layout import SESSION_ACTIVE
from wavry_relay.shm.lease_states import TRANSITIONS, LeaseState, counter_name
from wavry_relay.shm.sessions import SessionRecord, session_words
from wavry_relay.shm.tables import Tables
from wavry_relay.worker_log import worker_log

__all__ = ["IllegalTransitionError", "LeaseTransitions", "state_of"]

LINES_PER_S: Final = 100
"""A line costs a worker 50 µs: half a per cent of its time at most."""

_NS: Final = 1_000_000_000
_ENDS: Final = frozenset((LeaseState.EXPIRED, LeaseState.REVOKED, LeaseState.CLOSED))


class IllegalTransitionError(Exception):
    """A step that is not in the table: a mistake of the relay, never of a peer."""


def state_of(record: SessionRecord) -> LeaseState:
    """Return the state of the taken slots of a record."""
    return LeaseState.ACTIVE if record.state == SESSION_ACTIVE else LeaseState.ACCEPTED


class LeaseTransitions:
    """Counts and tells the steps of one worker.

    Args:
        tables: shared with the other workers.
        counters: row of this worker.
        strict: raise on a step that is not in the table, as tests want it; a relay counts it as an
            internal error and goes on.
    """

    def __init__(self, tables: Tables, counters: CounterRow, *, strict: bool = False) -> None:
        self._control = tables.control
        self._tags = tables.tags
        self._counters = counters
        self._strict = strict
        self._names = {pair: counter_name(*pair) for pair in TRANSITIONS}
        self._line_tat_ns = 0
        self._left_out = 0

    def take(
        self,
        before: LeaseState,
        after: LeaseState,
        words: tuple[int, int],
        now: Instant,
        *,
        role: int,
        cause: str = "",
    ) -> None:
        """Count a step, and tell it where the log level wants to hear of it.

        Args:
            before: state that is left.
            after: state that is entered.
            words: the session's id, as `session_words`.
            now: present moment.
            role: whose slot it is.
            cause: why it ended, e.g. ``idle``; empty for ordinary steps.

        Raises:
            IllegalTransitionError: the table has no such step, and `strict` is set.
        """
        name = self._names.get((before, after))
        if name is None:
            self._refuse(before, after)
            return
        self._counters.add(name)
        level = self._control.log_level
        if level <= (INFO_LEVEL if after in _ENDS else DEBUG_LEVEL):
            self._tell(before, after, words, now, role, cause)

    def tell_admission(
        self, header: Header, role: int, request_id: str | None, now: Instant, refused: str = ""
    ) -> None:
        """Tell how a lease with a good signature fared, where the log level wants to hear of it.

        Args:
            header: of the packet that brought it.
            role: whose lease it is.
            request_id: of the request that it was issued for.
            now: present moment.
            refused: name of the reason, empty where it was accepted.
        """
        level = self._control.log_level
        if level > (INFO_LEVEL if refused else DEBUG_LEVEL) or not self._may_tell(now):
            return
        log = worker_log(level)
        facts = self._facts(session_words(header.session_id), role)
        if request_id:
            facts["request_id"] = request_id
        if refused:
            log.info("lease_refused", **facts, reason=refused)
        else:
            log.debug("lease_accepted", **facts)

    def _refuse(self, before: LeaseState, after: LeaseState) -> None:
        if self._strict:
            raise IllegalTransitionError(f"{before} → {after}")
        self._counters.add("internal_errors")
        worker_log().error(
            "illegal_lease_transition",
            before=str(before),
            after=str(after),
            cause="a defect of the relay",
            next_step="report this line; the session goes on",
        )

    def _tell(
        self,
        before: LeaseState,
        after: LeaseState,
        words: tuple[int, int],
        now: Instant,
        role: int,
        cause: str,
    ) -> None:
        if not self._may_tell(now):
            return
        log = worker_log(self._control.log_level)
        facts = {**self._facts(words, role), "before": str(before), "after": str(after)}
        if cause:
            facts["cause"] = cause
        (log.info if after in _ENDS else log.debug)("lease_transition", **facts)

    def _may_tell(self, now: Instant) -> bool:
        if self._line_tat_ns > now.mono_ns + _NS:
            self._left_out += 1
            return False
        self._line_tat_ns = max(self._line_tat_ns, now.mono_ns) + _NS // LINES_PER_S
        return True

    def _facts(self, words: tuple[int, int], role: int) -> dict[str, str | int]:
        facts: dict[str, str | int] = {
            "session": f"{self._tags.pair(*words):016x}",
            "role": "server" if role else "client",
        }
        if self._left_out:
            facts["lines_left_out"], self._left_out = self._left_out, 0
        return facts
