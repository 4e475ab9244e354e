"""Sums of a run: every kind of request, and media.  Processes send each other theirs."""

from typing import Final

import msgspec

from loadtest.media.histogram import Histogram
from loadtest.media.meter import MediaTotals

__all__ = ["RequestTotals", "Totals"]

MAX_REASONS: Final = 50
"""Different reasons of failures that are told apart for one kind of request."""
OTHER_REASONS: Final = "other reasons"


class RequestTotals(msgspec.Struct):
    """One kind of request.

    Attributes:
        count: all, failed ones among them.
        failures: failed ones.
        reasons: failures by reason.
        latency: of all.
    """

    count: int = 0
    failures: int = 0
    reasons: dict[str, int] = msgspec.field(default_factory=dict)
    latency: Histogram = msgspec.field(default_factory=Histogram)

    def add(self, latency_ns: int, failure: str | None = None) -> None:
        """Count one request; `failure` is a short reason without anything secret."""
        self.count += 1
        self.latency.add(latency_ns)
        if failure is not None:
            self.failures += 1
            self._reason(failure, 1)

    def merge(self, other: "RequestTotals") -> None:
        """Add the sums of others."""
        self.count += other.count
        self.failures += other.failures
        self.latency.merge(other.latency)
        for reason, count in other.reasons.items():
            self._reason(reason, count)

    @property
    def error_pct(self) -> float:
        """Failed ones in percent of all."""
        return 100 * self.failures / self.count if self.count else 0.0

    def _reason(self, reason: str, count: int) -> None:
        if reason not in self.reasons and len(self.reasons) >= MAX_REASONS:
            reason = OTHER_REASONS
        self.reasons[reason] = self.reasons.get(reason, 0) + count


class Totals(msgspec.Struct):
    """Everything that a process has measured.

    Attributes:
        requests: by kind, e.g. ``POST /auth/login`` or ``UDP frame one-way``.
        media: of all streams.
    """

    requests: dict[str, RequestTotals] = msgspec.field(default_factory=dict)
    media: MediaTotals = msgspec.field(default_factory=MediaTotals)

    def request(self, kind: str) -> RequestTotals:
        """Return the sums of one kind of request, made if there are none yet."""
        found = self.requests.get(kind)
        if found is None:
            found = self.requests[kind] = RequestTotals()
        return found

    def merge(self, other: "Totals") -> None:
        """Add the sums of others."""
        for kind, sums in other.requests.items():
            self.request(kind).merge(sums)
        self.media.merge(other.media)

    def clear(self) -> None:
        """Begin anew; sums that somebody holds (a stream's) stay in place."""
        self.requests.clear()
        self.media.clear()
