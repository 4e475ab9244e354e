"""Relays: does each run, does the master hear it, does its UDP port answer from here.

Four things are known of a relay, each of which may be missing: the master's word (by heartbeats),
its own word (ops URL), the UDP port, and what the relay says of the master.  Which of them agree
tells whether the relay is broken or the network between two of them.
"""

import re
from typing import Final

from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.relay_terms import MasterLinkState, RelayState

from .facts import RelayFacts, SystemFacts
from .finding import MASTER, NETWORK, RELAY, Finding, Layer, Verdict
from .service_checks import MASTER_DOWN

__all__ = ["check_relays", "link_fault", "relay_down"]

_HTTP_STATUS: Final = re.compile(r": (\d{3}) ")
"""In what a relay says of a call that the master answered."""


def relay_down(relay: RelayFacts) -> str:
    """Return the finding that other ones of the same relay are a consequence of."""
    return f"{relay.name}: reachable"


def link_fault(relay: RelayFacts) -> str:
    """Return the same for its link to the master."""
    return f"{relay.name}: master link"


def check_relays(facts: SystemFacts) -> list[Finding]:
    """Check that every relay runs, is heard by the master, and can be reached."""
    findings = []
    for relay in facts.relays:
        findings += _check(relay, facts)
    return findings


def _check(relay: RelayFacts, facts: SystemFacts) -> list[Finding]:
    if relay.is_banned:
        # An operator wanted it out; whether it runs is nobody's concern until the ban ends.
        who = "`wavryctl bans list` says by whom and why"
        return [_finding(relay, "reachable", "ok", RELAY, f"it is banned; {who}")]
    if _is_down(relay):
        where = ", ".join(f"{answer.endpoint}: {answer.text}" for answer in relay.udp)
        return [
            _finding(
                relay,
                "reachable",
                "fail",
                RELAY,
                "; ".join(
                    filter(
                        None,
                        (
                            f"ops: {relay.ops.text}" if relay.ops else "",
                            f"UDP {where}" if where else "",
                            _heard(relay, facts),
                        ),
                    )
                ),
                "look at the end of its log and start it; if its host is gone for good, "
                "sessions have moved to other relays",
                unreachable=True,
            )
        ]
    return [_ops(relay), _link(relay, facts), *_udp(relay, facts)]


def _is_down(relay: RelayFacts) -> bool:
    """Return whether nothing of it gives a sign of life."""
    if relay.ops is not None and relay.ops.is_reached:
        return False
    if relay.udp_reach == "ok":
        return False
    if relay.ops is not None and relay.ops.reach in ("refused", "silent"):
        return True  # Its host answers, the relay does not: older heartbeats prove nothing.
    if relay.row is None:
        return relay.ops is not None
    return relay.missed_heartbeat or relay.row.state == RelayState.OFFLINE


def _heard(relay: RelayFacts, facts: SystemFacts) -> str:
    """Return what the master knows of it, for people."""
    if relay.row is None:
        return "the master does not know it" if facts.listed is not None else ""
    if facts.keys is None or not relay.row.last_heartbeat_at:
        return f"the master says {relay.row.state}"
    age_s = max(0, facts.keys.now - relay.row.last_heartbeat_at)
    return f"the master says {relay.row.state}, last heartbeat {age_s} s ago"


def _ops(relay: RelayFacts) -> Finding:
    ops, health = relay.ops, relay.health
    wanted, missing = relay.workers
    if missing:
        return _finding(
            relay,
            "reachable",
            "fail",
            RELAY,
            f"{wanted - missing} of {wanted} workers run"
            + ("" if health is not None else "; the master says so: it gets no new session"),
            "its log names why workers die (`worker_not_started`, `worker_replaced`); they are"
            " started again with growing waits",
        )
    if ops is None:
        return _finding(
            relay,
            "reachable",
            "ok" if relay.udp_reach == "ok" else "unknown",
            RELAY,
            "its UDP port answers; its ops URL is not known"
            if relay.udp_reach == "ok"
            else "its ops URL is not known",
            "" if relay.udp_reach == "ok" else "give it with --relay-ops URL",
        )
    if not ops.is_reached:
        return _finding(
            relay,
            "reachable",
            "warn",
            NETWORK,
            f"the relay is alive, but its ops port cannot be asked from here: {ops.text}",
            "check WAVRY_RELAY_OPS_LISTEN and what filters; or run the doctor on its host",
        )
    if health is None:
        return _finding(
            relay,
            "reachable",
            "fail",
            RELAY,
            f"{relay.ops_url} answers /health with status {ops.status}, as no relay does",
            "is this the ops address of a relay, of about this version?",
        )
    return _finding(relay, "reachable", "ok", RELAY, f"answers, {wanted} workers run")


# -- Link to the master ------------------------------------------------------------------------


def _link(relay: RelayFacts, facts: SystemFacts) -> Finding:
    if relay.health is None:
        return _link_seen_by_master(relay, facts)
    link = relay.health.master
    error = link.error or "no answer yet"
    if link.state == MasterLinkState.OFF:
        return _finding(
            relay, "master link", "warn", RELAY, "it is configured without a master",
            "set WAVRY_RELAY_MASTER_URL, or leave it out of this examination",
        )  # fmt: skip
    if link.state != MasterLinkState.REGISTERED:
        return _broken_link(relay, facts, error)
    if facts.listed is not None and relay.row is None:
        return _finding(
            relay,
            "master link",
            "fail",
            RELAY,
            "it is registered, but not with this master",
            "compare its WAVRY_RELAY_MASTER_URL with the master that was asked here",
        )
    return _finding(relay, "master link", "ok", RELAY, _heard(relay, facts) or "registered")


def _broken_link(relay: RelayFacts, facts: SystemFacts, error: str) -> Finding:
    told = f"the relay says: {error}"
    if match := _HTTP_STATUS.search(error):
        banned = "banned" in error
        return _finding(
            relay,
            "master link",
            "fail",
            MASTER if banned else RELAY,
            f"{told}: the master answers, and refuses it",
            f"`wavryctl bans list`; `wavryctl bans lift relay {relay.name}`"
            if banned
            else _next_step(error)
            or f"status {match[1]}: the master's log says why it refuses this relay",
        )
    if facts.master.url is not None and not facts.master.is_reached:
        return _finding(
            relay, "master link", "fail", NETWORK, f"{told}; nor do we reach the master",
            "repair the master first; it registers again by itself",
            consequence_of=MASTER_DOWN,
        )  # fmt: skip
    seen = "; from here the master answers" if facts.master.is_reached else ""
    return _finding(
        relay,
        "master link",
        "fail",
        NETWORK,
        f"{told}{seen}; {_heard(relay, facts)}".rstrip("; "),
        "on the relay's host ask the master's /health; check WAVRY_RELAY_MASTER_URL and what "
        "filters between relay and master",
    )


def _next_step(error: str) -> str:
    """Return what the code of a refusal asks for, empty where the error has none that we know."""
    return next((code.next_step for code in ErrorCode if f" {code.value}:" in error), "")


def _link_seen_by_master(relay: RelayFacts, facts: SystemFacts) -> Finding:
    if relay.row is None:
        return _finding(
            relay, "master link", "unknown", RELAY, "neither it nor the master could be asked",
            "give the admin token, or its ops URL",
        )  # fmt: skip
    if relay.row.state == RelayState.OFFLINE:
        return _finding(
            relay,
            "master link",
            "fail",
            NETWORK,
            f"its UDP port answers from here, but {_heard(relay, facts)}",
            "on the relay's host ask the master's /health; check WAVRY_RELAY_MASTER_URL and what "
            "filters between relay and master",
        )
    return _finding(relay, "master link", "ok", RELAY, _heard(relay, facts))


# -- UDP ---------------------------------------------------------------------------------------


def _udp(relay: RelayFacts, facts: SystemFacts) -> list[Finding]:
    findings = []
    answers = any(answer.reach == "ok" for answer in relay.udp)
    for answer in relay.udp:
        place = f"UDP {answer.endpoint} of relay {relay.name}"
        if answer.reach == "ok":
            findings.append(_finding(relay, "udp", "ok", NETWORK, f"{place} {answer.text}"))
            continue
        if answer.reach == "no_route":
            findings.append(
                _finding(
                    relay, "udp", "ok" if answers else "unknown", NETWORK,
                    f"{place}: {answer.text}",
                    "" if answers else "run the doctor where there is a route",
                )
            )  # fmt: skip
            continue
        listening = relay.health.udp if relay.health else ()
        if answer.reach == "closed" and listening and answer.endpoint not in listening:
            findings.append(
                _finding(
                    relay, "udp", "fail", RELAY,
                    f"{place}: {answer.text}; the relay listens on {', '.join(listening)}",
                    "it advertises an address where it does not listen: check "
                    "WAVRY_RELAY_ADVERTISE, or the port forwarding before it",
                )
            )  # fmt: skip
            continue
        wanted, missing = relay.workers
        if wanted and wanted == missing:
            findings.append(
                _finding(
                    relay, "udp", "fail", RELAY, f"{place}: {answer.text}: no worker reads it",
                    "repair what this follows from first",
                    consequence_of=relay_down(relay),
                )
            )  # fmt: skip
            continue
        alive = (
            "its ops port says that it is well"
            if relay.health is not None
            else _heard(relay, facts) or "it is alive"
        )
        findings.append(
            _finding(
                relay,
                "udp",
                "fail",
                NETWORK,
                f"{place}: {answer.text}, while {alive}: the port is blocked on the way",
                f"open UDP {answer.endpoint.rpartition(':')[2]} to the relay in firewalls and "
                "security groups; `tcpdump` on its host shows whether the request arrives",
            )
        )
    return findings


def _finding(
    relay: RelayFacts,
    check: str,
    verdict: Verdict,
    layer: Layer,
    evidence: str,
    next_step: str = "",
    *,
    unreachable: bool = False,
    consequence_of: str = "",
) -> Finding:
    return Finding(
        layer=layer,
        check=check,
        subject=relay.name,
        verdict=verdict,
        evidence=evidence,
        next_step=next_step,
        unreachable=unreachable,
        consequence_of=consequence_of,
    )
