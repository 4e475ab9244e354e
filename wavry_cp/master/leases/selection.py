"""Which relay gets a session.

Strategy: first who *may* (capacity left, not excluded), then the region asked for if anyone there
has room, then a random choice weighted by free capacity.  Random, because "always the emptiest"
sends every session between two heartbeats to the same relay; for the same reason what was given
to a relay since it last reported counts as load already.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["Choice", "ProbationShare", "RelayCandidate", "choose", "choose_stranger", "weight"]

MIN_WEIGHT: Final = 0.01
"""A relay that calls itself fully loaded yet has sessions left is the last resort."""

CROWDED_WEIGHT: Final = 0.05
"""Where every relay of the region is fuller than this, a farther relay serves better."""


@dataclass(frozen=True, slots=True)
class RelayCandidate:
    """A healthy relay.

    Attributes:
        relay_id: names it.
        region: where it says it is, or None.
        load_pct: 0 to 100, of its last heartbeat.
        packet_loss_pct: 0 to 100, of its last heartbeat.
        active_sessions: of its last heartbeat.
        max_sessions: capacity.
        recent_picks: sessions given to it since that heartbeat.
    """

    relay_id: str
    region: str | None
    load_pct: float
    packet_loss_pct: float
    active_sessions: int
    max_sessions: int
    recent_picks: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The relay for a session, and another one to go to should it fail."""

    relay_id: str
    standby_id: str | None


def weight(candidate: RelayCandidate) -> float:
    """Return how much a relay is preferred: 0 is full, 1 is idle."""
    sessions = candidate.active_sessions + candidate.recent_picks
    if sessions >= candidate.max_sessions:
        return 0.0
    used = max(candidate.load_pct / 100, sessions / candidate.max_sessions)
    penalty = 1 + candidate.recent_picks / 4
    return max(MIN_WEIGHT, (1 - used) * (1 - candidate.packet_loss_pct / 100) / penalty)


def choose(
    candidates: Sequence[RelayCandidate],
    *,
    region: str | None,
    exclude: Collection[str],
    random: Callable[[], float],
) -> Choice | None:
    """Choose a relay and a standby.

    Args:
        candidates: the healthy relays.
        region: wished for; another one serves where it has no room.
        exclude: ids that must not be chosen.
        random: uniform in [0, 1).

    Returns:
        None where no relay has room.
    """
    weights = {
        candidate.relay_id: weight(candidate)
        for candidate in candidates
        if candidate.relay_id not in exclude
    }
    free = [item for item in candidates if weights.get(item.relay_id, 0.0) > 0]
    relay_id = _pick(_in_region(free, region, weights), weights, random)
    if relay_id is None:
        return None
    rest = [item for item in free if item.relay_id != relay_id]
    return Choice(relay_id, _pick(_in_region(rest, region, weights), weights, random))


class ProbationShare:
    """What relays that nobody enrolled may get of new sessions, all of them together.

    Counted and not drawn: a stranger gets one when so many went to enrolled relays, and never
    two in a row; so no run of luck, and no number of strangers, makes it more.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._due = 0.0

    @property
    def is_due(self) -> bool:
        """Whether the next new session may go to a stranger."""
        return self._due >= 1.0

    def note_given(self, *, to_stranger: bool) -> None:
        """Count a new session."""
        self._due = 0.0 if to_stranger else min(self._due + self._share, 1.0)


def choose_stranger(
    strangers: Sequence[RelayCandidate],
    *,
    region: str | None,
    exclude: Collection[str],
    random: Callable[[], float],
) -> str | None:
    """Choose a relay in PROBATION, each as likely as the others.

    What it says of itself may rule it out, and never in.
    """
    free = [
        item
        for item in strangers
        if item.relay_id not in exclude
        and region in (None, item.region)
        and item.active_sessions + item.recent_picks < item.max_sessions
    ]
    return free[int(random() * len(free))].relay_id if free else None


def _in_region(
    free: list[RelayCandidate], region: str | None, weights: dict[str, float]
) -> list[RelayCandidate]:
    near = [item for item in free if region is not None and item.region == region]
    return near if any(weights[item.relay_id] > CROWDED_WEIGHT for item in near) else free


def _pick(
    pool: list[RelayCandidate], weights: dict[str, float], random: Callable[[], float]
) -> str | None:
    if not pool:
        return None
    point = random() * sum(weights[item.relay_id] for item in pool)
    for item in pool:
        point -= weights[item.relay_id]
        if point < 0:
            return item.relay_id
    return pool[-1].relay_id  # the sum of floats may fall short of the point by a rounding
