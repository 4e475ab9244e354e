"""How many CPUs this process may use: its affinity, and the quota of its cgroups.

A container with a quota of two CPUs on a host with 64 sees 64 in its affinity, and
`os.process_cpu_count` says so too.  64 workers would then be throttled together, all of them for
most of each period.  A fraction is rounded down: a worker that is throttled delays its sessions.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["quota_cpus", "usable_cpus"]

_ROOT: Final = Path("/")


def usable_cpus() -> int:
    """Return the number of CPUs that this process can keep busy, 1 at least."""
    affinity = len(os.sched_getaffinity(0))
    quota = quota_cpus()
    return affinity if quota is None else max(1, min(affinity, int(quota)))


def quota_cpus(root: Path = _ROOT) -> float | None:
    """Return the CPUs that the smallest quota of this process's cgroups allows.

    Args:
        root: where ``proc`` and ``sys`` lie.

    Returns:
        None where no cgroup has a quota, or nothing is known of them.
    """
    return min(_quotas(root), default=None)


def _quotas(root: Path) -> Iterator[float]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            for folder in _upwards(root / "sys/fs/cgroup", path):
                yield from _ratio(*_words(folder / "cpu.max"))
        elif "cpu" in controllers.split(","):
            for folder in _upwards(root / "sys/fs/cgroup/cpu", path):
                quota = _words(folder / "cpu.cfs_quota_us")
                yield from _ratio(*quota, *_words(folder / "cpu.cfs_period_us"))


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """Yield a cgroup and all above it.

    A container may see the path of the host: then only the mount itself is there.
    """
    folder = mount / path.lstrip("/")
    while folder != mount:
        yield folder
        folder = folder.parent
    yield mount


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _ratio(quota: str = "max", period: str = "") -> Iterator[float]:
    """Yield quota per period; both kinds of cgroup have a word for "none" (max, -1)."""
    if quota.isdigit() and period.isdigit() and int(period):
        yield int(quota) / int(period)
