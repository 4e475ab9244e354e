"""Writes the lock files of the images: every package with its version and the hashes of its files.

Run by ``make lock``.  What the images hold is named in pyproject.toml alone; this pins it, for
Debian 12's Python, and takes the newest versions that fit.  With ``--keep`` only what no longer
fits is changed.  No registry is named: pip takes its own.
"""

import argparse
import os
import subprocess
import tempfile
import tomllib
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parent.parent
REQUIREMENTS: Final = REPOSITORY / "docker" / "requirements"
PYTHON: Final = "3.11"
"""Of Debian 12, the base of the images."""

EXTRA_OF_LOCK: Final = {"peer": None, "relay": "relay", "control-plane": "cp"}
"""Gateway and master are one installation."""
BUILD_LOCK: Final = "build"


def direct_requirements(lock: str) -> list[str]:
    """Return what pyproject.toml asks for, for a lock file."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    if lock == BUILD_LOCK:
        return list(project["build-system"]["requires"])
    found = list(project["project"]["dependencies"])
    extra = EXTRA_OF_LOCK[lock]
    if extra is not None:
        found += project["project"]["optional-dependencies"][extra]
    return found


def write_lock(lock: str, *, keep: bool) -> None:
    """Resolve the requirements of a lock file and write it."""
    target = REQUIREMENTS / f"{lock}.txt"
    if not keep:
        target.unlink(missing_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".in") as asked:
        asked.write("\n".join(direct_requirements(lock)))
        asked.flush()
        subprocess.run(  # noqa: S603  # our own words
            [  # noqa: S607  # from the virtual environment that runs this
                "uv", "pip", "compile", "--quiet", "--generate-hashes", "--no-annotate",
                "--python-version", PYTHON, "--python-platform", "linux", "--only-binary", ":all:",
                "--custom-compile-command", "make lock", "--output-file", str(target), asked.name,
            ],
            check=True,
            env={**os.environ, "UV_NO_CONFIG": "1"},
        )  # fmt: skip


def main() -> None:
    """Write all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep versions that still fit")
    keep = parser.parse_args().keep
    REQUIREMENTS.mkdir(exist_ok=True)
    for lock in (*EXTRA_OF_LOCK, BUILD_LOCK):
        write_lock(lock, keep=keep)
        print(f"wrote docker/requirements/{lock}.txt")


if __name__ == "__main__":
    main()
