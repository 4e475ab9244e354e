"""Where and how a worker waits for packets: its CPU, and whether it sleeps.

Workers import it, so it imports next to nothing.
"""

import os
from dataclasses import dataclass
from typing import Self

from wavry_relay.worker_log import worker_log

__all__ = ["Placement", "pin_to"]


@dataclass(frozen=True, slots=True)
class Placement:
    """How workers are placed.

    Attributes:
        busy_poll_us: how long an idle worker polls before it sleeps.
        cpus: CPUs to pin workers to, in turn; empty = the kernel chooses.
    """

    busy_poll_us: int = 0
    cpus: tuple[int, ...] = ()

    @classmethod
    def choose(cls, busy_poll_us: int, *, pin: bool) -> Self:
        """Choose as the settings want it, from the CPUs that this process may use now."""
        return cls(busy_poll_us, tuple(sorted(os.sched_getaffinity(0))) if pin else ())

    def arguments(self, worker: int) -> list[str]:
        """Return the options of a worker process; the same for its replacement."""
        options = []
        if self.busy_poll_us:
            options += ["--busy-poll-us", str(self.busy_poll_us)]
        if self.cpus:
            options += ["--cpu", str(self.cpus[worker % len(self.cpus)])]
        return options


def pin_to(cpu: int, worker: int) -> None:
    """Keep this process on one CPU; a kernel that refuses is logged and harms nothing."""
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError as error:
        worker_log().warning(
            "pinning_refused",
            worker=worker,
            cpu=cpu,
            cause=error.strerror,
            effect="the worker runs wherever the kernel puts it",
            next_step="check the CPUs of the relay's cgroup, or unset WAVRY_RELAY_PIN_WORKERS",
        )
