"""Bans of users and relays.  A ban that has an end is over at that instant, whoever looks."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Ban", "BanKind", "BanTable"]


class BanKind(StrEnum):
    """Who can be banned; a user is named as leases name him (`sub`)."""

    USER = "user"
    RELAY = "relay"


@dataclass(frozen=True, slots=True)
class Ban:
    """One ban.  Times are unix seconds.

    Attributes:
        kind: what `value` names.
        value: user name or relay id.
        at_s: when it was ordered.
        expires_at_s: first instant at which it is over; None lasts until it is lifted.
        who: name of the token.
        reason: in the operator's words.
        was_draining: of a relay: it comes back into its drain, which only an operator ends.
    """

    kind: BanKind
    value: str
    at_s: int
    expires_at_s: int | None
    who: str
    reason: str
    was_draining: bool = False

    def holds(self, now_s: int) -> bool:
        """Return whether its end is still to come."""
        return self.expires_at_s is None or now_s < self.expires_at_s


class BanTable:
    """The bans of one service, in memory; the store has the same."""

    def __init__(self, bans: Iterable[Ban] = ()) -> None:
        self._bans = {(ban.kind, ban.value): ban for ban in bans}

    def find(self, kind: BanKind, value: str) -> Ban | None:
        """Return the ban of a user or relay, over or not."""
        return self._bans.get((kind, value))

    def is_banned(self, kind: BanKind, value: str, now_s: int) -> bool:
        """Return whether a ban holds now."""
        ban = self._bans.get((kind, value))
        return ban is not None and ban.holds(now_s)

    def holding(self, now_s: int) -> tuple[Ban, ...]:
        """Return the bans that hold now, by kind and value."""
        return tuple(ban for _, ban in sorted(self._bans.items()) if ban.holds(now_s))

    def over(self, now_s: int) -> tuple[Ban, ...]:
        """Return the bans that have ended by time and are still listed."""
        return tuple(ban for ban in self._bans.values() if not ban.holds(now_s))

    def count(self, now_s: int) -> Counter[BanKind]:
        """Return the number of bans that hold now, by kind."""
        return Counter(ban.kind for ban in self._bans.values() if ban.holds(now_s))

    def put(self, ban: Ban) -> None:
        """Take over what the store has just written."""
        self._bans[ban.kind, ban.value] = ban

    def __len__(self) -> int:
        """Return the number of bans, those that are over included."""
        return len(self._bans)

    def remove(self, kind: BanKind, value: str) -> None:
        """Take over that the store has just removed a ban."""
        self._bans.pop((kind, value), None)
