"""Who is to blame for a lost session, and whether a run was good.

A session may be lost with its relay: one that carried it in the last `PATIENCE_S` has died.  Every
other loss is a fault of ours.
"""

import math
from typing import Final

import msgspec

from .journal import Incident, Journal, LostSession

__all__ = ["Loss", "RunVerdict", "judge"]

PATIENCE_S: Final = 90.0
"""A peer ends a session 60 s after the last packet of the other; the rest is for a busy machine."""


class Loss(msgspec.Struct, frozen=True):
    """A lost session as it is judged.

    Attributes:
        session: what is known of it.
        excused: its own relay had died.
        preceded_by: incidents that were under way in the time before, the newest first.
    """

    session: LostSession
    excused: bool
    preceded_by: tuple[str, ...]


class RunVerdict(msgspec.Struct, frozen=True):
    """How a run went; `faults` is empty where it was good."""

    losses: tuple[Loss, ...]
    faults: tuple[str, ...]


def judge(journal: Journal, *, ended_s: float) -> RunVerdict:
    """Judge a run that ended `ended_s` seconds after it began."""
    losses = tuple(_loss(journal, session) for session in journal.lost)
    faults = [
        f"session {loss.session.name} was lost at {loss.session.at_s:.0f} s though its relay lived"
        for loss in losses
        if not loss.excused
    ]
    faults += [
        f"{death.service} ended by itself at {death.at_s:.0f} s"
        for death in journal.deaths
        if not death.asked
    ]
    faults += [
        f"{one.target} did not recover from {one.kind}, lifted at {one.lifted_s:.0f} s"
        for one in journal.incidents
        if not one.is_attack and one.lifted_s is not None and one.recovered_s is None
    ]
    never_lifted = [one for one in journal.incidents if one.lifted_s is None]
    faults += [
        f"{one.kind} of {one.target} was not lifted by {ended_s:.0f} s" for one in never_lifted
    ]
    return RunVerdict(losses, (*faults, *journal.findings))


def _loss(journal: Journal, lost: LostSession) -> Loss:
    since_s = lost.at_s - PATIENCE_S
    own = _relays_since(lost, since_s)
    excused = any(
        death.service in own and since_s <= death.at_s <= lost.at_s for death in journal.deaths
    )
    before = [
        one for one in journal.incidents if one.began_s <= lost.at_s and _end_s(one) >= since_s
    ]
    before.sort(key=lambda incident: -incident.began_s)
    return Loss(lost, excused, tuple(_line(incident, lost.at_s) for incident in before))


def _relays_since(lost: LostSession, since_s: float) -> set[str]:
    """Relays that carried the session in that time, the one that it came from among them."""
    later = {relay for at_s, relay in lost.relays if at_s >= since_s}
    earlier = [relay for at_s, relay in lost.relays if at_s < since_s]
    return later | set(earlier[-1:])


def _end_s(incident: Incident) -> float:
    """Return when it was over, as far as is known: one that goes on has no end."""
    if incident.recovered_s is not None:
        return incident.recovered_s
    return math.inf if incident.lifted_s is None else incident.lifted_s


def _line(incident: Incident, at_s: float) -> str:
    what = "attack" if incident.is_attack else "fault"
    text = f"{at_s - incident.began_s:.1f} s before: {what} {incident.kind} of {incident.target}"
    return f"{text} ({incident.note})" if incident.note else text
