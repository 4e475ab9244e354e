"""Which relay gets a session.

Strategy: first who *may* (capacity left, not excluded), then the region asked for if anyone there
has room, then a random choice weighted by free capacity.  Random, because "always the emptiest"
sends every session between two heartbeats to the same relay; for the same reason what was given
to a relay since it last reported counts as load already.

What a relay says of itself may only make it look fuller, never emptier than what its sessions show.
*Proven* sessions are the master's own figure: leases that both peers renewed (`tally`).  A relay
with fewer of them than its neighbours is taken to be as full as they are, and believed in the
measure in which it has proved itself; and its room is taken to be at most `GROWTH` times what it
once carried.  So who says "load 0, room for a million" gets no more than an honest relay, and a
new relay of a busy pool begins with the share of its neighbours.  Loss is the larger of what it
says and what the master's own sessions lost (`health`).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = [
    "Choice",
    "ProbationShare",
    "RelayCandidate",
    "choose",
    "choose_stranger",
    "weigh",
    "weight",
]

MIN_WEIGHT: Final = 0.01
"""A relay that calls itself fully loaded yet has sessions left is the last resort."""

CROWDED_WEIGHT: Final = 0.05
"""Where every relay of the region is fuller than this, a farther relay serves better."""

GROWTH: Final = 4
START_ROOM: Final = 64
"""Sessions that a relay is believed to have room for before it has carried any."""


@dataclass(frozen=True, slots=True)
class RelayCandidate:
    """A healthy relay.

    Attributes:
        relay_id: names it.
        region: where it says it is, or None.
        load_pct: 0 to 100, of its last heartbeat.
        packet_loss_pct: 0 to 100: the larger one of its last heartbeat and of the probes.
        active_sessions: of its last heartbeat.
        max_sessions: capacity.
        recent_picks: sessions given to it since that heartbeat.
        proven_sessions: live ones whose leases both peers renewed, by the master's own book.
        proven_peak: the most that these ever were.
    """

    relay_id: str
    region: str | None
    load_pct: float
    packet_loss_pct: float
    active_sessions: int
    max_sessions: int
    recent_picks: int
    proven_sessions: int = 0
    proven_peak: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """The relay for a session, and another one to go to should it fail."""

    relay_id: str
    standby_id: str | None


def weigh(candidates: Sequence[RelayCandidate]) -> dict[str, float]:
    """Return by id how much each relay is preferred, no one believed beyond what it has proved.

    Each proven session is one voice on how full relays are; without any, all are taken at their
    word.
    """
    voices = sum(item.proven_sessions for item in candidates)
    typical_use, typical_proof = 0.0, 1.0
    if voices:
        typical_use = sum(_use(item) * item.proven_sessions for item in candidates) / voices
        typical_proof = sum(item.proven_sessions**2 for item in candidates) / voices
    return {
        item.relay_id: weight(
            item, least_use=typical_use * (1 - min(1.0, item.proven_sessions / typical_proof))
        )
        for item in candidates
    }


def weight(candidate: RelayCandidate, *, least_use: float = 0.0) -> float:
    """Return how much a relay is preferred: 0 is full, 1 is idle.

    Args:
        candidate: the relay.
        least_use: share of its room that counts as used whatever it says.
    """
    if candidate.active_sessions + candidate.recent_picks >= candidate.max_sessions:
        return 0.0
    used = max(_use(candidate), least_use)
    penalty = 1 + candidate.recent_picks / 4
    return max(MIN_WEIGHT, (1 - used) * (1 - candidate.packet_loss_pct / 100) / penalty)


def _use(candidate: RelayCandidate) -> float:
    """Return the share of its room that is used, by its own word and by the master's book."""
    said = max(candidate.active_sessions, candidate.proven_sessions) + candidate.recent_picks
    believed_room = max(START_ROOM, GROWTH * candidate.proven_peak)
    return min(
        1.0,
        max(
            candidate.load_pct / 100,
            said / candidate.max_sessions,
            candidate.proven_sessions / believed_room,
        ),
    )


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
    weights = {key: value for key, value in weigh(candidates).items() if key not in exclude}
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
