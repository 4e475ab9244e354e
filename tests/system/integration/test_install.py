"""The distribution, installed into empty environments."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.needs import LONG
from support.paths import REPOSITORY
from support.system.system import clean_environment

SOURCES = (
    "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE",
    "wavry_peer", "wavry_relay", "wavry_cp",
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that building leaves nothing in the tree."""
    target = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(
                path, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.so")
            )
        else:
            shutil.copy(path, target / name)
    return target


def install(source: Path, directory: Path, extra: str, **environment: str) -> Path:
    """Into an empty environment, by the pip of this one; nothing is compiled to byte code.

    In the short form nothing is fetched: the wheel is built with the tools of this environment, and
    what it declares to need is copied from here.
    """
    pip = [sys.executable, "-m", "pip"]
    run([sys.executable, "-m", "venv", "--without-pip", str(directory)], environment)
    into = [*pip, "--python", str(directory / "bin/python"), "install", "-q", "--no-compile"]
    if LONG:
        run([*into, f"{source}{extra}"], environment)
    else:
        wheels = ["--no-deps", "--no-build-isolation", "-w", str(directory), str(source)]
        run([*pip, "wheel", "-q", *wheels], environment)
        (wheel,) = directory.glob("*.whl")
        run([*into, "--no-deps", "--no-index", str(wheel)], environment)
        (site,) = directory.glob("lib/python*/site-packages")
        (installed,) = metadata.distributions(name="wavry", path=[str(site)])
        copy_needed(installed, site, set())
    return directory / "bin"


def copy_needed(who: metadata.Distribution, site: Path, copied: set[str]) -> None:
    """Copy what a distribution declares to need, without extras, and what that needs."""
    for text in who.requires or ():
        needed = Requirement(text)
        if needed.name in copied or (needed.marker and not needed.marker.evaluate({"extra": ""})):
            continue
        copied.add(needed.name)
        found = metadata.distribution(needed.name)
        for file in found.files or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(found.locate_file(file)), site / file)
        copy_needed(found, site, copied)


def run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=clean_environment(**environment)
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def base_install(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pip install .` into an empty environment on a machine without a compiler."""
    directory = tmp_path_factory.mktemp("base")
    no_compiler = directory / "no-compiler"
    no_compiler.mkdir()
    for name in ("cc", "gcc", "c++", "g++", "x86_64-linux-gnu-gcc"):
        stand_in = no_compiler / name
        stand_in.write_text("#!/bin/sh\necho 'no compiler here' >&2\nexit 1\n")
        stand_in.chmod(0o755)
    path = f"{no_compiler}:{os.environ['PATH']}"
    return install(source, directory / "venv", "", PATH=path, CC=str(no_compiler / "cc"))


@pytest.mark.long
def test_base_install_is_a_peer_without_a_compiler_and_without_server_parts(
    base_install: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [str(base_install / "wavry-peer"), "--help"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "connect" in done.stdout
    check = (
        "import sys, wavry_peer, wavry_peer.cli, wavry_peer.peer\n"
        "bad = {'aiohttp.web', 'wavry_cp', 'wavry_relay', 'sqlite_utils',"
        " 'prometheus_client'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([str(base_install / "python"), "-c", check], check=True, cwd=tmp_path)


@pytest.mark.long
def test_extras_give_the_services(source: Path, tmp_path: Path) -> None:
    """Installed anew in `make test-slow`, else as this environment has them."""
    installed = Path(sys.executable).parent
    binaries = install(source, tmp_path / "venv", "[relay,cp]") if LONG else installed
    for command in ("wavry-relay", "wavry-master", "wavry-gateway", "wavryctl"):
        version = subprocess.run(
            [str(binaries / command), "--version"], capture_output=True, text=True, cwd=tmp_path
        )
        assert version.returncode == 0
        assert "0.1.0" in version.stdout, f"{command}: {version.stdout}{version.stderr}"


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("wavry-relay", "wavry[relay]"),
        ("wavry-master", "wavry[cp]"),
        ("wavry-gateway", "wavry[cp]"),
    ],
)
def test_an_extra_that_is_missing_is_named(base_install: Path, command: str, extra: str) -> None:
    done = subprocess.run(
        [str(base_install / command), "run"],
        capture_output=True,
        text=True,
        env=clean_environment(),
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr
    assert extra in done.stderr
