"""How many users there are at which moment: step, spike and soak, from a peak and a duration.

::

    step      a staircase up to the peak: where does it begin to hurt?
    spike     a tenth of the peak, suddenly the peak, a tenth again: does it recover?
    soak      up to the peak, then level to the end: does it last?
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["CONSTANT", "SHAPES", "LoadStage", "Plan", "make_plan"]

CONSTANT: Final = "constant"
"""No shape: locust's own --users and --spawn-rate."""

BASE_SHARE: Final = 0.1
SPIKE_FROM: Final = 0.4
SPIKE_TO: Final = 0.6
SOAK_RAMP_SHARE: Final = 0.1
SUDDEN_S: Final = 1.0
"""A step or a spike is there after so long."""


@dataclass(frozen=True, slots=True)
class LoadStage:
    """Until when (seconds from the start) how many users, and how fast they come or go."""

    until_s: float
    users: int
    users_per_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Stages in order of time; the last one ends the run."""

    stages: tuple[LoadStage, ...]

    def at(self, time_s: float) -> LoadStage | None:
        """Return the stage at a time from the start; None when the run is over."""
        return next((stage for stage in self.stages if time_s < stage.until_s), None)


def _step(peak: int, duration_s: float, steps: int) -> Plan:
    count = min(steps, peak)
    levels = [math.ceil(peak * step / count) for step in range(1, count + 1)]
    befores = [0, *levels]
    return Plan(
        tuple(
            LoadStage(duration_s * (index + 1) / count, level, (level - befores[index]) / SUDDEN_S)
            for index, level in enumerate(levels)
        )
    )


def _spike(peak: int, duration_s: float, _steps: int) -> Plan:
    base = max(1, math.floor(peak * BASE_SHARE))
    change = max(1, peak - base) / SUDDEN_S
    return Plan(
        (
            LoadStage(duration_s * SPIKE_FROM, base, base / SUDDEN_S),
            LoadStage(duration_s * SPIKE_TO, peak, change),
            LoadStage(duration_s, base, change),
        )
    )


def _soak(peak: int, duration_s: float, _steps: int) -> Plan:
    return Plan((LoadStage(duration_s, peak, peak / max(1.0, duration_s * SOAK_RAMP_SHARE)),))


SHAPES: Final[Mapping[str, Callable[[int, float, int], Plan]]] = {
    "step": _step,
    "spike": _spike,
    "soak": _soak,
}


def make_plan(shape: str, *, peak: int, duration_s: float, steps: int) -> Plan:
    """Return the plan of a shape.

    Args:
        shape: a name of `SHAPES`.
        peak: most users at a time, at least 1.
        duration_s: of the whole run.
        steps: of ``step``; never more than there are users.

    Raises:
        ValueError: no such shape, or nothing to plan with.
    """
    if shape not in SHAPES:
        raise ValueError(f"no shape {shape!r}: take one of {', '.join(SHAPES)}")
    if peak < 1 or duration_s <= 0 or steps < 1:
        raise ValueError("a shape needs --users, --run-time and --steps above 0")
    return SHAPES[shape](peak, duration_s, steps)
