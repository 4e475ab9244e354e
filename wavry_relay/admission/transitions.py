"""The one place where a slot changes its state: counts each step and tells the log.

Ordinary steps are debug lines, ends are info lines with their cause.  A session is named by a tag
under the relay's boot key, which means nothing elsewhere.  Where the level lets no line through, a
step costs one look at a word of the control block; where a whole relay ends at once (a revoked
key), only so many lines a second are written and the next one says how many were left out.
"""

from typing import Final

from wavry_peer.service.clock import Instant
from wavry_relay.shm.control import DEBUG_LEVEL, INFO_LEVEL
from wavry_relay.shm.counters import CounterRow
from wavry_relay.shm.layout import SESSION_ACTIVE
from wavry_relay.shm.lease_states import TRANSITIONS, LeaseState, counter_name
from wavry_relay.shm.sessions import SessionRecord
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
        if self._line_tat_ns > now.mono_ns + _NS:
            self._left_out += 1
            return
        self._line_tat_ns = max(self._line_tat_ns, now.mono_ns) + _NS // LINES_PER_S
        log = worker_log(self._control.log_level)
        facts: dict[str, str | int] = {
            "session": f"{self._tags.pair(*words):016x}",
            "role": "server" if role else "client",
            "before": str(before),
            "after": str(after),
        }
        if cause:
            facts["cause"] = cause
        if self._left_out:
            facts["lines_left_out"], self._left_out = self._left_out, 0
        (log.info if after in _ENDS else log.debug)("lease_transition", **facts)
