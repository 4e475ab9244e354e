"""Plain C tests and the fuzz target of the packet path, under ASan and UBSan."""

import os
import re
import shutil
from pathlib import Path

import pytest
from support.engine import fuzz as native_fuzz_support
from support.engine import native as native_support
from support.engine.corpus import CORPUS, seeds
from support.engine.fuzz import build, has_libfuzzer
from support.engine.native import C_TESTS_DIR, CORE_DIR, SANITIZERS, compile_c, run_sanitized
from support.needs import lack

from wavry_relay.engine import c_header

FUZZ_SECONDS = float(os.environ.get("WAVRY_FUZZ_SECONDS", "3"))
FUZZ_SEED = int(os.environ.get("WAVRY_FUZZ_SEED", "1"))


def test_header_is_the_one_of_the_layout() -> None:
    """`python -m wavry_relay.engine.c_header` after a change of the layout, then commit."""
    assert c_header.HEADER_PATH.read_text() == c_header.render()


OWN_NUMBERS = {
    "NONE", "CONTROL_SPACE", "ARENA_STRIDE", "PLAIN_FOR_NS",
    # Units and the kernel's own.
    "NS_PER_MS", "NS_PER_S", "UDP_SEGMENT", "UDP_GRO",
    # The lock word, which only C reads.
    "OWNER_BITS", "OWNER_MASK", "GENERATION_MASK", "SPINS", "NAP_NS", "NAPS_BETWEEN_QUESTIONS",
    "BUSY_MEMORY_NS",
    # Addresses of this host.
    "ADD_WAIT_NS", "WV_LOCAL_CONTROL_SPACE",
    # Batches of datagrams.
    "IN_CONTROL_SPACE", "LULL_US", "PASSES", "AHEAD_INDEX", "AHEAD_RECORD", "BLOCKED_WAIT_MS",
    "HIDES_MEMORY",
    "WV_MAX_SOCKETS", "WV_RECEIVE_MESSAGES", "WV_RECEIVE_BYTES", "WV_OUT_SEGMENTS",
    "WV_OUT_GROUPS", "WV_GROUP_SEGMENTS", "WV_GROUP_BYTES", "WV_GROUP_PLACES",
    "WV_CONTROL_PACKETS", "WV_CONTROL_BESIDE_MEDIA", "WV_CONTROL_EVERY_MS", "WV_CONTROL_BYTES",
    "WV_CHALLENGES",
    "WV_QUEUE_KNOWN", "WV_QUEUE_STRANGERS", "WV_PLAIN_DESTINATIONS", "WV_MAX_REFUSALS",
    # Answers between C and its shell, which takes them from the C headers.
    "WV_KIND_DROP", "WV_OPEN_OK", "WV_OPEN_NOT_A_SEGMENT", "WV_OPEN_OTHER_LAYOUT",
    "WV_OPEN_BAD_GEOMETRY", "WV_OPEN_NO_SUCH_WORKER", "WV_LOCK_TABLE", "WV_LOCK_SESSION",
    "WV_LOCK_RATE", "WV_LOCK_GLOBAL", "WV_ANSWER_NO", "WV_ANSWER_YES", "WV_ANSWER_BUSY",
    "WV_ANSWER_UNPROVED", "WV_RUN_DONE", "WV_RUN_WOKEN", "WV_RUN_INTERRUPTED", "WV_RUN_FAILED",
}  # fmt: skip
"""Numbers that Python does not know.  One that it knows comes from layout.h."""


def numbers_of(text: str) -> set[str]:
    """Names that a C file gives to numbers, by `#define` or in an enum."""
    defined = re.findall(r"^#define (\w+) .*\d", text, re.MULTILINE)
    counted = re.findall(r"^\s+(?:enum \w+ \{ )?(\w+) = -?\d+\w*,", text, re.MULTILINE)
    inline = re.findall(r"(WV_\w+) = -?\d+", text)
    return {*defined, *counted, *inline}


def test_pitfall_no_number_of_python_is_copied_by_hand() -> None:
    files = [path for path in CORE_DIR.glob("*.[ch]") if path.name != "layout.h"]
    named = set[str]().union(*(numbers_of(path.read_text()) for path in files))
    assert named <= OWN_NUMBERS
    assert numbers_of("#define NETWORK_FACTOR 20u /* source_limits.py */") == {"NETWORK_FACTOR"}
    assert numbers_of("    WV_SOME = 3,\n") == {"WV_SOME"}


def test_packet_path_knows_nothing_of_python() -> None:
    sources = [*CORE_DIR.glob("*.c"), *CORE_DIR.glob("*.h")]
    assert {"decide.c", "admit.c", "fastpath.c"} <= {path.name for path in sources}
    for path in sources:
        assert "Python.h" not in path.read_text()


def test_packet_path_allocates_only_when_it_is_made() -> None:
    text = (CORE_DIR / "fastpath.c").read_text()
    made = text[text.index("take_memory(struct") : text.index("void wv_engine_free")]
    outside = text.replace(made, "")
    assert re.findall(r"\b(?:m|c|re)alloc\(", outside) == ["calloc("]  # the engine itself
    for name in ("decide.c", "admit.c", "local.c"):
        assert not re.search(r"\b(?:m|c|re)alloc\(", (CORE_DIR / name).read_text())


@pytest.mark.parametrize("name", ["decide", "admit", "fastpath"])
def test_c_tests_pass_under_sanitizers(name: str, tmp_path: Path) -> None:
    program = compile_c(tmp_path / name, f"test_{name}.c", flags=SANITIZERS)
    assert run_sanitized(program) == f"{name}: ok\n"


def test_packet_path_compiles_without_a_warning_at_o3(tmp_path: Path) -> None:
    """More optimisation sees more; the build itself uses -O2."""
    compile_c(tmp_path / "decide", "test_decide.c", flags=["-O3", "-Wshadow", "-Wvla"])


def test_corpus_is_the_one_of_its_generator() -> None:
    """`python tests/support/engine/corpus.py` writes it; support/engine/fuzz.py adds finds."""
    for target, content_of in seeds().items():
        for name, content in content_of.items():
            assert (CORPUS / target / name).read_bytes() == content


def test_corpora_stay_small() -> None:
    for target in seeds():
        sizes = [path.stat().st_size for path in (CORPUS / target).iterdir()]
        assert len(sizes) <= 400
        assert sum(sizes) <= 150_000


@pytest.mark.long
@pytest.mark.parametrize(("target", "share"), [("segments", 1.0), ("batches", 0.5), ("head", 0.2)])
def test_fuzz_target_finds_nothing(target: str, share: float, tmp_path: Path) -> None:
    """WAVRY_FUZZ_SECONDS for the segment parser, less for the others; `make fuzz` runs long."""
    finds = Path(os.environ.get("WAVRY_FUZZ_FINDS", tmp_path)) / target
    seconds = FUZZ_SECONDS * share
    said = build(target, tmp_path).run(seconds, FUZZ_SEED, tmp_path, finds)
    runs = int(re.findall(r"(?:runs|number_of_executed_units): +(\d+)", said)[0])
    print(f"{target}: {runs} inputs in {seconds:.0f} s")
    assert runs > 1000


@pytest.mark.parametrize("clang", [False, True], ids=["gcc", "clang"])
def test_fuzz_target_that_finds_something_fails_with_the_input(
    clang: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if clang and not has_libfuzzer(tmp_path):
        lack("needs clang with its libFuzzer: `make system` installs it")
    broken = (C_TESTS_DIR / "fuzz_head.c").read_text()
    broken = broken.replace(
        "    struct wv_tables tables;\n    /*",
        "    CHECK(bytes != 1);\n    struct wv_tables tables;\n    /*",
    )
    (tmp_path / "fuzz_head.c").write_text(broken)
    shutil.copy(C_TESTS_DIR / "fuzz_main.c", tmp_path)
    shutil.copy(C_TESTS_DIR / "segment_support.h", tmp_path)
    for module in (native_fuzz_support, native_support):
        monkeypatch.setattr(module, "C_TESTS_DIR", tmp_path)
    monkeypatch.setattr(native_fuzz_support, "has_libfuzzer", lambda _directory: clang)
    with pytest.raises(AssertionError, match=r"bytes != 1(?s:.*)input: \{'crash-"):
        build("head", tmp_path).run(5, 1, tmp_path, tmp_path / "finds")
