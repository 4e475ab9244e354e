"""Bytes of what the limits of control packets hold back, by layer.

The limits themselves count packets, wherever they are decided (Python or C).  The row of a worker
has one writer, so the layer whose count grew is the one that has just refused.
"""

from typing import Final

from wavry_relay.shm.counters import CounterRow

__all__ = ["LimitedBytes"]

_LAYERS: Final = ("host", "network", "identity")


class LimitedBytes:
    """Follows the counts of one worker.

    Args:
        counters: row of the worker, which goes on where its predecessor ended.
    """

    def __init__(self, counters: CounterRow) -> None:
        self._counters = counters
        self._seen = {layer: counters[f"limited_{layer}"] for layer in _LAYERS}

    def note_refused(self, size_bytes: int) -> None:
        """A datagram was refused by a limit: add its bytes to the layer that counted it."""
        for layer in _LAYERS:
            count = self._counters[f"limited_{layer}"]
            if count != self._seen[layer]:
                self._seen[layer] = count
                self._counters.add(f"limited_bytes_{layer}", size_bytes)
