"""Waiting for a condition, never for a time."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["is_alive", "wait_until"]

_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.01, 0.05


def wait_until(condition: Callable[[], Any], *, timeout_s: float = 20.0, what: str = "") -> Any:
    """Poll until `condition` gives something true; that is returned."""
    end = time.monotonic() + timeout_s
    pause_s = _FIRST_PAUSE_S
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s} s: {what or condition}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.2, _LAST_PAUSE_S)


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
