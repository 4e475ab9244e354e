"""What the probes of a relay's endpoints say together, with patience.

One failed probe says little: a datagram is lost, a worker of the relay is being replaced.  Three
in a row, seconds apart, are believed, and two good ones in a row end that.  Loss is counted over
the last `WINDOW` probes and has two thresholds.  An endpoint that never let a session through
counts as not reached from the beginning: there is nothing to be patient with.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from wavry_peer.protocol.relay_terms import ProbeFault

from .probe_outcome import ProbeOutcome

__all__ = ["EndpointVerdict", "ProbeVerdict"]

FAILURES_BELIEVED: Final = 3
PASSES_BELIEVED: Final = 2
WINDOW: Final = 5
LOSS_MIN_DATAGRAMS: Final = 36
"""Three probes: one lost datagram of a single probe is 8 %."""
LOSS_BEGINS_PCT: Final = 15.0
LOSS_ENDS_PCT: Final = 5.0
RETRY_SHARE: Final = 1 / 12
FAILING_SHARE: Final = 1 / 4
"""Waits as shares of the interval: after a first failure, and while an endpoint is failing.  With
60 s: 72 s at most until a probe finds it, 5 s and 5 s to be sure; under two minutes in all."""
FIRST_RETRY_S: Final = 1.0


@dataclass(slots=True)
class EndpointVerdict:
    """One endpoint.

    Attributes:
        has_passed: a session came through at least once.
        failing: believed to be of no use now.
        fault: of the last failed probe, None after a good one.
        text: of `fault`.
        rtt_ms: of the last probe that measured it.
        unchecked: why it cannot be checked from here, empty where it can.
        in_doubt: the last probe failed, lost much, or says nothing: ask again soon.
    """

    has_passed: bool = False
    failing: bool = False
    fault: ProbeFault | None = None
    text: str = ""
    rtt_ms: float | None = None
    unchecked: str = ""
    in_doubt: bool = False
    _failures: int = 0
    _passes: int = 0
    _counts: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def take(self, outcome: ProbeOutcome) -> None:
        """Take the outcome of a probe."""
        lost = outcome.sent - outcome.arrived
        self.unchecked = "" if outcome.has_route else outcome.text
        self.in_doubt = outcome.has_route and (
            not outcome.passed or 100 * lost > LOSS_BEGINS_PCT * outcome.sent
        )
        if not outcome.is_conclusive:
            return
        self.fault, self.text = outcome.fault, outcome.text
        if outcome.passed:  # What drops all of a kind has a better name than loss.
            self._counts.append((outcome.sent, outcome.arrived))
        if outcome.rtt_ms is not None:
            self.rtt_ms = outcome.rtt_ms
        if outcome.passed:
            self._passes, self._failures = self._passes + 1, 0
            self.failing = self.failing and self._passes < PASSES_BELIEVED
            self.has_passed = True
        else:
            self._passes, self._failures = 0, self._failures + 1
            self.failing = self.failing or self._failures >= FAILURES_BELIEVED

    @property
    def is_silent(self) -> bool:
        """The last probe had no answer of any kind."""
        return self.fault is ProbeFault.SILENT

    @property
    def failures(self) -> int:
        """Failed probes in a row."""
        return self._failures

    def datagrams(self) -> tuple[int, int]:
        """Return the payload datagrams sent and arrived in the last probes."""
        return sum(sent for sent, _ in self._counts), sum(arrived for _, arrived in self._counts)


class ProbeVerdict:
    """All endpoints of one relay.

    Args:
        endpoints: canonical.
        presumed: a master before this one, or this one, let the relay have sessions with these
            very endpoints: that holds until a probe says otherwise.
        strict: what cannot be checked from here does not count: for relays that nobody enrolled.
    """

    def __init__(
        self, endpoints: Iterable[str], *, presumed: bool = False, strict: bool = False
    ) -> None:
        self._strict = strict
        self.endpoints = {endpoint: EndpointVerdict() for endpoint in endpoints}
        self._presumed = presumed
        self._lossy = False

    @property
    def reached(self) -> bool:
        """Every endpoint that can be checked from here let a session through, at least once."""
        checked = [seen for seen in self.endpoints.values() if self._strict or not seen.unchecked]
        if any(seen.has_passed for seen in checked):
            return all(seen.has_passed or self._presumed for seen in checked)
        return self._presumed

    def take(self, outcome: ProbeOutcome) -> None:
        """Take the outcome of a probe; one of an endpoint that is gone meanwhile is dropped."""
        seen = self.endpoints.get(outcome.endpoint)
        if seen is None:
            return
        seen.take(outcome)
        loss_pct = self.loss_pct()
        if loss_pct is not None:
            self._lossy = loss_pct > (LOSS_ENDS_PCT if self._lossy else LOSS_BEGINS_PCT)

    def loss_pct(self) -> float | None:
        """Return the share of datagrams that were lost, None where too few were sent."""
        counts = [seen.datagrams() for seen in self.endpoints.values()]
        sent = sum(count[0] for count in counts)
        if sent < LOSS_MIN_DATAGRAMS:
            return None
        return 100 * (1 - sum(count[1] for count in counts) / sent)

    def rtt_ms(self) -> float | None:
        """Return the shortest time to the relay and back over any endpoint."""
        times_ms = [seen.rtt_ms for seen in self.endpoints.values() if seen.rtt_ms is not None]
        return min(times_ms, default=None)

    def failing(self) -> dict[str, EndpointVerdict]:
        """Return the endpoints that are of no use now."""
        return {name: seen for name, seen in self.endpoints.items() if seen.failing}

    def fault_text(self) -> str:
        """Return which endpoints fail how, empty where none does."""
        return "; ".join(f"{name} {seen.text}" for name, seen in self.failing().items())

    def unreached_text(self) -> str:
        """Return why the relay is not reached yet."""
        waiting = [
            f"{name} {seen.unchecked or seen.text or 'is being tried'}"
            for name, seen in self.endpoints.items()
            if not seen.has_passed
        ]
        return "not reached yet: " + "; ".join(waiting)

    def loss_text(self) -> str:
        """Return how much is lost, empty where that is bearable."""
        loss_pct = self.loss_pct()
        if not self._lossy or loss_pct is None:
            return ""
        return f"{loss_pct:.0f} % of the datagrams of the master's own sessions are lost"

    def unproved(self) -> frozenset[str]:
        """Return the endpoints that never let a session through."""
        if self._presumed:
            return frozenset()
        return frozenset(name for name, seen in self.endpoints.items() if not seen.has_passed)

    def only_silent(self) -> bool:
        """Whether all that is wrong is that endpoints which did answer do not any more."""
        failing = self.failing().values()
        return bool(failing) and all(
            seen.is_silent and (seen.has_passed or self._presumed) for seen in failing
        )

    def usable(self) -> tuple[str, ...]:
        """Return the endpoints that peers may be sent to: all, where none is known to be good."""
        good = tuple(
            name
            for name, seen in self.endpoints.items()
            if not seen.failing
            and (seen.has_passed or self._presumed or (seen.unchecked and not self._strict))
        )
        return good or (() if self._strict else tuple(self.endpoints))

    def next_in_s(self, interval_s: float) -> float:
        """Return how long to wait for the next probe of the relay."""
        seen = self.endpoints.values()
        if any(not verdict.has_passed and verdict.failures for verdict in seen):
            failures = max(verdict.failures for verdict in seen)
            return min(interval_s, FIRST_RETRY_S * 2.0 ** min(failures - 1, 16))
        if self._lossy or any(verdict.failing for verdict in seen):
            return interval_s * FAILING_SHARE
        if any(verdict.in_doubt for verdict in seen):
            return interval_s * RETRY_SHARE
        return interval_s
