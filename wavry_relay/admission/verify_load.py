"""How many leases a worker is asked to verify, and whether it wants cookies first.

A signature check costs a tenth of a millisecond, and a spoofer makes packets for less.  So from a
set rate on, a lease is looked at only if its sender has shown that it receives at its address.  The
rate is that of the leases that *come*, not of those that are checked: while cookies are asked
for, the checks are few because of that, and the flood is still there.  It wants none
again when the rate has fallen below half, and not before `HOLD_NS`.

The rate is a decaying average (half a second), so there is no window to hide at the edge of.
"""

import math
from typing import Final

from wavry_peer.service.clock import Instant
from wavry_relay.shm.control import ControlBlock, WorkerRow
from wavry_relay.shm.counters import CounterRow

__all__ = ["VerifyLoad"]

MEMORY_S: Final = 0.5
HOLD_NS: Final = 2_000_000_000
_MEMORY_NS: Final = MEMORY_S * 1e9


class VerifyLoad:
    """Whether one worker wants cookies.

    Args:
        control: names the threshold, which may change at any time; 0 always asks.
        row: shows it to the supervisor.
        counters: of this worker.
    """

    def __init__(self, control: ControlBlock, row: WorkerRow, counters: CounterRow) -> None:
        self._control = control
        self._row = row
        self._counters = counters
        self._level = 0.0
        self._last_ns = 0
        self._since_ns = 0
        self._on = False
        row.cookie_gate = 0

    def count(self, now: Instant) -> bool:
        """Count one lease that came; whether it must bring a cookie."""
        now_ns = now.mono_ns
        if now_ns != self._last_ns:  # leases of one batch share their moment
            self._level = self._decayed(now_ns)
            self._last_ns = now_ns
        self._level += 1
        return self._judge(now_ns, self._level)

    def step(self, now: Instant) -> bool:
        """Look whether that still holds; also called where nothing comes."""
        return self._judge(now.mono_ns, self._decayed(now.mono_ns))

    def _judge(self, now_ns: int, level: float) -> bool:
        threshold = self._control.cookie_at_per_s
        per_s = level / MEMORY_S
        if not self._on:
            if per_s >= threshold:
                self._switch(now_ns, on=True)
        elif per_s < threshold / 2 and now_ns - self._since_ns >= HOLD_NS:
            self._switch(now_ns, on=False)
        return self._on

    def _decayed(self, now_ns: int) -> float:
        return self._level * math.exp(min(0, self._last_ns - now_ns) / _MEMORY_NS)

    def _switch(self, now_ns: int, *, on: bool) -> None:
        self._on = on
        self._since_ns = now_ns
        self._row.cookie_gate = int(on)
        if on:
            self._counters.add("cookie_gate_on")
