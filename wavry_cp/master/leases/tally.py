"""How many sessions each relay has by the master's own book: leases that it gave and that run.

A session counts as *proven* once both of its peers renewed: peers renew only while their path
works, so a relay that drops what it is given proves nothing, whatever it says of itself.
The book is kept by the second in which leases end, so that nothing is walked when it is asked.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from .rules import LeasedSession

__all__ = ["LeaseTally", "LiveLeases", "LiveLeasesRow"]


class LiveLeases(NamedTuple):
    """Sessions of one relay with a lease that runs, and those of them that both peers renewed."""

    given: int = 0
    proven: int = 0


class LiveLeasesRow(NamedTuple):
    """Sessions of one relay whose last lease ends in the same second."""

    relay_id: str
    expires_at_s: int
    proven: bool
    sessions: int


class LeaseTally:
    """The book; `now_s` is unix seconds and never goes back for long."""

    def __init__(self, rows: Iterable[LiveLeasesRow] = (), *, now_s: int) -> None:
        self._passed_s = now_s
        self._ends: defaultdict[int, Counter[tuple[str, bool]]] = defaultdict(Counter)
        self._totals: defaultdict[str, Counter[bool]] = defaultdict(Counter)
        for row in rows:
            self._add(row.expires_at_s, row.relay_id, row.sessions, proven=row.proven)

    def change(self, before: LeasedSession | None, after: LeasedSession, now_s: int) -> None:
        """Note that a session was written in place of what was stored under its id."""
        self._pass(now_s)
        if before is not None:
            self._add(before.expires_at_s, before.relay_id, -1, proven=_is_proven(before))
        self._add(after.expires_at_s, after.relay_id, 1, proven=_is_proven(after))

    def live(self, relay_id: str, now_s: int) -> LiveLeases:
        """Return the sessions of a relay."""
        self._pass(now_s)
        found = self._totals.get(relay_id)
        if found is None:
            return LiveLeases()
        return LiveLeases(found[True] + found[False], found[True])

    def _add(self, expires_at_s: int, relay_id: str, count: int, *, proven: bool) -> None:
        if expires_at_s > self._passed_s:
            self._ends[expires_at_s][relay_id, proven] += count
            self._totals[relay_id][proven] += count

    def _pass(self, now_s: int) -> None:
        if now_s - self._passed_s > len(self._ends):
            over = [second for second in self._ends if second <= now_s]
        else:
            over = list(range(self._passed_s + 1, now_s + 1))
        for second in over:
            for (relay_id, proven), count in self._ends.pop(second, Counter()).items():
                totals = self._totals[relay_id]
                totals[proven] -= count
                if not any(totals.values()):
                    del self._totals[relay_id]
        self._passed_s = max(self._passed_s, now_s)


def _is_proven(session: LeasedSession) -> bool:
    slots = (session.client, session.server)
    return all(slot.previous_jti is not None for slot in slots)
