"""``make demo`` and a short ``make test`` on a Debian that has python3, gcc, make and git only.

Run by ``make fresh-machine``, as root.  The machine is a container on the base of the images (see
build.py), with its own file system and the network of this machine.  Both commands must find out
what is missing: without root they name it in one line, as root they install it.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from build import BUILD_CA, LOCAL_BASE, REPOSITORY, Store, make_base, pip_files

TREE: Final = "/wavry"
ON_IT: Final = ("python3", "gcc", "make", "git")
NOBODY: Final = "65534:65534"
MISSING: Final = "apt-get install --no-install-recommends python3-venv libc6-dev python3-dev"
"""End of the one line that a user without root reads."""
SHORT_TESTS: Final = (
    "tests/docs/test_docs.py",
    "tests/unit/engine/test_choice.py",
    "tests/unit/engine/test_native.py",
    "tests/unit/engine/test_native_admission.py",
    "tests/unit/engine/test_native_io.py",
    "tests/system/integration/test_sessions.py",
)
"""Both engines and a whole system; the whole suite runs on the machine itself."""
MOUNTED_AT: Final = {"pip.conf": "/etc/pip.conf", "ca.crt": BUILD_CA}
ENVIRONMENT: Final = {"WAVRY_BUILD_NATIVE": "require", "HOME": "/root", "LANG": "C.UTF-8"}


class FreshMachine:
    """A container on the base of the images; `name` is buildah's."""

    def __init__(self, store: Store, name: str, volumes: list[str]) -> None:
        self._store = store
        self._name = name
        self._options = [f"--volume={volume}" for volume in volumes]
        self._options += [f"--env={key}={value}" for key, value in ENVIRONMENT.items()]

    def run(self, *command: str, user: str = "0:0") -> subprocess.CompletedProcess[str]:
        """Run a command in the tree, show what it says, and give both back."""
        print(
            f"fresh machine{'' if user == '0:0' else ', no root'}: {' '.join(command)}", flush=True
        )
        began_s = time.monotonic()
        process = subprocess.Popen(  # noqa: S603  # our own words
            ["buildah", *self._store.options, "run", "--isolation=chroot", f"--user={user}",  # noqa: S607  # as in build.py
             f"--workingdir={TREE}", *self._options, self._name, "--", *command],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        lines = []
        for line in process.stdout or ():
            print(f"  {line}", end="", flush=True)
            lines.append(line)
        code = process.wait()
        print(f"fresh machine: status {code} after {time.monotonic() - began_s:.0f} s", flush=True)
        return subprocess.CompletedProcess(command, code, "".join(lines))

    def must(self, *command: str) -> None:
        """Run a command that has to succeed."""
        if self.run(*command).returncode != 0:
            sys.exit(f"fresh machine: `{' '.join(command)}` failed")

    def read(self, path: str) -> bytes:
        """Content of a file in the tree."""
        mounted = self._store.buildah("mount", self._name, capture=True).strip()
        return (Path(mounted) / TREE.lstrip("/") / path).read_bytes()


@contextmanager
def fresh_machine(store: Store) -> Iterator[FreshMachine]:
    """Make a machine with a copy of this tree, for the length of a block."""
    make_base(store)
    name = store.buildah("from", "--quiet", LOCAL_BASE, capture=True).strip()
    try:
        with tempfile.TemporaryDirectory(prefix="wavry-fresh-") as scratch:
            tree = Path(scratch) / "tree"
            copy_tree(tree)
            store.buildah("add", "--quiet", name, str(tree), TREE)
            volumes = [
                f"{file}:{MOUNTED_AT[kind]}:ro" for kind, file in pip_files(Path(scratch)).items()
            ]
            volumes += pip_cache()
            yield FreshMachine(store, name, volumes)
    finally:
        store.buildah("rm", name, capture=True)


def pip_cache() -> list[str]:
    """Volume with what pip has fetched on this machine, so that it is not fetched again."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "cache", "dir"], check=False, text=True, capture_output=True
    )
    directory = listed.stdout.strip()
    return [f"{directory}:/root/.cache/pip"] if directory and Path(directory).is_dir() else []


def copy_tree(target: Path) -> None:
    """Copy what git knows of this tree, and what is new, but nothing that was built."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607  # from the PATH
        cwd=REPOSITORY, check=True, text=True, capture_output=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target / name)


def check(machine: FreshMachine) -> None:
    """Type both commands."""
    machine.must("apt-get", "update", "-qq")
    machine.must("apt-get", "install", "-y", "-qq", "--no-install-recommends", *ON_IT)
    for target in ("demo", "test"):
        refused = machine.run("make", target, user=NOBODY)
        if refused.returncode == 0 or MISSING not in refused.stdout:
            sys.exit(f"fresh machine: `make {target}` did not say: {MISSING}")
    machine.must("make", "demo")
    engine = json.loads(machine.read("build/demo.json"))["engine"]
    if engine != "native":
        sys.exit(f"fresh machine: the demo ran on the {engine} engine")
    machine.must("make", "test", f"PYTEST_ARGS=-q -rs {' '.join(SHORT_TESTS)}")


def main() -> None:
    """Make the machine and check it."""
    missing = [name for name in ("buildah", "debootstrap", "git") if shutil.which(name) is None]
    if missing:
        sys.exit(f"{', '.join(missing)} is missing: run `.ci/system-packages images` as root")
    if os.geteuid() != 0:
        sys.exit("a fresh machine needs root (chroot, debootstrap)")
    directory = REPOSITORY / "build/images"
    directory.mkdir(parents=True, exist_ok=True)
    store = Store(directory)
    try:
        with fresh_machine(store) as machine:
            check(machine)
    finally:
        store.let_go()


if __name__ == "__main__":
    main()
