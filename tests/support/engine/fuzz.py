"""Builds and runs the fuzz targets of tests/unit/engine/c: libFuzzer where clang has it, else gcc.

With gcc the driver is fuzz_main.c.

``python tests/support/engine/fuzz.py`` takes what runs of `make fuzz` found from build/fuzz into
the corpora, where it reaches code that no seed reaches (needs clang).
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support.engine.corpus import CORPUS, seeds
from support.engine.native import C_TESTS_DIR, CORE_DIR, SANITIZERS, STRICT_FLAGS, compile_c
from support.paths import REPOSITORY

FINDS = REPOSITORY / "build" / "fuzz"
MAX_INPUT_BYTES = 8192
MAX_KEPT_BYTES = 400
"""Of an input that a merge adds: the corpora stay small, and seeds have the long shapes."""


@dataclass(frozen=True)
class FuzzProgram:
    """A fuzz target that is ready to run."""

    target: str
    program: Path
    is_libfuzzer: bool

    @property
    def corpus(self) -> Path:
        return CORPUS / self.target

    def run(self, seconds: float, seed: int, work: Path, finds: Path) -> str:
        """Fuzz; what the program said.

        Args:
            seconds: how long.
            seed: of its choices.
            work: an input that fails is left here.
            finds: libFuzzer's new inputs, used by its next run too.

        Raises:
            AssertionError: a fault, with the report and the input.
        """
        if self.is_libfuzzer:
            finds.mkdir(parents=True, exist_ok=True)
            arguments: Sequence[object] = (
                f"-max_total_time={max(1, round(seconds))}", f"-seed={seed}",
                f"-max_len={MAX_INPUT_BYTES}", f"-artifact_prefix={work}/", "-print_final_stats=1",
                "-verbosity=0", finds, self.corpus,
            )  # fmt: skip
        else:
            arguments = (seconds, seed, *sorted(self.corpus.iterdir()))
        done = subprocess.run(
            [self.program, *map(str, arguments)],
            cwd=work,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=seconds + 120,
        )
        if done.returncode != 0:
            found = {path.name: path.read_bytes().hex() for path in _artifacts(work)}
            raise AssertionError(f"{done.stdout}{done.stderr}\ninput: {found or 'none'}")
        return done.stdout + done.stderr


def _artifacts(work: Path) -> list[Path]:
    return [path for kind in ("crash", "leak", "oom", "timeout") for path in work.glob(f"{kind}-*")]


def build(target: str, directory: Path) -> FuzzProgram:
    """Compile fuzz_TARGET.c; skips the test where there is no compiler."""
    program = directory / f"fuzz-{target}"
    source = f"fuzz_{target}.c"
    if not has_libfuzzer(directory):
        return FuzzProgram(
            target, compile_c(program, source, "fuzz_main.c", flags=[*SANITIZERS, "-O1"]), False
        )
    command = ["clang", *STRICT_FLAGS, "-O1", f"-I{CORE_DIR}", f"-I{C_TESTS_DIR}"]
    command += ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all", "-o"]
    command += [str(program), str(C_TESTS_DIR / source)]
    command += map(str, sorted(CORE_DIR.glob("*.c")))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return FuzzProgram(target, program, True)


def has_libfuzzer(directory: Path) -> bool:
    """Whether clang is there, with its fuzzer."""
    if shutil.which("clang") is None:
        return False
    source = directory / "empty.c"
    source.write_text("int LLVMFuzzerTestOneInput(const char *a, long b) { return a && b && 0; }\n")
    command = ["clang", "-fsanitize=fuzzer,address", "-o", str(directory / "empty"), str(source)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def main() -> None:
    """Merge the finds into the corpora."""
    FINDS.mkdir(parents=True, exist_ok=True)
    for target in seeds():
        made = build(target, FINDS)
        if not made.is_libfuzzer:
            sys.exit("clang with libFuzzer is needed: apt-get install clang libclang-rt-dev")
        finds = FINDS / target
        finds.mkdir(exist_ok=True)
        merge = [f"-max_len={MAX_KEPT_BYTES}", "-merge=1", str(made.corpus), str(finds)]
        environ = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
        subprocess.run([made.program, *merge], check=True, capture_output=True, env=environ)
        print(f"{target}: {len(list(made.corpus.iterdir()))} inputs")


if __name__ == "__main__":
    main()
