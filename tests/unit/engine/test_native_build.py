"""The built extension belongs to these sources, and a stale one is refused, never used."""

import importlib
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import structlog
import structlog.testing
from support.engine.native import ENGINE_DIR
from support.needs import need_native
from support.paths import REPOSITORY

from wavry_relay.engine import EngineUnavailableError, c_header, choose_engine
from wavry_relay.engine import choice as choice_module
from wavry_relay.engine.sources import native_sources
from wavry_relay.shm.control import EngineKind


def test_native_engine_is_built_from_these_sources() -> None:
    """Fails where a compiler is there and the extension is not: nothing below may be skipped."""
    need_native()
    assert choose_engine("native") is EngineKind.NATIVE
    assert choose_engine("auto") is EngineKind.NATIVE


@pytest.mark.parametrize("wanted", ["auto", "native"])
@pytest.mark.parametrize("stale", ["LAYOUT_DIGEST", "SOURCES_DIGEST"])
def test_pitfall_stale_extension_is_refused(
    monkeypatch: pytest.MonkeyPatch, wanted: str, stale: str
) -> None:
    need_native()
    native = importlib.import_module("wavry_relay.engine._native")
    fake = types.SimpleNamespace(
        LAYOUT_DIGEST=native.LAYOUT_DIGEST, SOURCES_DIGEST=native.SOURCES_DIGEST
    )
    setattr(fake, stale, "0" * 64)
    monkeypatch.setattr(choice_module.importlib, "import_module", lambda _name: fake)
    with pytest.raises(EngineUnavailableError, match="build it again"):
        choose_engine(wanted)
    assert choose_engine("reference") is EngineKind.REFERENCE


def test_pitfall_changed_layout_refuses_the_old_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    need_native()
    monkeypatch.setattr(choice_module, "header_digest", lambda: "1" * 64)
    with pytest.raises(EngineUnavailableError, match="build it again"):
        choose_engine("auto")


def test_extension_that_cannot_be_loaded_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_name: str) -> None:
        raise ImportError("undefined symbol: wv_run")

    need_native()
    monkeypatch.setattr(choice_module.importlib, "import_module", broken)
    with pytest.raises(EngineUnavailableError, match="undefined symbol"):
        choose_engine("native")
    with structlog.testing.capture_logs() as logged:
        assert choose_engine("auto") is EngineKind.REFERENCE
    assert [entry["event"] for entry in logged] == ["native_engine_missing"]


def test_setup_knows_three_ways_to_build() -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "--name"],
        cwd=REPOSITORY,
        env={"WAVRY_BUILD_NATIVE": "perhaps"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    assert "require, skip or try" in done.stderr


@pytest.mark.parametrize(("wanted", "fails"), [("require", True), ("try", False), ("skip", False)])
def test_a_missing_compiler_fails_only_where_the_engine_is_required(
    wanted: str, fails: bool, tmp_path: Path
) -> None:
    shutil.copy(REPOSITORY / "setup.py", tmp_path)
    sources = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ENGINE_DIR, tmp_path / "wavry_relay/engine", ignore=sources)
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tmp_path,
        env={**os.environ, "CC": str(tmp_path / "no-compiler"), "WAVRY_BUILD_NATIVE": wanted},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode != 0) is fails, done.stderr
    assert not list(tmp_path.rglob("*.so"))
    assert ("was not built" in done.stdout) is (wanted == "try")


def test_every_source_of_the_engine_is_listed() -> None:
    listed = native_sources(ENGINE_DIR)
    present = [
        path for path in ENGINE_DIR.rglob("*") if path.suffix in {".c", ".h", ".pyx", ".pxd"}
    ]
    assert listed == sorted(present)
    assert {"decide.c", "layout.h", "_native.pyx", "_native.pxd"} <= {path.name for path in listed}


def test_installed_engine_has_no_sources_to_compare(tmp_path: Path) -> None:
    assert native_sources(tmp_path) == []


def test_digest_is_of_the_rendered_header() -> None:
    assert len(c_header.header_digest()) == 64
    assert c_header.header_digest() == c_header.header_digest()


def test_a_sanitized_engine_is_never_built_into_the_tree() -> None:
    before = {path: path.stat().st_mtime_ns for path in ENGINE_DIR.glob("*.so")}
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=REPOSITORY,
        env={**os.environ, "WAVRY_BUILD_SANITIZE": "address"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode != 0
    assert "directory of its own" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in ENGINE_DIR.glob("*.so")} == before


def test_a_header_that_an_older_build_left_behind_is_not_used(tmp_path: Path) -> None:
    """The structs of such a copy may be other ones: the engine then reads its own memory wrong."""
    need_native()
    shutil.copy(REPOSITORY / "setup.py", tmp_path)
    sources = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ENGINE_DIR, tmp_path / "wavry_relay/engine", ignore=sources)
    left = tmp_path / "build/cython/wavry_relay/engine/fastpath.h"
    left.parent.mkdir(parents=True)
    left.write_text('#error "a copy of an older build"\n')
    quick = tmp_path / "quick-cc"
    quick.write_text('#!/bin/sh\nexec gcc "$@" -O0\n')
    quick.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tmp_path,
        env={**os.environ, "WAVRY_BUILD_NATIVE": "require", "CC": str(quick)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(tmp_path.rglob("wavry_relay/engine/*.so"))
