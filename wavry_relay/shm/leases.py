"""What is kept of leases beside their slots: which were used, and who signed a live one.

A jti may not be presented again although it has not expired.  Nobody is ever refused for want of
room to remember that, because the memory of each slot has one size and lies in two places:

- While the slot is held, in its record's row of `LeaseOrigins`: made with the session table, so a
  renewal needs nothing that others could have used up.  The last leases that renewals replaced are
  kept by tag (`LeaseHistory`); where a peer renews faster, what is pushed out is summed up in
  `floor_s`, the latest time of issue among them, and denied by date.
- Afterwards, in one entry of `UsedLeases` until the last of its leases has expired.  Entries lie in
  the run that begins at the hash of their identity.  An identity has `SHARE` of them (`TIGHT_SHARE`
  while the table is half full); the next one takes the place of its own oldest, whose leases are
  denied by date from then on.  Where very many identities fill the table, the oldest entry nearby
  gives way, and its date holds for everybody.

So churn costs who churns the leases that he fetched and did not present for as long as his entries
reach back, and costs nobody else anything.  No used lease is ever taken again.  An open-addressed
table with linear probing; everything here needs the table lock.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Final, NamedTuple

from .layout import LEASE_HISTORY, LEASE_ORIGIN, SHARED, USED_LEASE
from .segment import Segment

__all__ = ["KEEP_MS", "SHARE", "LeaseHistory", "LeaseOrigins", "Leftover", "UsedLeases"]

KEEP_MS: Final = 60_000
"""An entry is kept this much longer than its lease, in case the wall clock is set back."""
SHARE: Final = 64
"""Entries of one identity: more than a second of its lease limit allows, so that the date of the
oldest is not the present second."""
TIGHT_SHARE: Final = 8
FILLED_QUARTERS: Final = 3
"""Of the table; a fuller one would make probes long."""
NEARBY: Final = 64
"""Entries among which the oldest entry is looked for: a sample of the whole table."""

_U32: Final = 0xFFFFFFFF
_WORDS: Final = USED_LEASE.size // 8
_SUB: Final = USED_LEASE["sub"].offset // 8
_COUNTER: Final = USED_LEASE["counter"].offset // 8
_JTI: Final = USED_LEASE["jti"].offset // 8
_UNTIL: Final = USED_LEASE["until_ms"].offset // 8
_HALVES: Final = USED_LEASE["denied"].offset // 4
_FLOOR: Final = USED_LEASE["floor_s"].offset // 4
_ENTRY_HALVES: Final = 2 * LEASE_HISTORY + 2

_ORIGIN_HALVES: Final = LEASE_ORIGIN.size // 4
_KID: Final = LEASE_ORIGIN["kid"].offset // 4
_ISSUED: Final = LEASE_ORIGIN["issued_s"].offset // 4
_ORIGIN_UNTIL: Final = LEASE_ORIGIN["until_ms"].offset // 8
_DENIED: Final = LEASE_ORIGIN["denied"].offset // 4
_DENIED_ISSUED: Final = LEASE_ORIGIN["denied_issued_s"].offset // 4
_ORIGIN_FLOOR: Final = LEASE_ORIGIN["floor_s"].offset // 4


class LeaseHistory(NamedTuple):
    """Leases that a slot does not take (again).

    Attributes:
        denied: lower halves of their tags, the latest first; 0 where there is none.
        issued_s: when each was issued, unix seconds.
        floor_s: of all others before, the latest time of issue.
        until_ms: the latest `exp` of them all, unix milliseconds.
    """

    denied: tuple[int, ...] = (0,) * LEASE_HISTORY
    issued_s: tuple[int, ...] = (0,) * LEASE_HISTORY
    floor_s: int = 0
    until_ms: int = 0

    def pushed(self, jti: int, issued_s: int, expires_ms: int) -> "LeaseHistory":
        """Return the history with one more lease; the oldest goes over to `floor_s`."""
        return LeaseHistory(
            (jti & _U32, *self.denied[:-1]),
            (issued_s, *self.issued_s[:-1]),
            max(self.floor_s, self.issued_s[-1]),
            max(self.until_ms, expires_ms),
        )

    def bounded(self, floor_s: int) -> "LeaseHistory":
        """Return the history with a floor that is at least this one."""
        return self._replace(floor_s=max(self.floor_s, floor_s))

    def denies(self, jti: int, issued_s: int, counter: int, mark: int) -> bool:
        """Return whether a lease is one of the denied.

        Of the second of `floor_s` itself, what was pushed out and what is new cannot be told apart
        by date; the proof's counter does, because it grows with each packet of the session.

        Args:
            jti: tag of the lease that is shown.
            issued_s: when it was issued.
            counter: of its proof.
            mark: the highest counter of the slot + 1.
        """
        return (
            jti & _U32 in self.denied
            or issued_s < self.floor_s
            or (issued_s == self.floor_s and counter < mark)
        )


class Leftover(NamedTuple):
    """What is remembered of a slot that nobody holds any more.

    Attributes:
        history: its denied leases.
        mark: the highest proof counter + 1.
        jti: of a lease that may come back with a counter of `mark` or above; 0: none may.
        issued_s: when that one was issued.
    """

    history: LeaseHistory
    mark: int
    jti: int = 0
    issued_s: int = 0

    def latest_s(self) -> int:
        """Return a time of issue that none of its leases is later than."""
        return max(*self.history.issued_s, self.history.floor_s, self.issued_s)


class UsedLeases:
    """The used-lease table of a segment."""

    def __init__(self, segment: Segment) -> None:
        regions = segment.geometry.regions
        self._words = segment.u64
        self._halves = segment.u32
        self._at = regions["used_leases"].offset // 8
        self._slots = segment.geometry.used_slots
        self._count_at = (regions["shared"].offset + SHARED["used_leases"].offset) // 8
        self._floor_at = (regions["shared"].offset + SHARED["used_floor_s"].offset) // 8
        self._limit = self._slots * FILLED_QUARTERS // 4

    @property
    def slots(self) -> int:
        """Places of the table."""
        return self._slots

    @property
    def count(self) -> int:
        """Entries, expired ones that were not swept yet included."""
        return self._words[self._count_at]

    @property
    def limit(self) -> int:
        """Entries from which on the oldest give way."""
        return self._limit

    @property
    def floor_s(self) -> int:
        """Leases issued up to here are taken from nobody who did not present them yet."""
        return self._words[self._floor_at]

    def find(self, slot: int, sub: int) -> tuple[Leftover | None, int]:
        """Look up what is remembered of a slot and of its identity.

        Args:
            slot: `Tags.slot`.
            sub: tag of the identity.

        Returns:
            The slot's own entry, and the floor of all else: a lease of the identity that is not
            the entry's and was issued up to then is not taken.
        """
        own, floor_s = None, self.floor_s
        for at in self._run(sub):
            if self._words[at + _SUB] != sub:
                continue
            if self._words[at] == slot:
                own = self._read(at)
            else:
                floor_s = max(floor_s, self._halves[2 * at + _FLOOR])
        return own, floor_s

    def _run(self, sub: int) -> Iterator[int]:
        """Return the indices of the entries from an identity's home on, up to an empty place."""
        words, start, slots = self._words, self._at, self._slots
        for step in range(slots):
            at = start + (sub + step) % slots * _WORDS
            if not words[at]:
                return
            yield at

    def put(self, slot: int, sub: int, left: Leftover) -> None:
        """Remember a slot until a minute after the last of its leases expired.

        Args:
            slot: `Tags.slot`.
            sub: tag of the identity that held it.
            left: what is to be remembered; a floor that is there is never lowered.
        """
        own = [at for at in self._run(sub) if self._words[at + _SUB] == sub]
        mine = next((at for at in own if self._words[at] == slot), None)
        if mine is not None:
            before = self._read(mine).history
            self._write(mine, slot, sub, self._over(left, before.floor_s, before.until_ms))
            return
        share = SHARE if 2 * self.count < self._limit else TIGHT_SHARE
        if len(own) >= share:
            oldest = min(own, key=lambda at: self._read(at).latest_s())
            gone = self._read(oldest)
            self._write(oldest, slot, sub, self._over(left, gone.latest_s(), gone.history.until_ms))
            return
        if self.count >= self._limit:
            self._make_room(sub)
        at = self._at + sub % self._slots * _WORDS
        for taken in self._run(sub):
            at = self._at + (taken - self._at + _WORDS) % (self._slots * _WORDS)
        self._write(at, slot, sub, left)
        self._words[self._count_at] += 1

    @staticmethod
    def _over(left: Leftover, floor_s: int, until_ms: int) -> Leftover:
        history = left.history.bounded(floor_s)
        return left._replace(history=history._replace(until_ms=max(history.until_ms, until_ms)))

    def _make_room(self, sub: int) -> None:
        """Take out the oldest entry near a place; its date holds for everybody."""
        places = ((sub + step) % self._slots for step in range(self._slots))
        taken = (number for number in places if self._words[self._at + number * _WORDS])
        near = islice(taken, NEARBY)
        latest_s, number = min(
            (self._read(self._at + number * _WORDS).latest_s(), number) for number in near
        )
        self._words[self._floor_at] = max(self.floor_s, latest_s)
        self._remove(number)

    def _read(self, at: int) -> Leftover:
        words = self._words
        row = self._halves[2 * at + _HALVES : 2 * at + _HALVES + _ENTRY_HALVES].tolist()
        history = LeaseHistory(
            tuple(row[:LEASE_HISTORY]),
            tuple(row[LEASE_HISTORY:-2]),
            row[-1],
            words[at + _UNTIL],
        )
        return Leftover(history, words[at + _COUNTER], words[at + _JTI], row[-2])

    def _write(self, at: int, slot: int, sub: int, left: Leftover) -> None:
        """Write an entry; one that was there is denied by date in every half-written state."""
        words, halves = self._words, self._halves
        history = left.history
        first = 2 * at + _HALVES
        halves[2 * at + _FLOOR] = history.floor_s
        words[at + _UNTIL] = history.until_ms
        words[at + _JTI] = 0
        row = (*history.denied, *history.issued_s, left.issued_s)
        for place, value in enumerate(row):
            halves[first + place] = value
        words[at + _COUNTER] = left.mark
        words[at + _JTI] = left.jti
        words[at + _SUB] = sub
        words[at] = slot  # last: after a crash the place is empty or complete

    def has_expired(self, first: int, count: int, now_ms: int) -> bool:
        """Return whether `purge` of the same range would remove something; needs no lock."""
        words = self._words
        at = self._at + first * _WORDS
        end = self._at + min(first + count, self._slots) * _WORDS
        tags = words[at:end:_WORDS].tolist()
        if not any(tags):
            return False
        ends = words[at + _UNTIL : end : _WORDS].tolist()
        return any(tag and end + KEEP_MS <= now_ms for tag, end in zip(tags, ends, strict=True))

    def purge(self, first: int, count: int, now_ms: int) -> int:
        """Remove the expired entries of a range of slots.

        Returns:
            How many were removed.
        """
        removed = 0
        for number in range(first, min(first + count, self._slots)):
            at = self._at + number * _WORDS
            while self._words[at] and self._words[at + _UNTIL] + KEEP_MS <= now_ms:
                self._remove(number)
                removed += 1
        return removed

    def _remove(self, hole: int) -> None:
        """Close the gap of a removed entry with later ones of its run (backward shift)."""
        words = self._words
        slots = self._slots
        scan = hole
        while True:
            scan = (scan + 1) % slots
            source = self._at + scan * _WORDS
            if not words[source]:
                break
            # An entry may move back only if its home is not inside (hole, scan].
            if (scan - words[source + _SUB]) % slots < (scan - hole) % slots:
                continue
            target = self._at + hole * _WORDS
            for word in range(_WORDS - 1, -1, -1):
                words[target + word] = words[source + word]
            hole = scan
        words[self._at + hole * _WORDS] = 0
        # A worker that was killed inside `put` may have left an entry that was never counted.
        words[self._count_at] = max(words[self._count_at] - 1, 0)


class LeaseOrigins:
    """Of each live slot: who signed its lease and when, and which leases it denies."""

    def __init__(self, segment: Segment) -> None:
        self._words = segment.u64
        self._halves = segment.u32
        self._at = segment.geometry.regions["lease_origins"].offset // 4

    def put(self, record: int, role: int, kid: int, issued_s: int) -> None:
        """Remember the lease of a role; `kid` is `Tags.key_id`, 2106 is the last year."""
        at = self._at + record * _ORIGIN_HALVES + role
        self._halves[at + _KID] = kid
        self._halves[at + _ISSUED] = min(issued_s, _U32)

    def get(self, record: int, role: int) -> tuple[int, int]:
        """Return key tag and unix seconds of issue."""
        at = self._at + record * _ORIGIN_HALVES + role
        return self._halves[at + _KID], self._halves[at + _ISSUED]

    def history(self, record: int, role: int) -> LeaseHistory:
        """Return the denied leases of a role."""
        at, halves = self._at + record * _ORIGIN_HALVES, self._halves
        denied = at + _DENIED + role * LEASE_HISTORY
        issued = at + _DENIED_ISSUED + role * LEASE_HISTORY
        return LeaseHistory(
            tuple(halves[denied : denied + LEASE_HISTORY].tolist()),
            tuple(halves[issued : issued + LEASE_HISTORY].tolist()),
            halves[at + _ORIGIN_FLOOR + role],
            self._words[at // 2 + _ORIGIN_UNTIL + role],
        )

    def put_history(self, record: int, role: int, history: LeaseHistory) -> None:
        """Replace the denied leases of a role."""
        at, halves = self._at + record * _ORIGIN_HALVES, self._halves
        first = role * LEASE_HISTORY
        for place in range(LEASE_HISTORY):
            halves[at + _DENIED + first + place] = history.denied[place]
            halves[at + _DENIED_ISSUED + first + place] = history.issued_s[place]
        halves[at + _ORIGIN_FLOOR + role] = history.floor_s
        self._words[at // 2 + _ORIGIN_UNTIL + role] = history.until_ms

    def clear(self, record: int) -> None:
        """Forget the leases of a session that is over."""
        at = self._at + record * _ORIGIN_HALVES
        for half in range(at, at + _ORIGIN_HALVES):
            self._halves[half] = 0

    def kids(self, first: int, end: int, role: int) -> list[int]:
        """Return the key tags of a run of records."""
        at = self._at + role + _KID
        tags: list[int] = self._halves[
            at + first * _ORIGIN_HALVES : at + end * _ORIGIN_HALVES : _ORIGIN_HALVES
        ].tolist()
        return tags
