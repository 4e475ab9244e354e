"""Plain C tests and the fuzz target of the packet path, under ASan and UBSan."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from native_corpus_support import CORPUS, seeds
from native_support import ENGINE_DIR, SANITIZERS, compile_c, run_sanitized

from wavry_relay.shm import c_header

FUZZ_SECONDS = float(os.environ.get("WAVRY_FUZZ_SECONDS", "10"))


def test_header_is_the_one_of_the_layout() -> None:
    """`python -m wavry_relay.shm.c_header` after a change of the layout, then commit."""
    assert c_header.HEADER_PATH.read_text() == c_header.render()


def test_packet_path_knows_nothing_of_python() -> None:
    for name in ("decide.c", "decide.h", "fastpath.c", "fastpath.h", "layout.h"):
        assert "Python.h" not in (ENGINE_DIR / name).read_text()


def test_packet_path_allocates_only_when_it_is_made() -> None:
    text = (ENGINE_DIR / "fastpath.c").read_text()
    made = text[text.index("take_memory(struct") : text.index("void wv_engine_free")]
    outside = text.replace(made, "")
    assert re.findall(r"\b(?:m|c|re)alloc\(", outside) == ["calloc("]  # the engine itself
    assert not re.search(r"\b(?:m|c|re)alloc\(", (ENGINE_DIR / "decide.c").read_text())


@pytest.mark.parametrize("name", ["decide", "fastpath"])
def test_c_tests_pass_under_sanitizers(name: str, tmp_path: Path) -> None:
    program = compile_c(tmp_path / name, f"test_{name}.c", flags=SANITIZERS)
    assert run_sanitized(program) == f"{name}: ok\n"


def test_packet_path_compiles_without_a_warning_at_o3(tmp_path: Path) -> None:
    """More optimisation sees more; the build itself uses -O2."""
    compile_c(tmp_path / "decide", "test_decide.c", flags=["-O3", "-Wshadow", "-Wvla"])


def test_corpus_is_the_one_of_its_generator() -> None:
    """`python tests/native_corpus_support.py` writes it; finds of the fuzzer are added by hand."""
    for name, content in seeds().items():
        assert (CORPUS / name).read_bytes() == content


def test_fuzz_segments(tmp_path: Path) -> None:
    """Ten seconds here; `make fuzz` runs long."""
    corpus = sorted(CORPUS.iterdir())
    seed = os.environ.get("WAVRY_FUZZ_SEED", "1")
    if shutil.which("clang") is not None and has_libfuzzer(tmp_path):
        program = tmp_path / "fuzz"
        command = ["clang", "-std=c11", "-g", "-O1", "-fno-strict-aliasing", f"-I{ENGINE_DIR}"]
        command += ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all", "-o"]
        command += [str(program), str(CORPUS.parent / "fuzz_segments.c")]
        command += [str(ENGINE_DIR / "decide.c"), str(ENGINE_DIR / "fastpath.c")]
        subprocess.run(command, check=True, timeout=120)
        fresh = tmp_path / "corpus"
        fresh.mkdir()
        run_sanitized(
            program, f"-max_total_time={FUZZ_SECONDS:.0f}", f"-seed={seed}", fresh, CORPUS,
            timeout_s=FUZZ_SECONDS + 60,
        )  # fmt: skip
        return
    program = compile_c(
        tmp_path / "fuzz", "fuzz_segments.c", "fuzz_main.c", flags=[*SANITIZERS, "-O1"]
    )
    done = subprocess.run(
        [program, str(FUZZ_SECONDS), seed, *corpus],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=FUZZ_SECONDS + 60,
    )
    crash = tmp_path / "crash-input"
    found = crash.read_bytes().hex() if crash.exists() else "none"
    assert done.returncode == 0, f"{done.stderr}\ninput: {found}"
    runs = int(done.stdout.removeprefix("runs: "))
    print(f"{runs} inputs in {FUZZ_SECONDS:.0f} s")
    assert runs > 1000


def has_libfuzzer(directory: Path) -> bool:
    source = directory / "empty.c"
    source.write_text("int LLVMFuzzerTestOneInput(const char *a, long b) { return a && b && 0; }\n")
    command = ["clang", "-fsanitize=fuzzer", "-o", str(directory / "empty"), str(source)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
