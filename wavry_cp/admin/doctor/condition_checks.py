"""What the master found out about relays: by its own sessions, and by their heartbeats."""

from typing import Final

from wavry_peer.protocol import constants as c
from wavry_peer.protocol.relay_terms import DegradedCause, RelayState

from .facts import RelayFacts, SystemFacts
from .finding import NETWORK, RELAY, Finding, Layer, Verdict, finding
from .relay_checks import relay_down

__all__ = ["check_conditions", "check_rejects"]

_NEXT_STEPS: Final = {
    DegradedCause.CLOCK: "set the clock of its host: `timedatectl`",
    DegradedCause.DISK: "free the disk of its state directory; do not restart it before",
    DegradedCause.LOSS: "is its host or its network full? `wavryctl relays show` has the figures",
    DegradedCause.PROBES: "open its UDP port for the master's host; look for what drops packets",
    DegradedCause.WORKERS: "its log names why workers die",
}
_ALARMING: Final = frozenset(
    reason.name.lower()
    for reason in (
        c.RejectReason.EXPIRED,
        c.RejectReason.NOT_YET_VALID,
        c.RejectReason.UNKNOWN_KEY,
        c.RejectReason.WRONG_RELAY,
    )
)
"""Reasons that no honest peer of a healthy system meets often."""
MANY: Final = 10


def check_conditions(facts: SystemFacts) -> list[Finding]:
    """Check that no relay is there and gets nothing new."""
    findings = []
    for relay in facts.relays:
        row = relay.row
        if row is None or row.state not in (
            RelayState.NEW, RelayState.ACTIVE, RelayState.PROBATION, RelayState.DEGRADED,
        ):  # fmt: skip
            continue
        if not row.faults:
            if row.state in (RelayState.ACTIVE, RelayState.PROBATION):
                findings.append(_condition(relay, "ok", RELAY, _figures(relay)))
            continue
        for fault in row.faults:
            cause = DegradedCause(fault.cause) if fault.cause in _KNOWN else None
            if cause is DegradedCause.WORKERS:
                continue  # `relay_checks` tells of them.
            findings.append(
                finding(
                    NETWORK if cause in (DegradedCause.PROBES, DegradedCause.LOSS) else RELAY,
                    "condition",
                    relay.name,
                    "fail",
                    f"{row.state}: {fault.text}",
                    _NEXT_STEPS[cause] if cause else "its log may say more",
                    _explained_by(relay, cause),
                )
            )
    return findings


_KNOWN: Final = frozenset(DegradedCause)
_NO_ANSWER: Final = ("silent", "closed")


def _explained_by(relay: RelayFacts, cause: DegradedCause | None) -> str:
    if relay.missed_heartbeat:
        return relay_down(relay)
    if cause is DegradedCause.CLOCK:
        return f"{relay.name}: clock"
    unanswered = cause is DegradedCause.PROBES and relay.udp_reach in _NO_ANSWER
    return f"{relay.name}: udp" if unanswered else ""


def _figures(relay: RelayFacts) -> str:
    row = relay.row
    if row is None or row.probe_rtt_ms is None:
        return "the master has nothing against it; it was not probed yet"
    lost = "" if row.probe_loss_pct is None else f", {row.probe_loss_pct:g} % lost"
    return f"sessions of the master get through it: {row.probe_rtt_ms:g} ms{lost}"


def _condition(relay: RelayFacts, verdict: Verdict, layer: Layer, evidence: str) -> Finding:
    return finding(layer, "condition", relay.name, verdict, evidence)


def check_rejects(facts: SystemFacts) -> list[Finding]:
    """Check by heartbeats that relays do not refuse leases that should be good."""
    findings = []
    for relay in facts.relays:
        row = relay.row
        if row is None or row.clock_ahead_s is None or row.state == RelayState.OFFLINE:
            continue  # It does not tell.
        refused = ", ".join(
            f"{count} {reason.upper()}" for reason, count in sorted(row.rejects_last_minute.items())
        )
        alarming = sum(
            count for reason, count in row.rejects_last_minute.items() if reason in _ALARMING
        )
        findings.append(
            finding(
                RELAY,
                "rejects",
                relay.name,
                "warn" if alarming >= MANY else "ok",
                f"leases refused in the last minute: {refused or 'none'}",
                "compare clocks and keys: `wavryctl relays show`, `wavryctl keys status`"
                if alarming >= MANY
                else "",
            )
        )
    return findings
