"""Rate limits: GCRA, and a bounded table with one GCRA word for each key.

GCRA is a leaky bucket in one word, the theoretical arrival time (TAT) of the next unit.  A packet
conforms if TAT is not more than `burst` ahead of now; it then moves TAT by its own cost.  A word
of 0 is a full allowance, so the first second is limited from its first packet.  There is no window
whose edge lets double the rate through.

The table has buckets of three keys and a shared word.  A key's bucket comes from a keyed hash, so
nobody can aim at one.  A newcomer takes the place of a key whose allowance is fully recovered
(forgetting that one changes nothing); where all three are still limited, newcomers share the
bucket's overflow word, which has four times the rate.
So a flood of keys never frees a limited one, never grows the table, and never locks out good
newcomers beyond the buckets that it keeps full with a steady stream to each.

A limit may change at any time: words are bounded by the limit in force when they are looked at.
"""

from typing import Final

from wavry_peer.protocol.constants import MAX_DATAGRAM_BYTES

from .layout import RATE_BUCKET, RATE_WAYS, SHARE_BUCKET, SHARE_WAYS, SHARED, Region
from .locks import Locks
from .segment import Segment

__all__ = [
    "HEAVY_PART",
    "SHORT_PART",
    "RateTable",
    "Shares",
    "conforms",
    "cost_ns",
    "soft_exceeded",
]

OVERFLOW_FACTOR: Final = 4
"""Newcomers of a full bucket share this many times one key's rate: enough for several good ones,
and little beside what the flood itself must spend to keep three keys limited."""
_NS: Final = 1_000_000_000
_WAYS: Final = range(RATE_WAYS)
_TAGS_AT: Final = RATE_BUCKET["tags"].offset // 8
_TATS_AT: Final = RATE_BUCKET["tats"].offset // 8
_BUCKET_BYTES: Final = RATE_BUCKET.size
_U32: Final = 0xFFFFFFFF
SHORT_PART: Final = 4
HEAVY_PART: Final = 2
"""Of the burst of the global limit; see `Shares`."""
_SUBS: Final = SHARE_BUCKET["subs"].offset // 8
_SHARE_TATS: Final = SHARE_BUCKET["tats"].offset // 8
_SECONDS: Final = SHARE_BUCKET["seconds"].offset // 4
BYTE_KBPS_NS: Final = 8_000_000
"""Time of a byte at 1 kbit/s."""


def cost_ns(size_bytes: int, kbps: int) -> int:
    """Return the time that a datagram takes at a rate; `kbps` must not be 0."""
    return size_bytes * BYTE_KBPS_NS // kbps


def conforms(tat_ns: int, now_ns: int, burst_ns: int, cost: int) -> int:
    """Judge one unit.

    Args:
        tat_ns: the word.
        now_ns: CLOCK_MONOTONIC.
        burst_ns: tolerance.
        cost: time that the unit takes at the limit, in ns.

    Returns:
        The word to store if the unit is let through, or 0 if it is over the limit.
    """
    if tat_ns > now_ns + burst_ns:
        return 0
    return max(tat_ns, now_ns) + cost


def soft_exceeded(
    tat_us: int, now_us: int, size_bytes: int, kbps: int, burst_us: int
) -> tuple[bool, int]:
    """Judge by the soft limit, whose word has 32 bits of microseconds modulo 2^32.

    A word that is further ahead than a burst and one full datagram can be is a stale one from
    before a wrap (71 minutes) and counts as a full allowance.

    Returns:
        Whether the datagram is over the limit, and the word to store.
    """
    ahead_us = tat_us - now_us & _U32
    if burst_us < ahead_us <= burst_us + cost_ns(MAX_DATAGRAM_BYTES, kbps) // 1000:
        return True, tat_us
    start_us = tat_us if ahead_us <= burst_us else now_us
    return False, start_us + cost_ns(size_bytes, kbps) // 1000 & _U32


class RateTable:
    """Rate limits of one kind of key (IP addresses, identities).

    Args:
        segment: shared memory.
        region: buckets.
        locks: of the engine.
        per_s: allowed units a second.
        burst: units that may come at once.
        shares_overflow: newcomers of a full bucket share a word; else nothing limits them.
    """

    def __init__(
        self,
        segment: Segment,
        region: Region,
        locks: Locks,
        *,
        per_s: int,
        burst: int,
        shares_overflow: bool = True,
    ) -> None:
        self._shares_overflow = shares_overflow
        self._words = segment.u64
        self._at, self._count = region.offset, region.count
        self._locks = locks
        self._limit = (0, 0)
        self.set_limit(per_s, burst)

    def set_limit(self, per_s: int, burst: int) -> None:
        """Judge by another limit from now on; made to be called before each `allow`.

        Args:
            per_s: allowed units a second.
            burst: units that may come at once.
        """
        if self._limit == (per_s, burst):
            return
        self._limit = per_s, burst
        self._cost_ns = _NS // per_s
        self._burst_ns = (burst - 1) * self._cost_ns

    def allow(self, key: int, now_ns: int) -> bool:
        """Take one unit of a key's allowance.

        Args:
            key: non-zero 64-bit keyed hash.
            now_ns: CLOCK_MONOTONIC.

        Returns:
            False if the key is over its limit.

        Raises:
            LockBusyError: the bucket's lock is held by a stopped process.
        """
        offset = self._at + key % self._count * _BUCKET_BYTES
        with self._locks.rate(offset):
            return self._take(offset >> 3, key, now_ns)

    def _take(self, base: int, key: int, now_ns: int) -> bool:
        words = self._words
        tags, tats = base + _TAGS_AT, base + _TATS_AT
        place = tats + RATE_WAYS  # the overflow word
        unit_ns = self._cost_ns // OVERFLOW_FACTOR
        for way in _WAYS:
            if words[tags + way] == key:
                place, unit_ns = tats + way, self._cost_ns
                break
        else:
            for way in _WAYS:
                self._bound(tats + way, now_ns)
                if words[tats + way] <= now_ns:
                    # The word is reset first: a crash in between leaves a free place, never a
                    # stranger's debt.
                    words[tats + way] = 0
                    words[tags + way] = key
                    place, unit_ns = tats + way, self._cost_ns
                    break
            else:
                if not self._shares_overflow:
                    return True
        # `_bound` and `conforms` in one: every control packet comes here two or three times.
        full_ns = now_ns + self._burst_ns
        tat_ns = words[place]
        if tat_ns > full_ns:
            if tat_ns <= full_ns + self._cost_ns:
                return False
            tat_ns = full_ns
        words[place] = (tat_ns if tat_ns > now_ns else now_ns) + unit_ns
        return True

    def give_back(self, key: int, now_ns: int) -> None:
        """Return a unit that `allow` has just taken, and that was not used.

        A key that shares the overflow word gives back there; nothing where it has gone meanwhile.

        Raises:
            LockBusyError: the bucket's lock is held by a stopped process.
        """
        offset = self._at + key % self._count * _BUCKET_BYTES
        base, words = offset >> 3, self._words
        with self._locks.rate(offset):
            for way in _WAYS:
                if words[base + _TAGS_AT + way] == key:
                    place, unit_ns = base + _TATS_AT + way, self._cost_ns
                    break
            else:
                if not self._shares_overflow:
                    return
                place, unit_ns = base + _TATS_AT + RATE_WAYS, self._cost_ns // OVERFLOW_FACTOR
            if words[place] >= now_ns + unit_ns:
                words[place] -= unit_ns

    def _bound(self, word: int, now_ns: int) -> None:
        """Bring a word of a slower limit as near as this limit would have let it come.

        A burst of a million at one a second lets a key run eleven days ahead; without this it
        would stay limited for as long under any limit that follows.
        """
        full_ns = now_ns + self._burst_ns
        if self._words[word] > full_ns + self._cost_ns:
            self._words[word] = full_ns


class Shares:
    """Fair shares of a relay that is short; needs the lock of the global limit.

    Nothing here costs or limits anybody while the relay has room: a word is looked up only
    where the global limit is further ahead than a `SHORT_PART` of its burst. There an identity
    (not a session: whoever opens more has no more) has a GCRA word at the global rate divided
    by the identities that sent in this second or the one before. Within its share a datagram
    may use the whole burst of the global limit, above it only a `HEAVY_PART`. So what is left
    over goes to those who want more, and the rest of the burst stays free for those who do not.

    A bucket has three identities, found by their keyed hash; one that was not seen for a second
    gives its place up. Where three others send, an identity counts as within its share.
    """

    def __init__(self, segment: Segment) -> None:
        self._words, self._halves = segment.u64, segment.u32
        region = segment.geometry.regions["shares"]
        self._at, self._count = region.offset // 8, region.count
        shared = segment.geometry.regions["shared"].offset
        self._second_at = (shared + SHARED["share_second"].offset) // 8
        self._users_at = (shared + SHARED["share_users"].offset) // 8
        self._before_at = (shared + SHARED["share_users_before"].offset) // 8

    def judge(self, sub: int, cost_ns: int, now_ns: int, burst_ns: int) -> tuple[int | None, int]:
        """Judge a datagram of an identity by its share.

        Args:
            sub: tag of the identity.
            cost_ns: of the datagram at the whole rate of the relay.
            now_ns: CLOCK_MONOTONIC.
            burst_ns: of the global limit.

        Returns:
            The word to store once the datagram passed, and its new value; None where the identity
            has no word, 0 where it is over its share.
        """
        second = now_ns // _NS
        users = self._users(second)
        place = self._place(sub, second & _U32)
        if place is None:
            return None, 0
        return place, conforms(self._words[place], now_ns, burst_ns, cost_ns * max(users, 1))

    def _users(self, second: int) -> int:
        words = self._words
        known = words[self._second_at]
        if known != second:
            words[self._second_at] = second
            words[self._before_at] = words[self._users_at] if second - known == 1 else 0
            words[self._users_at] = 0
        return max(words[self._users_at], words[self._before_at])

    def _place(self, sub: int, second: int) -> int | None:
        words, halves = self._words, self._halves
        bucket = self._at + sub % self._count * (SHARE_BUCKET.size // 8)
        seen = 2 * bucket + _SECONDS
        for way in range(SHARE_WAYS):
            if words[bucket + _SUBS + way] == sub:
                break
        else:
            for way in range(SHARE_WAYS):
                if second - halves[seen + way] & _U32 > 1:
                    words[bucket + _SHARE_TATS + way] = 0
                    words[bucket + _SUBS + way] = sub
                    break
            else:
                return None
        if halves[seen + way] != second:
            halves[seen + way] = second
            words[self._users_at] += 1
        return bucket + _SHARE_TATS + way
