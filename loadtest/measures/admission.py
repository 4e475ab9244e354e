"""Lease admissions per second of worker CPU against pynacl's bare verify rate.

Both are counted in CPU time, so that the comparison holds on a machine that others use too.  A
lease needs two signatures checked (token and proof); the comparison is in verifications.
Everything between datagram and ACK is in the cost: system calls, parsing, tables.  The presenting
process has a core of its own and polls there, as the generator of the other measurements does:
what waking it would cost belongs to nobody's relay.  The bare rate is taken on the worker's core
right before and after each run, and each run is compared with its own, so that a change of the
machine's mood meets both.  The first run is not counted: a relay that has just started still
grows its heap and touches its tables for the first time.
"""

import time
from collections.abc import Callable
from typing import Final

from nacl import bindings

from loadtest.bench_master import BenchMaster
from loadtest.processes import cpu_ns, on_core
from loadtest.relay_client import admit, prepare
from loadtest.relay_process import RelayProcess
from loadtest.sessions import Endpoints, plan_sessions
from loadtest.stats import Report, judge, summarise
from wavry_peer.protocol import constants as c
from wavry_peer.protocol import paseto
from wavry_peer.protocol.packets import SessionId

__all__ = ["BENCH", "bare_verify_rate", "run_admission"]

BENCH = "admission"
WANTED_SHARE: Final = 0.7
SIGNATURES: Final = 2
"""Of a lease: its token's and its proof's."""


def bare_verify_rate(master: BenchMaster, relay_id: str, count: int) -> float:
    """Measure how many signatures of a lease's size pynacl verifies in one second of CPU."""
    minted = master.mint(
        SessionId(bytes([1] * 16)), c.Role.CLIENT, relay_id, now_s=int(time.time())
    )
    parts = paseto.parse(minted.token.decode())
    message = paseto.pre_authentication_encoding(
        paseto.HEADER.encode(), parts.message, parts.footer, b""
    )
    signed = parts.signature + message
    began = time.thread_time_ns()
    for _ in range(count):
        bindings.crypto_sign_open(signed, master.signing_public_key)
    return count * 1e9 / (time.thread_time_ns() - began)


def run_admission(
    report: Report,
    relay: RelayProcess,
    master: BenchMaster,
    endpoints: Endpoints,
    *,
    name: str,
    core: int | None,
    worker_core: int | None,
    sessions: int,
    repetitions: int,
    progress: Callable[[str], None],
) -> None:
    """Admit `sessions` sessions (twice as many leases) in each repetition.

    `core` is for the presenting process, `worker_core` the one that the relay's worker has.
    """
    clients, servers = len(endpoints.clients), len(endpoints.servers)
    bare: list[float] = []

    def verify_rate() -> float:
        with on_core(worker_core):
            bare.append(bare_verify_rate(master, relay.relay_id, 5 * sessions))
        return bare[-1]

    per_cpu: list[float] = []
    rate: list[float] = []
    share: list[float] = []
    for repetition in range(repetitions + 1):
        progress(f"admission of leases, repetition {repetition or 'to warm up'}")
        plans = plan_sessions(sessions, clients=clients, servers=servers)
        requests = list(prepare(master, relay.relay_id, plans, endpoints))
        pids = relay.worker_pids()
        verified = verify_rate()
        with on_core(core):
            before, began = cpu_ns(pids), time.perf_counter()
            admitted = admit(
                relay.address, requests, endpoints, polling=core is not None, proves=False
            )
            rate.append(admitted / (time.perf_counter() - began))
            per_cpu.append(admitted * 1e9 / (cpu_ns(pids) - before))
        verified = (verified + verify_rate()) / 2
        share.append(per_cpu[-1] * SIGNATURES / verified)
    case = f"{name} key-bound"
    report.rows += (
        summarise(BENCH, case, "per_cpu_second", "leases/s", per_cpu[1:]),
        summarise(BENCH, case, "rate", "leases/s", rate[1:]),
    )
    by_verify = summarise(BENCH, case, "per_bare_verify", "signatures", share[1:])
    report.rows.append(by_verify)
    report.targets.append(
        judge(
            f"{case} admissions, signatures checked per bare verify",
            "at_least",
            WANTED_SHARE,
            by_verify.median,
        )
    )
    report.rows.append(
        summarise(BENCH, "pynacl bare verify", "per_cpu_second", "signatures/s", bare)
    )
