"""Early signs: load, the way of revocations, disks, errors of our own."""

from wavry_peer.protocol.relay_terms import MasterLinkState, RelayState

from .facts import Counters, RelayFacts, SystemFacts
from .finding import GATEWAY, MASTER, NETWORK, RELAY, Finding, Layer, Verdict, finding
from .relay_checks import link_fault

__all__ = ["check_capacity", "check_errors", "check_revocations"]

NEARLY_FULL_PCT = 90.0


def check_capacity(facts: SystemFacts) -> list[Finding]:
    """Check that no relay is nearly full, sheds load or is flooded."""
    return [
        finding(RELAY, "capacity", relay.name, *verdict)
        for relay in facts.relays
        if (verdict := _load(relay)) is not None
    ]


def _load(relay: RelayFacts) -> tuple[Verdict, str, str] | None:
    row, health = relay.row, relay.health
    if health is not None and health.shedding:
        return (
            "warn",
            f"it sheds load ({', '.join(health.shedding)}): new sessions get SESSION_FULL",
            "add relays, or raise the limit that is nearly used up",
        )
    if health is not None and health.cookie_gates:
        return (
            "warn",
            f"{health.cookie_gates} workers want cookies: a flood of leases",
            (
                "compare wavry_relay_leases_presented_total with "
                "WAVRY_RELAY_COOKIE_AT_VERIFIES_PER_S; `wavryctl blocks list`"
            ),
        )
    if row is not None and row.state != RelayState.OFFLINE:
        share = f"{row.active_sessions} of {row.max_sessions} sessions, load {row.load_pct:.0f} %"
        used_pct = max(row.load_pct, 100 * row.active_sessions / max(1, row.max_sessions))
        if used_pct >= NEARLY_FULL_PCT:
            return "warn", share, "add relays before it is full"
        return "ok", share, ""
    if health is not None and health.relay_id:
        sessions = health.sessions
        return "ok", f"{sessions.active + sessions.waiting} of {sessions.max} sessions", ""
    return None


def check_revocations(facts: SystemFacts) -> list[Finding]:
    """Check that revocations reach each relay at once and stay on its disk."""
    rows = () if facts.revocations is None else facts.revocations.relays
    connected = {row.relay_id: row.connected for row in rows}
    findings = []
    for relay in facts.relays:
        health = relay.health
        if health is not None and not health.revocations.saved:
            findings.append(
                finding(
                    RELAY, "disk", relay.name, "warn",
                    "its disk does not take revocations: they hold until it restarts",
                    "free the disk of its state directory",
                )
            )  # fmt: skip
        if health is None and relay.name not in connected:
            continue
        if relay.is_banned:
            continue
        if relay.row is not None and relay.row.state == RelayState.OFFLINE and health is None:
            continue
        if health is not None and not health.relay_id:
            continue
        open_stream = health.master.events if health is not None else connected[relay.name]
        broken = health is not None and health.master.state in (
            MasterLinkState.REGISTERING,
            MasterLinkState.FAILING,
        )
        findings.append(
            finding(RELAY, "revocations", relay.name, "ok", "its event stream is open")
            if open_stream
            else finding(
                NETWORK, "revocations", relay.name, "warn",
                "its event stream is closed: revocations take up to 30 s",
                "look for event_stream_failed in its log; does a proxy cut WebSockets?",
                link_fault(relay) if broken else "",
            )
        )  # fmt: skip
    return findings


def check_errors(facts: SystemFacts) -> list[Finding]:
    """Check that no service meets errors of its own."""
    watched: list[tuple[str, Layer, tuple[Counters | None, Counters | None]]] = [
        ("master", MASTER, facts.master.counters),
        ("gateway", GATEWAY, facts.gateway.counters),
        *((relay.name, RELAY, relay.counters) for relay in facts.relays),
    ]
    findings = []
    for name, layer, (before, after) in watched:
        if before is None or after is None:
            continue  # Not reached, or its metrics are for others: that is told elsewhere.
        count, risen = after["errors"], after["errors"] - before["errors"]
        what = "requests ended in an error" if layer != RELAY else "packets ended in an error"
        verdict: Verdict = "fail" if risen > 0 else "warn" if count else "ok"
        findings.append(
            finding(
                layer, "errors", name, verdict,
                f"{count:.0f} {what} of its own since its start, {risen:.0f} while we watched"
                if count
                else "none",
                "" if verdict == "ok" else "look for unhandled_error in its log and report it",
            )
        )  # fmt: skip
        restarts = after.get("restarts", 0) - before.get("restarts", 0)
        if restarts > 0:
            findings.append(
                finding(
                    layer, "workers", name, "fail",
                    f"{restarts:.0f} workers were replaced while we watched",
                    "its log names why they died",
                )
            )  # fmt: skip
    return findings
