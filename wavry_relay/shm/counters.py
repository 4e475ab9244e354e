"""Counters: one row for each worker number, written by that worker alone.

A replacement goes on in its predecessor's row, so sums never go backwards.
"""

from .layout import COUNTER_ROW_BYTES, COUNTERS
from .segment import Segment

__all__ = ["CounterRow", "totals"]


class CounterRow:
    """The row of one worker."""

    def __init__(self, segment: Segment, worker: int) -> None:
        at = segment.geometry.regions["counters"].offset + worker * COUNTER_ROW_BYTES
        self._words = segment.u64
        self._index = {name: at // 8 + index for index, name in enumerate(COUNTERS)}

    def add(self, name: str, amount: int = 1) -> None:
        """Count; `name` is one of `layout.COUNTERS`."""
        self._words[self._index[name]] += amount

    def add_drop(self, reason: str, size_bytes: int) -> None:
        """Count a dropped datagram and its bytes."""
        self.add(f"drop_{reason}")
        self.add(f"dropped_bytes_{reason}", size_bytes)

    def __getitem__(self, name: str) -> int:
        return self._words[self._index[name]]


def totals(segment: Segment) -> dict[str, int]:
    """Return the sums over all workers."""
    region = segment.geometry.regions["counters"]
    sums = [0] * len(COUNTERS)
    for row in range(region.count):
        at = (region.offset + row * COUNTER_ROW_BYTES) // 8
        for index, value in enumerate(segment.u64[at : at + len(COUNTERS)]):
            sums[index] += value
    return dict(zip(COUNTERS, sums, strict=True))
