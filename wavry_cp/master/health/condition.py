"""What this process found out about one relay: by its own sessions, and from its heartbeats."""

from collections.abc import Iterable

from wavry_cp.master.relays.rules import RelayReport
from wavry_peer.protocol.http.api import RelayFault
from wavry_peer.protocol.relay_terms import DegradedCause, ProbeFault

from .heartbeat_watch import HeartbeatWatch
from .probe_outcome import ProbeOutcome
from .probe_verdict import ProbeVerdict

__all__ = ["RelayCondition"]


class RelayCondition:
    """The condition of one relay at its present endpoints.

    Args:
        endpoints: canonical.
        presumed: it had sessions at these endpoints before; see `ProbeVerdict`.
        strict: see `ProbeVerdict`.
        is_probed: False where the operator switched probes off: then its word is taken.

    Attributes:
        verdict: of the probes.
        heartbeats: what they show.
    """

    def __init__(
        self,
        endpoints: Iterable[str],
        *,
        presumed: bool = False,
        strict: bool = False,
        is_probed: bool = True,
    ) -> None:
        self.verdict = ProbeVerdict(endpoints, presumed=presumed, strict=strict)
        self.heartbeats = HeartbeatWatch()
        self._is_probed = is_probed

    @property
    def is_reached(self) -> bool:
        """Sessions get through to it, as far as anybody looked."""
        return not self._is_probed or self.verdict.reached

    @property
    def is_degraded(self) -> bool:
        """It is there and should get nothing new."""
        verdict = self.verdict
        return bool(self.heartbeats.causes or verdict.failing() or verdict.loss_text())

    @property
    def is_only_silent(self) -> bool:
        """All that is wrong is that the master has no answer of it any more."""
        verdict = self.verdict
        return not self.heartbeats.causes and not verdict.loss_text() and verdict.only_silent()

    def take_probe(self, outcome: ProbeOutcome, *, is_full: bool) -> None:
        """Take the outcome of a probe; a relay that says it is full is excused for refusing."""
        if not (is_full and outcome.fault is ProbeFault.REFUSED):
            self.verdict.take(outcome)

    def faults(self) -> tuple[RelayFault, ...]:
        """Return why it is DEGRADED or still NEW, for people and programs."""
        verdict = self.verdict
        found = dict(self.heartbeats.causes)
        text = verdict.fault_text() or ("" if self.is_reached else verdict.unreached_text())
        if text:
            found[DegradedCause.PROBES] = text
        if verdict.loss_text():
            found[DegradedCause.LOSS] = verdict.loss_text()
        return tuple(RelayFault(cause=cause, text=found[cause]) for cause in sorted(found))

    def loss_pct(self, report: RelayReport | None) -> float:
        """Return the larger one of the loss that it reports and of what was measured."""
        said_pct = report.packet_loss_pct if report is not None else 0.0
        return max(said_pct, self.verdict.loss_pct() or 0.0)
