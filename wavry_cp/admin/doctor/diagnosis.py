"""From facts to one sentence: which layer is broken, by what one sees it, what to do."""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from wavry_cp.admin.output import EXIT_FAILED, EXIT_UNREACHABLE

from .clock_checks import check_clocks
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
    check_keys,
    check_unknown_key,
    check_pool,
    check_capacity,
    check_revocations,
    check_errors,
)
"""From the ground up: what comes first explains what comes later."""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What ``wavryctl doctor --json`` prints.

    Attributes:
        ok: nothing fails.
        broken_layer: ``gateway``, ``master``, ``relay`` or ``network``; ``here`` where only this
            machine or the call of the doctor is at fault; None where nothing fails.
        summary: one sentence, with evidence and next step.
        root: the fault to repair first.
        findings: everything that was looked at.
    """

    ok: bool
    broken_layer: str | None
    summary: str
    root: Finding | None
    findings: tuple[Finding, ...]


def diagnose(facts: SystemFacts) -> Diagnosis:
    """Make every check, and find the fault that explains the others."""
    findings = tuple(finding for check in CHECKS for finding in check(facts))
    failed = [finding for finding in findings if finding.verdict == "fail"]
    # What is wrong here hides nothing of the system: a fault out there comes first.
    own = [one for one in failed if not one.consequence_of] or failed
    root = min(own, key=lambda one: one.layer == HERE, default=None)
    return Diagnosis(
        ok=root is None,
        broken_layer=None if root is None else root.layer,
        summary=_summary(root, findings, len(own) - 1),
        root=root,
        findings=findings,
    )


def _summary(root: Finding | None, findings: Sequence[Finding], others: int) -> str:
    if root is not None:
        more = f" ({others} more faults below)" if others > 0 else ""
        subject = "" if root.subject in (root.layer, "-") else f"{root.subject}: "
        return f"broken: {root.layer} - {subject}{root.evidence}; next: {root.next_step}{more}"
    counts = {
        verdict: sum(finding.verdict == verdict for finding in findings)
        for verdict in ("warn", "unknown")
    }
    notes = [
        text
        for text in (
            f"{counts['warn']} to look at" if counts["warn"] else "",
            f"{counts['unknown']} could not be checked" if counts["unknown"] else "",
        )
        if text
    ]
    return f"nothing is broken: {len(findings)} checks" + (f", {', '.join(notes)}" if notes else "")


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 3 where a service is unreachable, else 1 where a check fails, else 0."""
    if any(finding.unreachable for finding in findings):
        return EXIT_UNREACHABLE
    return EXIT_FAILED if any(finding.verdict == "fail" for finding in findings) else 0
