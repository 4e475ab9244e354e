"""Building the native engine for its tests, and pairs of engines over equal tables."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.needs import need_program
from support.paths import REPOSITORY
from support.relay.world import World
from wavry_peer.service.clock import Instant
from wavry_relay.engine import open_engine
from wavry_relay.engine.base import Engine
from wavry_relay.shm.address import Address
from wavry_relay.shm.control import EngineKind
from wavry_relay.shm.counters import CounterRow, totals
from wavry_relay.shm.segment import Segment

ENGINE_DIR = REPOSITORY / "wavry_relay" / "engine"
CORE_DIR = ENGINE_DIR / "core"
C_TESTS_DIR = REPOSITORY / "tests" / "unit" / "engine" / "c"
STRICT_FLAGS = ["-std=c11", "-g", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def compile_c(target: Path, *sources: str, flags: Sequence[str] = ()) -> Path:
    """Compile C tests together with the packet path."""
    need_program("gcc")
    command = ["gcc", *STRICT_FLAGS, *flags, f"-I{CORE_DIR}", f"-I{C_TESTS_DIR}", "-o", target]
    command += [C_TESTS_DIR / name for name in sources]
    command += sorted(CORE_DIR.glob("*.c"))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return target


def run_sanitized(*command: object, timeout_s: float = 120) -> str:
    """Run a program that a sanitizer ends at the first fault; what it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        env={**os.environ, "ASAN_OPTIONS": "abort_on_error=0:detect_leaks=1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python(code: str, *arguments: object, **options: Any) -> "subprocess.Popen[bytes]":
    """A process of this interpreter that finds the tree."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=REPOSITORY, **options)


@dataclass
class Twin:
    """An engine of one kind over a copy of a world's segment."""

    kind: EngineKind
    segment: Segment
    engine: Engine
    row: CounterRow

    def decide(self, datagram: bytes, source: Address, now: Instant) -> object:
        return self.engine.decide(datagram, source, now)

    def counters(self) -> dict[str, int]:
        return totals(self.segment)

    def tables(self) -> dict[str, bytes]:
        """All regions but the workers' rows, where the native engine keeps the locks' owners."""
        regions = self.segment.geometry.regions
        return {
            name: bytes(self.segment.u8[region.offset : region.end])
            for name, region in regions.items()
            if name != "workers"
        }


@contextmanager
def twins(world: World, sockets: dict[EngineKind, Any] | None = None) -> Iterator[list[Twin]]:
    """A reference and a native engine over copies of the world's tables."""
    made: list[Twin] = []
    try:
        for kind in (EngineKind.REFERENCE, EngineKind.NATIVE):
            segment = Segment.anonymous(world.segment.geometry, now_ns=world.segment.boot_ns)
            segment.u8[:] = world.segment.u8
            row = CounterRow(segment, 0)
            given = sockets[kind] if sockets else ()
            engine = open_engine(kind, segment, given, row, world.clock)
            made.append(Twin(kind, segment, engine, row))
        yield made
    finally:
        for twin in made:
            twin.engine.close()
            twin.segment.close()
