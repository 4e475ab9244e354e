"""The pool: is there a relay that a new session may get, and if not, who or what is in the way."""

from typing import Final

from wavry_cp.admin.output import moment
from wavry_peer.protocol.http.admin import AuditRow, SwitchInfo
from wavry_peer.protocol.http.ops import MasterHealth, ServiceHealth
from wavry_peer.protocol.relay_terms import RelayState

from .facts import RelayFacts, SystemFacts
from .finding import GATEWAY, MASTER, RELAY, Finding, Layer, finding
from .relay_checks import link_fault, relay_down
from .service_checks import MASTER_DOWN

__all__ = ["check_pool", "check_switches"]

REPAIR_CAUSE: Final = "repair what this follows from first"


def check_switches(facts: SystemFacts) -> list[Finding]:
    """Check that nobody has switched relays off or closed a service."""
    findings = []
    master = facts.master.health.read(MasterHealth)
    services: tuple[tuple[str, Layer, ServiceHealth | None], ...] = (
        ("master", MASTER, master),
        ("gateway", GATEWAY, facts.gateway.health.read(ServiceHealth)),
    )
    for name, layer, health in services:
        if health is not None and health.lockdown:
            who = _by(facts.switch(name, "lockdown"))
            findings.append(
                finding(
                    layer, "lockdown", name, "fail",
                    f"LOCKDOWN{who}: it turns everybody away but operators",
                    "when its cause is gone: `wavryctl lockdown off`",
                )
            )  # fmt: skip
        elif health is not None:
            findings.append(finding(layer, "lockdown", name, "ok", "open"))
    if master is not None and master.relay_mode == "off":
        who = _by(facts.switch("master", "relay-mode"))
        findings.append(
            finding(
                MASTER, "relay mode", "master", "fail",
                f"relay mode is off{who}: no new session gets a relay",
                "when its cause is gone: `wavryctl relay-mode on`",
            )
        )  # fmt: skip
    elif master is not None:
        findings.append(finding(MASTER, "relay mode", "master", "ok", "on"))
    return findings


def _by(switch: SwitchInfo | AuditRow | None) -> str:
    """Return who did it, when and why, as far as it was told."""
    if switch is None or not switch.who:
        return ""
    why = f": {switch.reason}" if switch.reason else ""
    return f" (by {switch.who}, {moment(switch.at)}{why})"


def check_pool(facts: SystemFacts) -> list[Finding]:
    """Check that a new session finds a relay."""
    if facts.listed is None:
        return _pool_by_counts(facts)
    if not facts.listed.relays:
        return [
            finding(
                RELAY, "pool", "relays", "fail", "no relay is registered with the master",
                "start one with WAVRY_RELAY_MASTER_URL; its log says `registered`",
            )
        ]  # fmt: skip
    listed = [relay for relay in facts.relays if relay.row is not None]
    obstacles = {relay.name: _obstacle(relay, facts) for relay in listed}
    free = [name for name, (what, _, _) in obstacles.items() if not what]
    taken = "; ".join(f"{name} {what}" for name, (what, _, _) in obstacles.items() if what)
    counted = f"{len(free)} of {len(listed)} relays take new sessions"
    if free:
        return [finding(RELAY, "pool", "relays", "ok", "; ".join(filter(None, (counted, taken))))]
    causes = {cause for _, cause, _ in obstacles.values()}
    steps = dict.fromkeys(step for _, _, step in obstacles.values())
    return [
        finding(
            RELAY,
            "pool",
            "relays",
            "fail",
            f"{counted}: {taken}",
            "; ".join(filter(None, steps)) or REPAIR_CAUSE,
            # Explained only where every single relay is missing for a fault of its own.
            consequence_of="" if "" in causes else ", ".join(sorted(causes)),
        )
    ]


def _obstacle(relay: RelayFacts, facts: SystemFacts) -> tuple[str, str, str]:
    """Return why a relay gets no session, the finding that explains it, and what to do."""
    row = relay.row
    if row is None:
        return "is unknown to the master", "", ""
    if row.state == RelayState.DRAINING:
        who = _by(facts.last_act("drain", relay.name))
        local = relay.health is not None and relay.health.draining == ("local",)
        if local:
            return (
                "is drained on its own host",
                "",
                f"`wavry-relay undrain` on the host of {relay.name}",
            )
        return f"is drained{who}", "", f"`wavryctl relays undrain {relay.name}`"
    if row.state == RelayState.BANNED:
        bans = () if facts.bans is None else facts.bans.bans
        ban = next((ban for ban in bans if (ban.kind, ban.value) == ("relay", relay.name)), None)
        who = f" (by {ban.who}, {moment(ban.at)}: {ban.reason})" if ban else ""
        return f"is banned{who}", "", f"`wavryctl bans lift relay {relay.name}`"
    if row.state == RelayState.OFFLINE:
        alive = relay.udp_reach == "ok" or (relay.ops is not None and relay.ops.is_reached)
        return "is offline", link_fault(relay) if alive else relay_down(relay), ""
    if row.state == RelayState.DEGRADED:
        why = "; ".join(fault.text for fault in row.faults)
        cause = relay_down(relay) if row.workers_missing else f"{relay.name}: condition"
        return f"is DEGRADED: {why}", cause, ""
    if row.state == RelayState.NEW and row.faults:
        return f"is NEW: {row.faults[0].text}", f"{relay.name}: condition", ""
    if row.state == RelayState.PROBATION:
        return (
            "is in PROBATION: nobody enrolled it, so it gets a fiftieth of the sessions at most",
            "",
            f"`wavryctl relays approve {relay.name}`, or `relays reject` it",
        )
    if row.state != RelayState.ACTIVE:
        return f"is {row.state}", "", f"wait for the next heartbeat of {relay.name}"
    if facts.active_kid and facts.active_kid not in row.held_kids:
        return "lacks the active key", f"{relay.name}: same key set", ""
    if row.active_sessions >= row.max_sessions:
        return (
            f"is full ({row.active_sessions} sessions)",
            "",
            "add relays, or raise WAVRY_RELAY_MAX_SESSIONS",
        )
    if relay.health is not None and relay.health.shedding:
        causes = ", ".join(relay.health.shedding)
        return f"sheds load ({causes})", "", "add relays, or raise the limit that is used up"
    return "", "", ""


def _pool_by_counts(facts: SystemFacts) -> list[Finding]:
    """Return what everybody is told: how many relays are in which state."""
    health = facts.master.health.read(MasterHealth)
    if health is None:
        if facts.master.url is None:
            return []
        return [
            finding(
                RELAY, "pool", "relays", "unknown", "the master could not be asked",
                "repair the master first", MASTER_DOWN,
            )
        ]  # fmt: skip
    counts = ", ".join(f"{count} {state}" for state, count in sorted(health.relays.items()))
    if health.relays.get(RelayState.ACTIVE):
        return [finding(RELAY, "pool", "relays", "ok", counts)]
    return [
        finding(
            RELAY, "pool", "relays", "fail",
            f"no relay is ACTIVE: {counts or 'none is registered'}",
            "give an admin token: then the doctor says which, by whom and why",
        )
    ]  # fmt: skip
