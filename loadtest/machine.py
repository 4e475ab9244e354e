"""What must be known of a machine to read the numbers that were measured on it."""

import os
import platform
from pathlib import Path

__all__ = ["describe_machine", "first_line", "worker_cores"]


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def first_line(path: str) -> str:
    """Return the first line of a file of /proc or /sys, or ``unknown``."""
    try:
        return Path(path).read_text().splitlines()[0]
    except (OSError, IndexError):
        return "unknown"


def worker_cores() -> tuple[int | None, int | None]:
    """Return cores for (generator, measured worker); (None, None) where there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    return (None, None) if len(cores) < 2 else (cores[0], cores[1])


def describe_machine() -> dict[str, str | int | float | bool]:
    """Return the processor, kernel, limits, and the load before the bench began.

    A 1-minute load above 0.5 says that others were using the processor: the numbers are then
    those of a shared machine, and `busy` is true.
    """
    load = os.getloadavg()[0]
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "arch": platform.machine(),
        "python": platform.python_version(),
        "load_before": round(load, 2),
        "busy": load > 0.5,
        "rmem_max_bytes": int(first_line("/proc/sys/net/core/rmem_max")),
        "wmem_max_bytes": int(first_line("/proc/sys/net/core/wmem_max")),
    }
