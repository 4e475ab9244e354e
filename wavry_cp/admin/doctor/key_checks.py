"""Keys: every relay holds the key that signs, and refuses no lease for want of one."""

from typing import Final

from wavry_peer.protocol.http.keys import KeysStatus
from wavry_peer.protocol.relay_terms import MasterLinkState

from .facts import RelayFacts, SystemFacts
from .finding import RELAY, Finding, Verdict
from .relay_checks import link_fault

__all__ = ["check_keys", "check_unknown_key"]

ROLLBACK: Final = "until it is repaired `wavryctl keys rollback` lets the key before sign again"


def check_keys(facts: SystemFacts) -> list[Finding]:
    """Check that every live relay holds the key set that the master publishes."""
    return [finding for relay in facts.relays for finding in _of_relay(relay, facts)]


def _of_relay(relay: RelayFacts, facts: SystemFacts) -> list[Finding]:
    held, serial = _held(relay, facts.keys)
    active, newest = facts.active_kid, _newest_serial(facts)
    if held is None or not active or relay.is_banned:
        return []  # Down, or nobody said: other findings tell.
    seen = f"serial {serial}, master {newest}"
    if serial > newest:
        return [
            _finding(
                relay,
                "fail",
                f"{seen}: the relay has a newer key set than the master",
                "the master runs on an old backup of keys.json: restore the newest one",
            )
        ]
    if active not in held:
        why, next_step = _why_lacking(relay)
        forced = facts.keys is not None and any(
            key.kid == active and key.forced for key in facts.keys.keys
        )
        return [
            _finding(
                relay,
                "fail",
                f"{seen}: the relay lacks the active key {active}"
                + (", which was forced to sign," if forced else "")
                + f" and rejects its leases as UNKNOWN_KEY{why}",
                f"{next_step}; {ROLLBACK}",
                consequence_of=link_fault(relay) if _link_is_broken(relay) else "",
            )
        ]
    if relay.health is not None and relay.health.keys.refused:
        return [
            _finding(
                relay,
                "fail",
                f"{seen}: it holds the active key, but refuses the newest document: "
                f"{relay.health.keys.refused}",
                "compare WAVRY_RELAY_ROOT_KEY with the root of `wavryctl keys status`",
            )
        ]
    if serial < newest:
        return [
            _finding(
                relay,
                "warn",
                f"{seen}: the relay holds the active key, but not the newest document",
                "wait for its next heartbeat; then look for keyset_refused in its log",
            )
        ]
    return [_finding(relay, "ok", f"{seen}, holds {len(held)} keys")]


def _held(relay: RelayFacts, status: KeysStatus | None) -> tuple[tuple[str, ...] | None, int]:
    """Return key ids and serial, by its own word or by that of its last heartbeat."""
    if relay.health is not None:
        return relay.health.keys.kids, relay.health.keys.serial
    rows = () if status is None else status.relays
    row = next((row for row in rows if row.relay_id == relay.name), None)
    return (None, 0) if row is None else (row.held_kids, row.keyset_serial)


def _newest_serial(facts: SystemFacts) -> int:
    if facts.keys is not None:
        return facts.keys.serial
    return 0 if facts.document is None else facts.document.serial


def _link_is_broken(relay: RelayFacts) -> bool:
    return relay.health is not None and relay.health.master.state in (
        MasterLinkState.REGISTERING,
        MasterLinkState.FAILING,
    )


def _why_lacking(relay: RelayFacts) -> tuple[str, str]:
    keys = None if relay.health is None else relay.health.keys
    if keys is not None and keys.refused:
        return (
            f"; it refuses the master's document: {keys.refused}",
            "compare WAVRY_RELAY_ROOT_KEY with the root of `wavryctl keys status`",
        )
    if keys is not None and keys.fetch_error:
        return (
            f"; it cannot fetch the document: {keys.fetch_error}",
            "let it reach /.well-known/wavry-keys.json of the master, through every proxy between",
        )
    return "", "look for keyset_refused or keyset_refresh_failed in its log"


def _finding(
    relay: RelayFacts,
    verdict: Verdict,
    evidence: str,
    next_step: str = "",
    consequence_of: str = "",
) -> Finding:
    return Finding(
        layer=RELAY,
        check="same key set",
        subject=relay.name,
        verdict=verdict,
        evidence=evidence,
        next_step=next_step,
        consequence_of=consequence_of,
    )


def check_unknown_key(facts: SystemFacts) -> list[Finding]:
    """Check that no relay rejects leases because it lacks the key that signed them."""
    return [_rejects(relay, facts.watch_s) for relay in facts.relays if relay.health is not None]


def _rejects(relay: RelayFacts, watch_s: float) -> Finding:
    before, after = relay.counters
    verdict: Verdict
    next_step = (
        "compare with `wavryctl keys status` which key this relay lacks; look for keyset_refused "
        "or keyset_refresh_failed in its log; `wavryctl keys rollback` ends the rejects"
    )
    if before is None or after is None:
        verdict, evidence = "unknown", "its /metrics do not answer"
        next_step = "check the ops URL, and that this host may read it"
    elif after["unknown_key"] > before["unknown_key"]:
        verdict = "fail"
        evidence = (
            f"UNKNOWN_KEY rejects rise: {after['unknown_key'] - before['unknown_key']:.0f} in "
            f"{watch_s:g} s, {after['unknown_key']:.0f} since its start"
        )
    elif after["unknown_key"]:
        verdict = "warn"
        evidence = f"{after['unknown_key']:.0f} UNKNOWN_KEY rejects since its start, none now"
    else:
        verdict, evidence, next_step = "ok", "no UNKNOWN_KEY rejects", ""
    return Finding(
        layer=RELAY,
        check="unknown key",
        subject=relay.name,
        verdict=verdict,
        evidence=evidence,
        next_step=next_step,
    )
