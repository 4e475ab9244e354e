"""Memory of a relay: shared memory per session of its table, resident memory per process."""

from typing import Final

from loadtest.processes import resident_bytes, shared_memory_bytes
from loadtest.relay_process import RelayProcess
from loadtest.stats import Report, judge, summarise

__all__ = ["BENCH", "run_memory"]

BENCH = "memory"
MAX_SHARED_BYTES: Final = 512


def run_memory(report: Report, relay: RelayProcess, *, name: str) -> None:
    """Read the sizes once; all shared memory of the relay (limits and counters too) is counted.

    Raises:
        LookupError: the relay has mapped no shared memory at all.
    """
    workers = relay.worker_pids()
    shared = shared_memory_bytes(relay.pid)
    if shared == 0:
        raise LookupError("the relay has no shared memory")
    case = f"{name} for {relay.max_sessions} sessions"
    per_session = shared / relay.max_sessions
    largest = max(resident_bytes(pid) for pid in workers)
    report.rows += (
        summarise(BENCH, case, "shared_memory", "bytes", [shared]),
        summarise(BENCH, case, "shared_memory_per_session", "bytes", [per_session]),
        summarise(BENCH, case, "resident_worker", "bytes", [largest]),
        summarise(BENCH, case, "resident_supervisor", "bytes", [resident_bytes(relay.pid)]),
    )
    report.targets.append(
        judge(
            f"{name} shared memory per session", "at_most", MAX_SHARED_BYTES, per_session, "bytes"
        )
    )
