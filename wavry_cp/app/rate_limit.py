"""Request limits per key: GCRA in a bounded table that flooding cannot subvert.

Strategy: GCRA keeps one number per key, the theoretical arrival time (TAT) of the next request;
unlike a fixed window it has no edge at which twice the rate passes.  The table is bounded.  When it
is full, a new key takes the place of one whose allowance has fully recovered: forgetting that one
changes nothing.  Where none is found, the new key shares an overflow bucket with whoever hashes
there.  So a good new address still gets an allowance, an address with a debt is never forgotten
because others flood the table, and a key that leaves its bucket takes the bucket's debt along.
"""

import hashlib
import secrets
from collections import OrderedDict
from itertools import islice
from typing import Final, Self

__all__ = ["LIMIT_KEYS", "RateLimiter"]

LIMIT_KEYS: Final = 65_536
"""Addresses or users that a limiter remembers, about 10 MB when full."""

_EVICTION_SCAN: Final = 8
"""Oldest entries looked at for a recovered one: those not touched for the longest are
recovered first, so a short look finds one wherever there is one to speak of."""

_KEYS_PER_BUCKET: Final = 4
_MIN_BUCKETS: Final = 16


class RateLimiter:
    """Allows each key `burst` requests at once and `rate_per_s` in the long run."""

    def __init__(
        self, rate_per_s: float, burst: int, max_keys: int, *, salt: bytes | None = None
    ) -> None:
        """Make a limiter.

        Args:
            rate_per_s: requests per second that recover.
            burst: requests that a rested key may make at once, at least 1.
            max_keys: size of the table; a key takes about 150 bytes.
            salt: of the overflow hash, at most 16 bytes; by default random, so that nobody can
                aim at a neighbour's bucket.
        """
        if rate_per_s <= 0 or burst < 1 or max_keys < 1:
            raise ValueError("rate_per_s must be above 0, burst and max_keys at least 1")
        self._interval_s = 1 / rate_per_s
        self._full_s = burst / rate_per_s
        self._max_keys = max_keys
        self._salt = secrets.token_bytes(16) if salt is None else salt
        self._tat_s: OrderedDict[str, float] = OrderedDict()
        self._bucket_tat_s = [0.0] * max(_MIN_BUCKETS, max_keys // _KEYS_PER_BUCKET)

    @classmethod
    def per_minute(cls, rate: float, burst: int) -> Self:
        """Make a limiter of `LIMIT_KEYS` keys."""
        return cls(rate / 60, burst, LIMIT_KEYS)

    def check(self, key: str, now_s: float) -> float:
        """Count one request of `key`.

        Args:
            key: of the one who asks, e.g. from `address_key`; never what he can vary at will.
            now_s: monotonic seconds.

        Returns:
            0.0 where it is allowed; else the seconds after which the next one is.
        """
        tat_s = self._tat_s.get(key)
        if tat_s is not None:
            allowed_s = self._next_tat_s(tat_s, now_s)
            if allowed_s is None:
                return self._wait_s(tat_s, now_s)
            self._tat_s[key] = allowed_s
            self._tat_s.move_to_end(key)
            return 0.0
        bucket = self._bucket(key)
        tat_s = self._bucket_tat_s[bucket]
        allowed_s = self._next_tat_s(tat_s, now_s)
        if allowed_s is None:
            return self._wait_s(tat_s, now_s)
        if self._make_room(now_s):
            self._tat_s[key] = allowed_s
        else:
            self._bucket_tat_s[bucket] = allowed_s
        return 0.0

    def wait_s(self, key: str, now_s: float) -> float:
        """Return what `check` would return, without counting a request."""
        tat_s = self._tat_s.get(key)
        if tat_s is None:
            tat_s = self._bucket_tat_s[self._bucket(key)]
        return 0.0 if self._next_tat_s(tat_s, now_s) is not None else self._wait_s(tat_s, now_s)

    def __len__(self) -> int:
        """Return the keys in the table."""
        return len(self._tat_s)

    def _next_tat_s(self, tat_s: float, now_s: float) -> float | None:
        following_s = max(tat_s, now_s) + self._interval_s
        # A billionth of slack: sums of floats must not refuse what is exactly on time.
        return following_s if following_s - now_s <= self._full_s + 1e-9 else None

    def _wait_s(self, tat_s: float, now_s: float) -> float:
        return tat_s + self._interval_s - self._full_s - now_s

    def _bucket(self, key: str) -> int:
        digest = hashlib.blake2b(
            key.encode("utf-8", "surrogatepass"), digest_size=8, key=self._salt
        ).digest()
        return int.from_bytes(digest, "big") % len(self._bucket_tat_s)

    def _make_room(self, now_s: float) -> bool:
        if len(self._tat_s) < self._max_keys:
            return True
        for key, tat_s in islice(self._tat_s.items(), _EVICTION_SCAN):
            if tat_s <= now_s:
                del self._tat_s[key]
                return True
        return False
