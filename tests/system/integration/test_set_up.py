"""What `make demo` and `make test` look for first, on a machine that lacks it.

`make fresh-machine` does it on a real one.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.paths import REPOSITORY

SCRIPT = REPOSITORY / ".ci" / "system-packages"
COMPLETE = {"make": "true", "gcc": "true", "python3": "true"}


def look(directory: Path, programs: dict[str, str], **settings: str) -> tuple[int, str]:
    """Exit status and output where `PATH` has these programs only: no apt-get, so no installing."""
    (directory / "bash").symlink_to(str(shutil.which("bash")))
    for name, body in programs.items():
        (directory / name).write_text(f"#!{shutil.which('bash')}\n{body}\n")
        (directory / name).chmod(0o755)
    done = subprocess.run(
        [SCRIPT, "needed"],
        capture_output=True,
        text=True,
        env={"PATH": str(directory), **settings},
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("changed", "packages"),
    [
        ({"python3": "false"}, "python3-venv python3-dev"),
        ({"python3": "false", "gcc": ""}, "python3-venv gcc libc6-dev python3-dev"),
        ({"gcc": "false"}, "libc6-dev"),
        ({"python3": "", "make": ""}, "make python3 python3-venv python3-dev"),
    ],
)
def test_everything_that_is_missing_stands_in_one_line_with_the_command(
    tmp_path: Path, changed: dict[str, str], packages: str
) -> None:
    programs = {name: body for name, body in (COMPLETE | changed).items() if body}
    code, output = look(tmp_path, programs)
    assert code == 1
    command = f"apt-get install --no-install-recommends {packages}"
    assert output == f"system packages: {packages} missing; run as root: {command}\n"


def test_nothing_is_said_where_nothing_is_missing(tmp_path: Path) -> None:
    assert look(tmp_path, COMPLETE) == (0, "")


def test_without_the_native_engine_no_compiler_is_needed(tmp_path: Path) -> None:
    programs = {"make": "true", "python3": "[[ $2 == *ensurepip* ]]"}
    assert look(tmp_path, programs, WAVRY_BUILD_NATIVE="skip") == (0, "")


@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_looks_first(target: str) -> None:
    """Typed from nothing (`--always-make`), the first line that runs is the look."""
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "PYTHON=python3", target],
        cwd=REPOSITORY,
        # Without what a make that runs this test left for its children.
        env={name: text for name, text in os.environ.items() if not name.startswith("MAKE")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[0].endswith(".ci/system-packages needed")


def test_the_short_suite_of_the_fresh_machine_exists() -> None:
    script = (REPOSITORY / "docker" / "fresh_machine.py").read_text()
    named = re.findall(r'"(tests/[\w/.]+)"', script)
    assert len(named) >= 5
    assert all((REPOSITORY / path).exists() for path in named)
