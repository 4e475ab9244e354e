"""The log of a worker: lines as `wavry_peer.service.logs` makes them, without structlog.

Importing that takes 0.15 s of CPU.  A worker has not the time for it at its start, and even less
in the packet loop, where its first line comes from: with the table lock held, for which the
admission of all other workers waits.
"""

import logging
import sys
import time
import traceback
from typing import Final

import msgspec

__all__ = ["WorkerLog", "worker_log"]

_ROLE: Final = "relay-worker"


class WorkerLog:
    """Writes lines of the role ``relay-worker`` to stderr.

    Args:
        level: number of the level in force (`logging`); what is below is left out.
    """

    def __init__(self, level: int) -> None:
        self._level = level

    def debug(self, event: str, **facts: object) -> None:
        """Write what only a debugger wants to know."""
        self._write(logging.DEBUG, "debug", event, facts)

    def info(self, event: str, **facts: object) -> None:
        """Write what happened as it should."""
        self._write(logging.INFO, "info", event, facts)

    def warning(self, event: str, **facts: object) -> None:
        """Write what an operator may want to look at."""
        self._write(logging.WARNING, "warning", event, facts)

    def error(self, event: str, *, exc_info: Exception | None = None, **facts: object) -> None:
        """Write a fault, with the traceback of an exception."""
        if exc_info is not None:
            facts["exception"] = "".join(traceback.format_exception(exc_info)).rstrip()
        self._write(logging.ERROR, "error", event, facts)

    def _write(self, number: int, level: str, event: str, facts: dict[str, object]) -> None:
        if number < self._level:
            return
        now_us = time.time_ns() // 1000
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_us // 1_000_000))
        timestamp = f"{second}.{now_us % 1_000_000:06d}Z"
        facts = {"role": _ROLE, **facts}
        if sys.stderr.isatty():
            text = " ".join(f"{name}={value}" for name, value in facts.items())
            line = f"{timestamp} [{level}] {event} {text}"
        else:
            facts |= {"event": event, "level": level, "timestamp": timestamp}
            line = msgspec.json.encode(facts, enc_hook=str).decode()
        sys.stderr.write(line + "\n")


def worker_log(level: int = 0) -> WorkerLog:
    """Return the log of this worker.

    Args:
        level: number of the level in force, where the caller knows it; 0 is info.
    """
    return WorkerLog(level or logging.INFO)
