"""Memory of a relay: shared memory for its sessions, resident memory per process.

`shared_memory_per_session` counts all shared memory (index, used leases, rate limits, counters)
against the sessions that the relay can hold; `session_record` is the record alone.
"""

from typing import Final

from loadtest.processes import resident_bytes, shared_memory_bytes
from loadtest.relay_process import RelayProcess
from loadtest.stats import Report, judge, summarise
from wavry_relay.shm.layout import SESSION

__all__ = ["BENCH", "PLANNED_SESSIONS", "run_memory"]

BENCH = "memory"
MAX_SHARED_BYTES: Final = 1152
PLANNED_SESSIONS: Final = 100_000
MAX_PLANNED_MIB: Final = 100


def run_memory(report: Report, relay: RelayProcess, *, name: str) -> None:
    """Read the sizes once, of a relay for `PLANNED_SESSIONS`.

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
        summarise(BENCH, case, "session_record", "bytes", [SESSION.size]),
        summarise(BENCH, case, "resident_worker", "bytes", [largest]),
        summarise(BENCH, case, "resident_supervisor", "bytes", [resident_bytes(relay.pid)]),
    )
    report.targets += (
        judge(
            f"{name} shared memory per session, all tables",
            "at_most",
            MAX_SHARED_BYTES,
            per_session,
            "bytes",
        ),
        judge(
            f"{name} shared memory for {relay.max_sessions} sessions",
            "at_most",
            MAX_PLANNED_MIB,
            shared / 2**20,
            "MiB",
        ),
    )
