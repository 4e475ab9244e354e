"""What is kept of leases beside their slots: which were used, and who signed a live one.

Used leases are jtis that may not be presented again although they have not expired.

Two kinds of entries.  A lease that a renewal replaced is denied outright (`DENIED`).  A lease of
a session that was closed may come back only with a proof counter above the highest one seen.

No unexpired entry is ever forgotten.  So that closing a session always finds room, the table
has four places for each session record and takes new leases only while `has_room`: three
quarters may be filled, and two places of each possible session are kept back for its close.
An open-addressed table with linear probing; everything here needs the table lock.
"""

from typing import Final

from .layout import LEASE_ORIGIN, SHARED, USED_LEASE
from .segment import Segment

__all__ = ["DENIED", "KEEP_MS", "LeaseOrigins", "UsedLeases"]

DENIED: Final = (1 << 64) - 1
KEEP_MS: Final = 60_000
"""An entry is kept this much longer than its lease, in case the wall clock is set back."""

KEPT_BACK: Final = 2
"""Places of each possible session that are kept back for its close."""
FILLED_QUARTERS: Final = 3
"""Of the table; a fuller one would make probes long."""

_WORDS: Final = USED_LEASE.size // 8
_ORIGIN_WORDS: Final = LEASE_ORIGIN.size // 4
_KID: Final = LEASE_ORIGIN["kid"].offset // 4
_ISSUED: Final = LEASE_ORIGIN["issued_s"].offset // 4
_U32: Final = 0xFFFFFFFF


class UsedLeases:
    """The used-lease table of a segment."""

    def __init__(self, segment: Segment) -> None:
        regions = segment.geometry.regions
        self._words = segment.u64
        self._at = regions["used_leases"].offset // 8
        self._slots = segment.geometry.used_slots
        self._count_at = (regions["shared"].offset + SHARED["used_leases"].offset) // 8
        self._limit = self._slots * FILLED_QUARTERS // 4 - KEPT_BACK * segment.geometry.max_sessions

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
        """Entries from which on no new lease is taken."""
        return self._limit

    def has_room(self) -> bool:
        """Return whether one more lease may be taken: its jti will need a place later."""
        return self.count < self._limit

    def find(self, tag: int) -> int | None:
        """Counter high-water of a used lease: a proof must be above it; None if not used."""
        at = self._probe(tag)
        return self._words[at + 1] if self._words[at] else None

    def _probe(self, tag: int) -> int:
        """Word index of the tag's entry, or of the empty place where it belongs."""
        words, start, slots = self._words, self._at, self._slots
        for step in range(slots):
            at = start + (tag + step) % slots * _WORDS
            word = words[at]
            if not word or word == tag:
                return at
        raise AssertionError("used-lease table is full beyond its limit")

    def put(self, tag: int, counter: int, expires_ms: int) -> None:
        """Remember a lease until a minute after it expired.

        Args:
            tag: of its jti.
            counter: highest proof counter seen, or `DENIED`.
            expires_ms: `exp`, unix milliseconds.
        """
        at = self._probe(tag)
        words = self._words
        if words[at]:
            words[at + 1] = max(words[at + 1], counter)
            words[at + 2] = max(words[at + 2], expires_ms + KEEP_MS)
            return
        words[at + 1] = counter
        words[at + 2] = expires_ms + KEEP_MS
        words[at] = tag  # last: after a crash the place is empty or complete
        words[self._count_at] += 1

    def has_expired(self, first: int, count: int, now_ms: int) -> bool:
        """Return whether `purge` of the same range would remove something; needs no lock."""
        words = self._words
        at = self._at + first * _WORDS
        end = self._at + min(first + count, self._slots) * _WORDS
        tags = words[at:end:_WORDS].tolist()
        if not any(tags):
            return False
        expiries = words[at + 2 : end : _WORDS].tolist()
        return any(tag and expiry <= now_ms for tag, expiry in zip(tags, expiries, strict=True))

    def purge(self, first: int, count: int, now_ms: int) -> int:
        """Remove the expired entries of a range of slots.

        Returns:
            How many were removed.
        """
        removed = 0
        for slot in range(first, min(first + count, self._slots)):
            at = self._at + slot * _WORDS
            while self._words[at] and self._words[at + 2] <= now_ms:
                self._remove(slot)
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
            tag = words[source]
            if not tag:
                break
            # An entry may move back only if its home is not inside (hole, scan].
            if (scan - tag) % slots < (scan - hole) % slots:
                continue
            target = self._at + hole * _WORDS
            words[target + 1] = words[source + 1]
            words[target + 2] = words[source + 2]
            words[target] = tag
            hole = scan
        words[self._at + hole * _WORDS] = 0
        # A worker that was killed inside `put` may have left an entry that was never counted.
        words[self._count_at] = max(words[self._count_at] - 1, 0)


class LeaseOrigins:
    """The origins of all sessions of a segment, by record number."""

    def __init__(self, segment: Segment) -> None:
        self._words = segment.u32
        self._at = segment.geometry.regions["lease_origins"].offset // 4

    def put(self, record: int, role: int, kid: int, issued_s: int) -> None:
        """Remember the lease of a role; `kid` is `Tags.key_id`, 2106 is the last year."""
        at = self._at + record * _ORIGIN_WORDS + role
        self._words[at + _KID] = kid
        self._words[at + _ISSUED] = min(issued_s, _U32)

    def get(self, record: int, role: int) -> tuple[int, int]:
        """Return key tag and unix seconds of issue."""
        at = self._at + record * _ORIGIN_WORDS + role
        return self._words[at + _KID], self._words[at + _ISSUED]

    def clear(self, record: int) -> None:
        """Forget the leases of a session that is over."""
        at = self._at + record * _ORIGIN_WORDS
        for word in range(at, at + _ORIGIN_WORDS):
            self._words[word] = 0

    def kids(self, first: int, end: int, role: int) -> list[int]:
        """Return the key tags of a run of records."""
        at = self._at + role + _KID
        tags: list[int] = self._words[
            at + first * _ORIGIN_WORDS : at + end * _ORIGIN_WORDS : _ORIGIN_WORDS
        ].tolist()
        return tags
