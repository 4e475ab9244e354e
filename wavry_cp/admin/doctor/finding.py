"""What a check saw."""

from typing import Final, Literal

import msgspec

__all__ = [
    "GATEWAY",
    "HERE",
    "LAYERS",
    "MASTER",
    "NETWORK",
    "RELAY",
    "Finding",
    "Layer",
    "Verdict",
    "finding",
]

Layer = Literal["gateway", "master", "relay", "network", "here"]
Verdict = Literal["ok", "warn", "fail", "unknown"]

GATEWAY: Final[Layer] = "gateway"
MASTER: Final[Layer] = "master"
RELAY: Final[Layer] = "relay"
NETWORK: Final[Layer] = "network"
HERE: Final[Layer] = "here"
LAYERS: Final = (GATEWAY, MASTER, RELAY, NETWORK, HERE)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check saw about one thing.

    Attributes:
        layer: where it is broken, or would be.
        check: name of the check.
        subject: what it looked at, e.g. ``gateway`` or a relay id.
        verdict: ``ok``; ``warn``: look at it today; ``fail``: users notice, or will;
            ``unknown``: could not be checked, and why.
        evidence: what was seen, with numbers.
        next_step: what to do; empty where all is well.
        unreachable: a service did not answer at all.
        consequence_of: what explains it, e.g. ``master: reachable``; repair that first.
    """

    layer: Layer
    check: str
    subject: str
    verdict: Verdict
    evidence: str
    next_step: str = ""
    unreachable: bool = False
    consequence_of: str = ""


def finding(
    layer: Layer,
    check: str,
    subject: str,
    verdict: Verdict,
    evidence: str,
    next_step: str = "",
    consequence_of: str = "",
) -> Finding:
    """Return a `Finding`, without the names."""
    return Finding(
        layer=layer,
        check=check,
        subject=subject,
        verdict=verdict,
        evidence=evidence,
        next_step=next_step,
        consequence_of=consequence_of,
    )
