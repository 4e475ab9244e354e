"""Latencies in buckets: bounded memory however long a run is, and mergeable between processes.

Buckets are linear up to 128 µs and then 64 to each power of two, so that a percentile is never
more than 1.6 % above the truth.  (locust's own table rounds to whole milliseconds, which is more
than a relay on the same machine takes.)
"""

from typing import Final, Self

import msgspec

__all__ = ["Histogram"]

_SUB_BITS: Final = 6
_LINEAR: Final = 2 << _SUB_BITS


def _bucket(value_us: int) -> int:
    if value_us < _LINEAR:
        return value_us
    shift = value_us.bit_length() - _SUB_BITS - 1
    return (shift << _SUB_BITS) + (value_us >> shift)


def _upper_us(bucket: int) -> int:
    if bucket < _LINEAR:
        return bucket
    shift = (bucket >> _SUB_BITS) - 1
    return ((bucket - (shift << _SUB_BITS) + 1) << shift) - 1


class Histogram(msgspec.Struct):
    """Counts of durations.

    Attributes:
        counts: values per bucket of microseconds.
        count: values in all.
        max_ns: the largest.
    """

    counts: dict[int, int] = msgspec.field(default_factory=dict)
    count: int = 0
    max_ns: int = 0

    def add(self, value_ns: int) -> None:
        """Count one duration; a negative one (a clock that stepped) counts as 0."""
        value_ns = max(value_ns, 0)
        bucket = _bucket(value_ns // 1000)
        self.counts[bucket] = self.counts.get(bucket, 0) + 1
        self.count += 1
        self.max_ns = max(self.max_ns, value_ns)

    def merge(self, other: "Histogram") -> None:
        """Add the counts of another one."""
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count
        self.count += other.count
        self.max_ns = max(self.max_ns, other.max_ns)

    def copy(self) -> Self:
        """Return an independent copy."""
        return type(self)(dict(self.counts), self.count, self.max_ns)

    def since(self, earlier: "Histogram") -> Self:
        """Return what came after an earlier copy; its largest value is known to a bucket."""
        counts = {
            bucket: count - earlier.counts.get(bucket, 0)
            for bucket, count in self.counts.items()
            if count > earlier.counts.get(bucket, 0)
        }
        largest_ns = min(self.max_ns, _upper_us(max(counts)) * 1000) if counts else 0
        return type(self)(counts, self.count - earlier.count, largest_ns)

    def percentile_ms(self, share: float) -> float | None:
        """Return milliseconds that `share` (0 to 1) of the values do not exceed; None of none."""
        if not self.count:
            return None
        rank = share * self.count
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= rank:
                return round(min(_upper_us(bucket) / 1000, self.max_ns / 1e6), 3)
        return round(self.max_ns / 1e6, 3)

    def summary(self) -> dict[str, float | int | None]:
        """Count, median, 90th, 99th percentile and largest, in milliseconds."""
        return {
            "count": self.count,
            "p50_ms": self.percentile_ms(0.50),
            "p90_ms": self.percentile_ms(0.90),
            "p99_ms": self.percentile_ms(0.99),
            "max_ms": round(self.max_ns / 1e6, 3) if self.count else None,
        }
