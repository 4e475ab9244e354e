"""``python -m loadtest.bench``: the performance table and ``build/bench.json``.

Order of work: the forwarders of the comparison run side by side and are measured in turn (only
the one that is measured has work); then what needs a relay of its own.  A part that fails is
printed, kept in the document as skipped with its reason, and makes the exit status 1.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from loadtest.measures.admission import run_admission
from loadtest.measures.comparison import compare_forward
from loadtest.measures.flood import run_flood
from loadtest.measures.forward import BENCH as FORWARD
from loadtest.measures.forward import ForwardCase, MeasurementError, capacity, run_forward
from loadtest.measures.latency import run_latency
from loadtest.measures.memory import PLANNED_SESSIONS, run_memory
from loadtest.measures.scaling import run_scaling
from loadtest.measures.upgrade import run_upgrade
from loadtest.measures.worker_kill import run_worker_kill

from . import table
from .bench_master import BenchMaster
from .generator import GeneratorError
from .machine import describe_machine, worker_cores
from .native_build import CompileError, compile_program
from .processes import ProcessGoneError
from .relay_client import AdmissionError
from .relay_process import RelayProcess, RelayStartError
from .sessions import Endpoints
from .stats import Report, Skipped
from .subjects import Subject, SubjectMissingError, coturn, floor, relay_subject, uvloop_relay

__all__ = ["ENGINES", "FULL", "QUICK", "Scope", "main", "run"]

ENGINES: Final = ("native", "reference")
"""Relay engines of the table."""
FLOORS: Final = ("plain", "mmsg", "gso")
_SPARE_SESSIONS: Final = 64
_LOG_COLUMNS: Final = 200
"""Where the output goes to a file, whose reader can scroll."""
_EXPECTED: Final = (
    AdmissionError,
    CompileError,
    GeneratorError,
    LookupError,
    MeasurementError,
    ProcessGoneError,
    RelayStartError,
    SubjectMissingError,
)
"""What a part of the bench may end with; anything else is a mistake in the bench."""


@dataclass(frozen=True, slots=True)
class Scope:
    """How much is measured.

    Attributes:
        bursts: datagrams per send; all of them at `sessions`.
        sessions: of the burst table, the latencies, the scaling and the kill.
        more_sessions: measured with bursts of 1 (separate) and 16 (gso).
        sockets: of each side; sessions share them.
        duration_ms: of one load.
        kill_duration_ms: of the load in which a worker dies.
        upgrade_duration_ms: of the load in which the relay is upgraded.
        admissions: sessions (two leases each) of one admission run.
        parts: ``forward`` and the names of the parts that follow it.
    """

    bursts: tuple[int, ...]
    sessions: int
    more_sessions: tuple[int, ...]
    sockets: int
    duration_ms: int
    kill_duration_ms: int
    upgrade_duration_ms: int
    admissions: int
    parts: tuple[str, ...]

    @property
    def largest(self) -> int:
        """Most sessions at a time."""
        return max(self.sessions, *self.more_sessions)

    def forward_cases(self) -> list[ForwardCase]:
        """Return every case of the forward table, fewest sessions first, as sessions only grow."""
        cases = []
        for count in sorted({self.sessions, *self.more_sessions}):
            for burst in self.bursts if count == self.sessions else (1, 16):
                modes = (False, True) if burst > 1 and count == self.sessions else (burst > 1,)
                cases += [ForwardCase(burst, gso, count) for gso in modes]
        return cases


PARTS: Final = (
    "forward", "latency", "flood", "admission", "memory", "kill", "upgrade", "scaling",
)  # fmt: skip
FULL: Final = Scope(
    bursts=(1, 4, 16, 48),
    sessions=64,
    more_sessions=(1, 4096, 65536),
    sockets=64,
    duration_ms=700,
    kill_duration_ms=3000,
    upgrade_duration_ms=8000,
    admissions=300,
    parts=PARTS,
)
QUICK: Final = Scope(
    bursts=(1, 16),
    sessions=16,
    more_sessions=(1,),
    sockets=8,
    duration_ms=100,
    kill_duration_ms=1800,
    upgrade_duration_ms=6000,
    admissions=150,
    parts=("forward", "latency", "flood", "admission", "memory", "kill", "upgrade"),
)


class _Bench:
    def __init__(
        self, scope: Scope, repetitions: int, engines: Sequence[str], console: Console
    ) -> None:
        self.scope = scope
        self.repetitions = repetitions
        self.engines = engines
        self.report = Report(describe_machine())
        self.failed = False
        self._console = console
        self._generator_core, self._worker_core = worker_cores()

    def say(self, text: str) -> None:
        self._console.print(text, style="dim", highlight=False)

    def skip(self, bench: str, case: str, reason: str) -> None:
        self.report.skipped.append(Skipped(bench=bench, case=case, reason=reason))
        self._console.print(f"skipped: {bench} {case}: {reason}", style="yellow", markup=False)

    @contextlib.contextmanager
    def part(self, name: str, case: str) -> Iterator[None]:
        """Let a part fail alone."""
        try:
            yield
        except _EXPECTED as error:
            self.failed = True
            self.skip(name, case, f"FAILED: {error}")

    def _relay(
        self,
        master: BenchMaster,
        directory: Path,
        engine: str,
        *,
        sessions: int,
        workers: int = 1,
        defended: bool = False,
    ) -> RelayProcess:
        return RelayProcess(
            master,
            directory,
            workers=workers,
            core=self._worker_core if workers == 1 else None,
            max_sessions=sessions,
            engine=engine,
            defended=defended,
        )

    def _optional(
        self,
        stack: contextlib.ExitStack,
        name: str,
        start: Callable[[], contextlib.AbstractContextManager[Subject]],
    ) -> list[Subject]:
        try:
            return [stack.enter_context(start())]
        except SubjectMissingError as error:
            self.skip(FORWARD, name, str(error))
            return []

    def forward(self, master: BenchMaster, endpoints: Endpoints, work: Path) -> None:
        """Measure the comparison, all subjects side by side."""
        scope, core = self.scope, self._worker_core
        most = scope.largest
        with contextlib.ExitStack() as stack:
            subjects = [
                stack.enter_context(floor(mode, endpoints, work, core, most)) for mode in FLOORS
            ]
            relays = []
            for engine in self.engines:
                directory = work / f"forward-{engine}"
                relay = stack.enter_context(
                    self._relay(master, directory, engine, sessions=most + _SPARE_SESSIONS)
                )
                name = f"relay-{engine}"
                relays.append(relay_subject(relay, master, endpoints, directory, name=name))
            self.say("setting up the uvloop relay and coturn")
            subjects += self._optional(
                stack, "uvloop-relay", lambda: uvloop_relay(endpoints, work, core, most)
            )
            subjects += self._optional(stack, "coturn", lambda: coturn(endpoints, work, core))
            costs = run_forward(
                self.report,
                [*subjects, *relays],
                scope.forward_cases(),
                endpoints,
                core=self._generator_core,
                duration_ms=scope.duration_ms,
                repetitions=self.repetitions,
                progress=self.say,
            )
        if "native" in self.engines:
            # The pure engine is there for hosts that cannot build the other; nothing is promised.
            compare_forward(
                self.report,
                costs,
                subject="relay-native",
                sessions=scope.sessions,
                largest=most,
                bursts=scope.bursts,
            )

    def latency(self, master: BenchMaster, endpoints: Endpoints, work: Path, engine: str) -> None:
        """Measure latencies of a relay at bursts of 1 and of 16; it holds no other sessions."""
        name, directory = f"relay-{engine}", work / f"latency-{engine}"
        sessions = self.scope.sessions + _SPARE_SESSIONS
        with (
            self.part("latency", name),
            self._relay(master, directory, engine, sessions=sessions) as relay,
        ):
            subject = relay_subject(relay, master, endpoints, directory, name=name)
            for case in (
                ForwardCase(1, gso=False, sessions=self.scope.sessions),
                ForwardCase(16, gso=True, sessions=self.scope.sessions),
            ):
                run_latency(
                    self.report,
                    subject,
                    case,
                    endpoints,
                    core=self._generator_core,
                    duration_ms=2 * self.scope.duration_ms,
                    repetitions=self.repetitions,
                    progress=self.say,
                )

    def flood(self, master: BenchMaster, endpoints: Endpoints, work: Path) -> None:
        """Measure media of the native relay while strangers send junk."""
        name, directory = "relay-native", work / "flood-native"
        sessions = self.scope.sessions
        with (
            self.part("flood", name),
            self._relay(
                master, directory, "native", sessions=sessions + _SPARE_SESSIONS, defended=True
            ) as relay,
        ):
            run_flood(
                self.report,
                relay_subject(relay, master, endpoints, directory, name=name),
                endpoints,
                sessions=sessions,
                core=self._generator_core,
                duration_ms=2 * self.scope.duration_ms,
                repetitions=self.repetitions,
                progress=self.say,
            )

    def admission_and_memory(
        self, master: BenchMaster, endpoints: Endpoints, work: Path, engine: str
    ) -> None:
        """Use a relay for each of the two: what the first leaves behind is not in the second."""
        # Two kinds of leases, and a run of each that is not counted.
        sessions = 2 * self.scope.admissions * (self.repetitions + 1) + _SPARE_SESSIONS
        name = f"relay-{engine}"
        if "admission" in self.scope.parts:
            directory = work / f"admission-{engine}"
            with (
                self.part("admission", name),
                self._relay(master, directory, engine, sessions=sessions) as relay,
            ):
                run_admission(
                    self.report,
                    relay,
                    master,
                    endpoints,
                    name=name,
                    core=self._generator_core,
                    worker_core=self._worker_core,
                    sessions=self.scope.admissions,
                    repetitions=self.repetitions,
                    progress=self.say,
                )
        if "memory" in self.scope.parts:
            directory = work / f"memory-{engine}"
            with (
                self.part("memory", name),
                self._relay(master, directory, engine, sessions=PLANNED_SESSIONS) as relay,
            ):
                run_memory(self.report, relay, name=name)

    def kill(self, master: BenchMaster, endpoints: Endpoints, work: Path, engine: str) -> None:
        """Kill a worker at half of the capacity at bursts of 1."""
        name, directory = f"relay-{engine}", work / f"kill-{engine}"
        with (
            self.part("worker kill", name),
            self._relay(
                master, directory, engine, sessions=self.scope.sessions + _SPARE_SESSIONS
            ) as relay,
        ):
            subject = relay_subject(relay, master, endpoints, directory, name=name)
            most = capacity(
                subject,
                ForwardCase(1, gso=False, sessions=self.scope.sessions),
                endpoints,
                core=self._generator_core,
                duration_ms=self.scope.duration_ms,
            )
            run_worker_kill(
                self.report,
                subject,
                endpoints,
                rate=int(most / 2),
                sessions=self.scope.sessions,
                core=self._generator_core,
                duration_ms=self.scope.kill_duration_ms,
                repetitions=self.repetitions,
                progress=self.say,
            )

    def upgrade(self, master: BenchMaster, endpoints: Endpoints, work: Path) -> None:
        """Upgrade the native relay at half of its capacity at bursts of 1."""
        name, directory = "relay-native", work / "upgrade-native"
        sessions = self.scope.sessions
        with (
            self.part("upgrade", name),
            self._relay(master, directory, "native", sessions=sessions + _SPARE_SESSIONS) as relay,
        ):
            subject = relay_subject(relay, master, endpoints, directory, name=name)
            most = capacity(
                subject,
                ForwardCase(1, gso=False, sessions=sessions),
                endpoints,
                core=self._generator_core,
                duration_ms=self.scope.duration_ms,
            )
            run_upgrade(
                self.report,
                relay,
                subject,
                endpoints,
                rate=int(most / 2),
                sessions=sessions,
                core=self._generator_core,
                duration_ms=self.scope.upgrade_duration_ms,
                repetitions=self.repetitions,
                progress=self.say,
            )

    def scaling(self, master: BenchMaster, endpoints: Endpoints, work: Path, engine: str) -> None:
        """Measure one relay of one worker and one of two."""
        name = f"relay-{engine}"
        with self.part("scaling", name), contextlib.ExitStack() as stack:
            subjects = {}
            for workers in (1, 2):
                directory = work / f"scaling-{engine}-{workers}"
                relay = RelayProcess(
                    master,
                    directory,
                    workers=workers,
                    max_sessions=self.scope.sessions + _SPARE_SESSIONS,
                    engine=engine,
                )
                stack.enter_context(relay)
                subjects[workers] = relay_subject(relay, master, endpoints, directory, name=name)
            run_scaling(
                self.report,
                subjects,
                ForwardCase(16, gso=False, sessions=self.scope.sessions),
                endpoints,
                cores=len(os.sched_getaffinity(0)),
                duration_ms=self.scope.duration_ms,
                repetitions=self.repetitions,
                progress=self.say,
            )


def run(
    scope: Scope,
    *,
    repetitions: int,
    engines: Sequence[str] = ENGINES,
    console: Console,
) -> tuple[Report, bool]:
    """Measure all of `scope`.

    Returns:
        The report, and True where every part ended well (a missing optional program is well).

    Raises:
        CompileError: without the native programs there is nothing to measure with.
    """
    bench = _Bench(scope, repetitions, engines, console)
    began = time.monotonic()
    for program in ("generator", "floor"):
        compile_program(program)
    with (
        tempfile.TemporaryDirectory(prefix="wavry-bench-") as directory,
        BenchMaster() as master,
        Endpoints.open(scope.sockets, scope.sockets) as endpoints,
    ):
        work = Path(directory)
        if "forward" in scope.parts:
            with bench.part(FORWARD, "all"):
                bench.forward(master, endpoints, work)
        for engine in engines:
            if "latency" in scope.parts:
                bench.latency(master, endpoints, work, engine)
            if "flood" in scope.parts and engine == "native":
                bench.flood(master, endpoints, work)
            bench.admission_and_memory(master, endpoints, work, engine)
            if "kill" in scope.parts:
                bench.kill(master, endpoints, work, engine)
            if "upgrade" in scope.parts and engine == "native":
                bench.upgrade(master, endpoints, work)
            if "scaling" in scope.parts:
                bench.scaling(master, endpoints, work, engine)
    bench.report.machine["duration_s"] = round(time.monotonic() - began, 1)
    return bench.report, not bench.failed


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench",
        description="Measure the relay against bare C forwarders, a uvloop relay and coturn.",
    )
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"), help="JSON file")
    parser.add_argument("--repetitions", type=int, default=3, help="runs of each case (default 3)")
    parser.add_argument("--quick", action="store_true", help="short form: seconds, few cases")
    parser.add_argument("--engine", action="append", help="relay engine (may be repeated)")
    parser.add_argument(
        "--max-sessions", type=int, help="leave cases with more sessions out (said in the output)"
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="only these parts")
    given = parser.parse_args(arguments)
    if given.repetitions < 1:
        parser.error("--repetitions must be at least 1")
    return given


def _scope(given: argparse.Namespace, console: Console) -> Scope:
    scope = QUICK if given.quick else FULL
    kept = scope.more_sessions
    if given.max_sessions is not None:
        kept = tuple(count for count in kept if count <= given.max_sessions)
        console.print(
            f"asked to leave out: sessions={sorted(set(scope.more_sessions) - set(kept))}"
        )
    return Scope(
        bursts=scope.bursts,
        sessions=scope.sessions,
        more_sessions=kept,
        sockets=scope.sockets,
        duration_ms=scope.duration_ms,
        kill_duration_ms=scope.kill_duration_ms,
        upgrade_duration_ms=scope.upgrade_duration_ms,
        admissions=scope.admissions,
        parts=tuple(given.part) if given.part else scope.parts,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; 0 where every part could be measured."""
    given = _parse(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_LOG_COLUMNS)
    scope = _scope(given, console)
    try:
        report, well = run(
            scope,
            repetitions=given.repetitions,
            engines=given.engine or ENGINES,
            console=console,
        )
    except CompileError as error:
        console.print(f"bench: {error}", style="red", markup=False)
        return 1
    table.show(report, console)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_bytes(report.to_json())
    console.print(f"written: {given.output}", highlight=False)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
