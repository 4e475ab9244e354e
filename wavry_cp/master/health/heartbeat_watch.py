"""Why a relay gets no new sessions although it is there: what its heartbeats show, with patience.

A fault begins when it was seen in so many heartbeats in a row, and ends when it was missing in
some (`_PATIENCE`), so that a single report does not flap.  Clock and loss have two thresholds
besides.  What the master's own sessions show is in `probe_verdict`.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from wavry_cp.master.relays.rules import RelayReport
from wavry_peer.protocol.relay_terms import DegradedCause

__all__ = ["HeartbeatWatch"]

_PATIENCE: Final = {
    # Told at once when they die and when they run: callers may wait for them.
    DegradedCause.WORKERS: (1, 1),
    DegradedCause.DISK: (1, 2),
    DegradedCause.CLOCK: (2, 2),
    DegradedCause.LOSS: (3, 3),
}
"""Heartbeats after which a fault begins and ends."""
CLOCK_BEGINS_S: Final = 15.0
CLOCK_ENDS_S: Final = 8.0
"""A relay forgives 30 s to one side and nothing to the other: if it is ahead, leases end early."""
LOSS_BEGINS_PCT: Final = 10.0
LOSS_ENDS_PCT: Final = 4.0
MINUTE_S: Final = 60


class HeartbeatWatch:
    """What the heartbeats of one relay show.

    Attributes:
        causes: why it is DEGRADED, with a text for people; empty where all is well.
        clock_ahead_s: seconds that its clock is ahead of ours; None where it did not say.
        rejects_last_minute: leases that it refused, by reason, in about the last minute.
    """

    def __init__(self) -> None:
        self.causes: dict[DegradedCause, str] = {}
        self.clock_ahead_s: float | None = None
        self.rejects_last_minute: dict[str, int] = {}
        self._streaks: Counter[DegradedCause] = Counter()
        self._rejects: list[tuple[int, Mapping[str, int]]] = []

    def take(self, report: RelayReport, *, clock_ahead_s: float | None) -> None:
        """Take a heartbeat."""
        self.clock_ahead_s = clock_ahead_s
        self._count_rejects(report)
        found = self._found(report)
        for cause, (begins, ends) in _PATIENCE.items():
            if cause in self.causes:
                self._go_on(cause, found.get(cause), ends)
            elif cause in found:
                self._streaks[cause] += 1
                if self._streaks[cause] >= begins:
                    self.causes[cause] = found[cause]
                    del self._streaks[cause]
            else:
                self._streaks.pop(cause, None)

    def _go_on(self, cause: DegradedCause, text: str | None, ends: int) -> None:
        if text is not None:
            self.causes[cause] = text
            self._streaks.pop(cause, None)
            return
        self._streaks[cause] += 1
        if self._streaks[cause] >= ends:
            del self.causes[cause], self._streaks[cause]

    def _found(self, report: RelayReport) -> dict[DegradedCause, str]:
        found: dict[DegradedCause, str] = {}
        if report.workers_missing:
            found[DegradedCause.WORKERS] = (
                f"{report.workers_missing} of its {report.workers_wanted} workers are missing"
            )
        if report.disk_failing:
            found[DegradedCause.DISK] = "its disk does not take revocations or keys"
        loss_pct = report.packet_loss_pct
        if loss_pct > (LOSS_ENDS_PCT if DegradedCause.LOSS in self.causes else LOSS_BEGINS_PCT):
            found[DegradedCause.LOSS] = f"it drops {loss_pct:.0f} % of what it should forward"
        ahead_s = self.clock_ahead_s
        limit_s = CLOCK_ENDS_S if DegradedCause.CLOCK in self.causes else CLOCK_BEGINS_S
        if ahead_s is not None and abs(ahead_s) > limit_s:
            way = "ahead of" if ahead_s > 0 else "behind"
            found[DegradedCause.CLOCK] = f"its clock is {abs(ahead_s):.0f} s {way} the master's"
        return found

    def _count_rejects(self, report: RelayReport) -> None:
        """Keep as much of the past as a minute needs; counters of a new process begin again."""
        now_s, told = report.at_s, dict(report.rejects)
        if self._rejects and any(
            told.get(reason, 0) < count for reason, count in self._rejects[-1][1].items()
        ):
            self._rejects.clear()
        self._rejects.append((now_s, told))
        while len(self._rejects) > 1 and now_s - self._rejects[1][0] >= MINUTE_S:
            del self._rejects[0]
        first = self._rejects[0][1]
        grown = {reason: count - first.get(reason, 0) for reason, count in told.items()}
        self.rejects_last_minute = {reason: count for reason, count in grown.items() if count}
