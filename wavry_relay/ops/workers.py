"""What the ops surfaces read of the worker processes; the supervisor's pool is one."""

from collections import Counter
from typing import Protocol

__all__ = ["Workers"]


class Workers(Protocol):
    """What the ops surfaces read of the worker processes."""

    restarts: Counter[str]

    @property
    def count(self) -> int:
        """Number of workers wanted."""

    def running(self) -> int:
        """Return the number of workers that are ready."""

    def pids(self) -> list[int]:
        """Return their process ids, in worker order."""

    def heartbeat_ages_s(self) -> list[float]:
        """Return the seconds since each worker's last heartbeat."""

    def cpu_seconds(self) -> dict[int, float]:
        """Return the CPU time of each worker, by its number."""

    def cookie_gates(self) -> int:
        """Return the number of workers that want cookies now."""
