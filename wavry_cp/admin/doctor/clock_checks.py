"""Clocks: leases begin and end by them, so a service that is off refuses what is good.

Every service tells its time; ours is one more.  The right time is what most of them agree on; where
there is no majority, the master's, which stamps the leases.
"""

from typing import Final

from wavry_peer.protocol import constants as c
from wavry_peer.protocol.http.ops import ServiceHealth
from wavry_peer.protocol.relay_terms import RelayState

from .facts import RelayFacts, SystemFacts
from .finding import GATEWAY, HERE, MASTER, RELAY, Finding, Layer
from .reach import HttpAnswer

__all__ = ["check_clocks", "off_by", "true_offset"]

AGREE_S: Final = 5.0
"""Whole seconds, a round trip and a slow machine are well below it; a clock that is set is, too."""

_OWN: Final = "this machine"


def check_clocks(facts: SystemFacts) -> list[Finding]:
    """Check that every clock shows the same time, to within what leases forgive."""
    offsets = _offsets(facts)
    if len(offsets) < 2:
        return []
    true_s = true_offset({name: offset for name, (_, offset, _) in offsets.items()})
    return [
        _judge(name, layer, offset - true_s, tolerance_s)
        for name, (layer, offset, tolerance_s) in offsets.items()
    ]


def _offsets(facts: SystemFacts) -> dict[str, tuple[Layer, float, float]]:
    """Return layer, seconds ahead of our clock, and tolerance, by name."""
    found: dict[str, tuple[Layer, float, float]] = {_OWN: (HERE, 0.0, c.NOT_BEFORE_SKEW_S)}
    services: tuple[tuple[str, Layer, HttpAnswer], ...] = (
        ("master", MASTER, facts.master.health),
        ("gateway", GATEWAY, facts.gateway.health),
    )
    for name, layer, answer in services:
        health = answer.read(ServiceHealth)
        offset = off_by(answer, health.now if health else 0)
        if offset is not None:
            found[name] = (layer, offset, c.NOT_BEFORE_SKEW_S)
    for relay in facts.relays:
        offset, tolerance_s = None, float(c.NOT_BEFORE_SKEW_S)
        if relay.ops is not None and relay.health is not None:
            offset = off_by(relay.ops, relay.health.now)
            tolerance_s = float(relay.health.not_before_skew_s)
        elif "master" in found and (ahead_s := _told_to_master(relay)) is not None:
            offset = found["master"][1] + ahead_s
        if offset is not None:
            found[relay.name] = (RELAY, offset, tolerance_s)
    return found


def _told_to_master(relay: RelayFacts) -> float | None:
    """Return the seconds that it is ahead of the master, which its heartbeats tell."""
    row = relay.row
    return None if row is None or row.state == RelayState.OFFLINE else row.clock_ahead_s


def off_by(answer: HttpAnswer, now: int) -> float | None:
    """Return the seconds that a service is ahead of our clock.

    Args:
        answer: of the service.
        now: its clock in the body, whole unix seconds, or 0: then the Date header counts, which a
            proxy may have written.
    """
    if not answer.is_reached:
        return None
    told_s = now or answer.date_s
    return None if told_s is None else told_s + 0.5 - answer.asked_s


def true_offset(offsets: dict[str, float]) -> float:
    """Return the offset of the clock that most agree with; of equals the master's, else ours."""

    def supporters(name: str) -> tuple[int, bool, bool]:
        near = sum(abs(other - offsets[name]) <= AGREE_S for other in offsets.values())
        return near, name == "master", name == _OWN

    return offsets[max(offsets, key=supporters)]


def _judge(name: str, layer: Layer, off_s: float, tolerance_s: float) -> Finding:
    if abs(off_s) <= AGREE_S:
        return Finding(
            layer=layer, check="clock", subject=name, verdict="ok", evidence="agrees with the rest"
        )
    way = "ahead of" if off_s > 0 else "behind"
    evidence = f"its clock is {abs(off_s):.0f} s {way} the rest"
    is_bad = abs(off_s) > tolerance_s and layer != HERE
    if is_bad:
        what = "NOT_YET_VALID" if (off_s < 0) == (layer == RELAY) else "EXPIRED, or too early"
        evidence += f", leases forgive {tolerance_s:.0f} s: relays refuse them as {what}"
    host = "this machine" if layer == HERE else f"the host of {name}"
    return Finding(
        layer=layer,
        check="clock",
        subject=name,
        verdict="fail" if is_bad else "warn",
        evidence=evidence,
        next_step=f"set the clock of {host}: `timedatectl` shows whether it is synchronised",
    )
