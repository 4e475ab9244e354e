"""What happened to sessions lately, for an operator who looks on.

Kept in memory, the newest only: a window, not a log; what an operator did is in the audit log.
"""

import itertools
import secrets
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from wavry_cp.app.metric_families import LabelledCounter

from .rules import CallSession

__all__ = ["SessionEvent", "SessionEvents"]

KEPT: Final = 2000


class SessionEvent(NamedTuple):
    """One step of a session; `number` grows by one, `at_s` is unix seconds."""

    number: int
    at_s: int
    event: str
    session: CallSession


class SessionEvents:
    """Counts the steps of sessions and remembers the newest.

    Attributes:
        log_id: of this process: its numbers begin anew.
        last: number of the newest.
    """

    def __init__(self, counter: LabelledCounter, now_s: Callable[[], int]) -> None:
        self.log_id: Final = secrets.token_hex(8)
        self.last = 0
        self._counter = counter
        self._now_s = now_s
        self._kept: deque[SessionEvent] = deque(maxlen=KEPT)

    def note(self, event: str, session: CallSession) -> None:
        """Take a step that was written.

        Args:
            event: label of the metric of session events.
            session: as it is now.
        """
        self._counter.labels(event).inc()
        self.last += 1
        self._kept.append(SessionEvent(self.last, self._now_s(), event, session))

    def after(self, number: int, limit: int) -> tuple[SessionEvent, ...]:
        """Return the oldest of those behind a number."""
        newer = (event for event in self._kept if event.number > number)
        return tuple(itertools.islice(newer, limit))
