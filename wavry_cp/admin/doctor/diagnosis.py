"""From facts to one sentence: which layer is broken, by what one sees it, what to do."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from wavry_cp.admin.output import EXIT_FAILED, EXIT_UNREACHABLE

from .clock_checks import check_clocks
from .condition_checks import check_conditions, check_rejects
from .facts import SystemFacts
from .finding import HERE, Finding
from .key_checks import check_keys, check_unknown_key
from .pool_checks import check_pool, check_switches
from .relay_checks import check_relays
from .service_checks import check_gateway, check_master, check_master_link, check_token
from .sign_checks import check_capacity, check_errors, check_revocations

__all__ = ["CHECKS", "Diagnosis", "diagnose", "exit_code"]

CHECKS: Final[tuple[Callable[[SystemFacts], list[Finding]], ...]] = (
    check_token,
    check_master,
    check_gateway,
    check_master_link,
    check_switches,
    check_relays,
    check_clocks,
    check_conditions,
    check_keys,
    check_unknown_key,
    check_rejects,
    check_pool,
    check_capacity,
    check_revocations,
    check_errors,
)
"""From the ground up: what comes first explains what comes later."""


MOST_NAMED: Final = 4
"""In one sentence; `not_looked_at` has all."""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What ``wavryctl doctor --json`` prints.

    Attributes:
        ok: nothing fails.
        broken_layer: ``gateway``, ``master``, ``relay`` or ``network``; ``here`` where only this
            machine or the call of the doctor is at fault; None where nothing fails.
        summary: one sentence, with evidence and next step.
        root: the fault to repair first.
        findings: everything that was looked at.
        not_looked_at: what nobody could say anything about, and how to change that.
    """

    ok: bool
    broken_layer: str | None
    summary: str
    root: Finding | None
    findings: tuple[Finding, ...]
    not_looked_at: tuple[str, ...] = ()


def diagnose(facts: SystemFacts) -> Diagnosis:
    """Make every check, and find the fault that explains the others."""
    findings = tuple(finding for check in CHECKS for finding in check(facts))
    failed = [finding for finding in findings if finding.verdict == "fail"]
    # What is wrong here hides nothing of the system: a fault out there comes first.
    own = [one for one in failed if not one.consequence_of] or failed
    root = min(own, key=lambda one: one.layer == HERE, default=None)
    unseen = tuple(_not_looked_at(facts, findings))
    return Diagnosis(
        ok=root is None,
        broken_layer=None if root is None else root.layer,
        summary=_summary(root, findings, unseen, len(own) - 1),
        root=root,
        findings=findings,
        not_looked_at=unseen,
    )


def _not_looked_at(facts: SystemFacts, findings: Sequence[Finding]) -> Iterator[str]:
    for name, service in (("gateway", facts.gateway), ("master", facts.master)):
        if service.url is None:
            yield f"the {name} (--{name}-url)"
    for one in findings:
        if one.verdict == "unknown":
            subject = "" if one.subject in ("-", one.layer) else f" of {one.subject}"
            yield f"{one.check}{subject}"
    without = [relay.name for relay in facts.relays if relay.ops is None and not relay.is_banned]
    if without:
        yield f"the ops port of {', '.join(without)} (--relay-ops)"


def _summary(
    root: Finding | None, findings: Sequence[Finding], unseen: Sequence[str], others: int
) -> str:
    if root is not None:
        more = f" ({others} more faults below)" if others > 0 else ""
        subject = "" if root.subject in (root.layer, "-") else f"{root.subject}: "
        return f"broken: {root.layer} - {subject}{root.evidence}; next: {root.next_step}{more}"
    warnings = sum(finding.verdict == "warn" for finding in findings)
    notes = f"{len(findings)} checks" + (f", {warnings} to look at" if warnings else "")
    if not unseen:
        return f"nothing is broken: {notes}"
    more = f"; and {len(unseen) - MOST_NAMED} more" if len(unseen) > MOST_NAMED else ""
    return (
        f"no fault in what was looked at: {notes}; not looked at: "
        f"{'; '.join(unseen[:MOST_NAMED])}{more}"
    )


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 3 where a service is unreachable, else 1 where a check fails, else 0."""
    if any(finding.unreachable for finding in findings):
        return EXIT_UNREACHABLE
    return EXIT_FAILED if any(finding.verdict == "fail" for finding in findings) else 0
