"""How a run went on from moment to moment: what a step or a spike did, and whether it passed."""

import time
from collections.abc import Callable
from typing import Final

import gevent

from loadtest.media.histogram import Histogram
from loadtest.media.stream import ONE_WAY

from .results import Moment
from .totals import Totals

__all__ = ["MIN_INTERVAL_S", "Timeline"]

MAX_MOMENTS: Final = 120
MIN_INTERVAL_S: Final = 1.0


class Timeline:
    """Takes the difference of the totals again and again.

    Args:
        totals: which grow.
        users: gives how many there are now.
        run_s: length of the run, or None where nobody knows.
        min_interval_s: workers of a master report only every 3 s.

    Attributes:
        moments: so far.
    """

    def __init__(
        self,
        totals: Totals,
        users: Callable[[], int],
        run_s: float | None,
        min_interval_s: float = MIN_INTERVAL_S,
    ) -> None:
        self.moments: list[Moment] = []
        self._totals = totals
        self._users = users
        self._interval_s = max(min_interval_s, (run_s or MAX_MOMENTS) / MAX_MOMENTS)
        self._greenlet: gevent.Greenlet[[], None] | None = None
        self._began_s = self._last_s = 0.0
        self._requests = self._failures = 0
        self._one_way = Histogram()
        self._late = Histogram()

    def start(self) -> None:
        """Begin; once."""
        if self._greenlet is None:
            self._began_s = self._last_s = time.monotonic()
            self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """End; again it does nothing."""
        if self._greenlet is not None:
            self._greenlet.kill()

    def _run(self) -> None:
        while len(self.moments) < 2 * MAX_MOMENTS:
            gevent.sleep(self._interval_s)
            self._take(time.monotonic())

    def _take(self, now_s: float) -> None:
        totals = self._totals
        requests = sum(sums.count for sums in totals.requests.values())
        failures = sum(sums.failures for sums in totals.requests.values())
        sums = totals.requests.get(ONE_WAY)
        one_way = sums.latency.copy() if sums else Histogram()
        late = totals.media.send_late.copy()
        seconds = now_s - self._last_s
        frames = one_way.since(self._one_way)
        self.moments.append(
            Moment(
                time_s=round(now_s - self._began_s, 2),
                users=self._users(),
                requests_per_s=round((requests - self._requests) / seconds, 2),
                failures=failures - self._failures,
                frames_per_s=round(frames.count / seconds, 2),
                one_way_p99_ms=frames.percentile_ms(0.99),
                send_late_p99_ms=late.since(self._late).percentile_ms(0.99),
            )
        )
        self._last_s = now_s
        self._requests, self._failures = requests, failures
        self._one_way, self._late = one_way, late
