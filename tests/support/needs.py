"""What a test needs of the machine: a test that lacks it is skipped and says so; in CI it fails."""

import os
import shutil
import sysconfig
from pathlib import Path
from typing import Final, NoReturn

import pytest

from wavry_relay.engine import EngineUnavailableError, choose_engine
from wavry_relay.shm.control import EngineKind

__all__ = ["LONG", "lack", "need_engine", "need_native", "need_program", "need_root"]

LONG: Final = "WAVRY_TEST_LONG" in os.environ
"""Whether tests marked `long` run in their long form, as in `make test-slow`."""


def lack(reason: str) -> NoReturn:
    """Skip the test for a reason; fail it where CI is set."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (CI installs all of it: .ci/system-packages)")
    pytest.skip(reason)


def need_program(*names: str) -> None:
    """Go on where all programs are found."""
    absent = [name for name in names if shutil.which(name) is None]
    if absent:
        lack(f"needs {', '.join(absent)}: `make system` installs it")


def need_root(what: str) -> None:
    """Go on as root."""
    if os.geteuid() != 0:
        lack(f"needs root: {what}")


def need_native() -> None:
    """Go on where the native engine is built; where it could be and is not, the test fails."""
    try:
        choose_engine("native")
    except EngineUnavailableError as error:
        need_program("gcc")
        if not Path(sysconfig.get_path("include"), "Python.h").exists():
            lack("needs the headers of Python (python3-dev): `make system` installs them")
        pytest.fail(f"build it (python setup.py build_ext --inplace): {error}")


def need_engine(kind: EngineKind) -> EngineKind:
    """Go on where relays can run this engine."""
    if kind is EngineKind.NATIVE:
        need_native()
    return kind
