"""The images of `make images` under podman, in a network namespace of the test's own."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.machines.namespaces import Namespace
from support.needs import lack, need_program
from support.paths import REPOSITORY

STORE = REPOSITORY / "build" / "images"
LOCKS = Path("/dev/shm/libpod_lock")
"""podman's, one for all its stores of root; it stays where podman was at work here before."""
PODMAN = (
    "podman", "--root", str(STORE / "storage"), "--runroot", str(STORE / "run"),
    "--tmpdir", str(STORE / "podman"),
)  # fmt: skip
COMMAND_TIMEOUT_S = 90.0


def need_images() -> None:
    """Go on where a container of the images can run."""
    if os.geteuid() != 0:
        lack("needs root: containers")
    need_program("buildah", "podman", "runc", "ip", "prometheus")
    if not (REPOSITORY / "build/images.json").exists():
        lack("needs the images: run `make images`")


class Podman:
    """Containers and volumes of one test run; all are removed at its end.

    Args:
        namespace: network in which the containers live.
        prefix: of their names.
        address: of gateway, master and relay for each other.
    """

    def __init__(self, namespace: Namespace, prefix: str, address: str) -> None:
        self.prefix = prefix
        self._address = address
        self._network = f"ns:/proc/{os.getpid()}/fd/{namespace.fd}"
        self._options = [*PODMAN, "--runtime", "runc", "--cgroup-manager", "cgroupfs"]
        # No systemd is there to call the health checks: the test does.
        self._environment = {**os.environ, "DISABLE_HC_SYSTEMD": "true"}
        self._running: list[subprocess.Popen[str]] = []

    def __call__(self, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [*self._options, *words],
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            env=self._environment,
        )
        if check:
            assert done.returncode == 0, f"podman {' '.join(words)}\n{done.stdout}{done.stderr}"
        return done

    def name(self, service: str) -> str:
        return f"{self.prefix}-{service}"

    def words(self, service: str, *options: str) -> list[str]:
        """``run`` with what every container of the test has."""
        return [
            "run", "--name", self.name(service), "--network", self._network,
            *(word for name in ("gateway", "master", "relay")
              for word in ("--add-host", f"{name}:{self._address}")),
            *options,
        ]  # fmt: skip

    def start(self, service: str, image: str, *options: str, words: tuple[str, ...] = ()) -> None:
        """Start a container that stays."""
        self(*self.words(service, "--detach", *options), image, *words)

    def once(self, service: str, image: str, *options: str, words: tuple[str, ...]) -> str:
        """Run a container to its good end; what it printed on standard output."""
        return self(*self.words(service, "--rm", *options), image, *words).stdout

    def attached(
        self, service: str, image: str, *options: str, words: tuple[str, ...]
    ) -> "subprocess.Popen[str]":
        """Start a container with pipes to it."""
        process = subprocess.Popen(
            [*self._options, *self.words(service, "--interactive", *options), image, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment,
        )
        self._running.append(process)
        return process

    def run_in(self, service: str, *words: str, check: bool = True) -> Any:
        """Run a command in a running container."""
        return self("exec", self.name(service), *words, check=check)

    def facts(self, service: str) -> dict[str, Any]:
        (facts,) = json.loads(self("inspect", self.name(service)).stdout)
        return dict(facts)

    def health(self, service: str) -> int:
        """Exit status of the image's own HEALTHCHECK."""
        return self("healthcheck", "run", self.name(service), check=False).returncode

    def log(self, service: str) -> str:
        done = self("logs", self.name(service), check=False)
        return done.stdout + done.stderr

    def close(self) -> None:
        """Remove every container and volume of this run."""
        names = self("ps", "--all", "--format", "{{.Names}}", check=False).stdout.split()
        ours = [name for name in names if name.startswith(self.prefix)]
        if ours:
            self("rm", "--force", "--time", "0", "--volumes", *ours, check=False)
        volumes = self("volume", "ls", "--format", "{{.Name}}", check=False).stdout.split()
        for volume in volumes:
            if volume.startswith(self.prefix):
                self("volume", "rm", "--force", volume, check=False)
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.communicate()
        left = self("ps", "--all", "--format", "{{.Names}}").stdout
        left += self("volume", "ls", "--quiet").stdout
        assert self.prefix not in left


@contextlib.contextmanager
def store_in_use() -> Iterator[None]:
    """Afterwards nothing of podman is left but the images: no lock, and no mount.

    What the storage driver leaves mounted would keep `make clean` from its work.
    """
    had_locks = LOCKS.exists()
    try:
        yield
    finally:
        _release_mounts()
        shutil.rmtree(STORE / "podman", ignore_errors=True)
        if not had_locks:
            LOCKS.unlink(missing_ok=True)
    assert str(STORE) not in Path("/proc/mounts").read_text()


def _release_mounts() -> None:
    for line in reversed(Path("/proc/mounts").read_text().splitlines()):
        path = line.split()[1]
        if Path(path).is_relative_to(STORE):
            with contextlib.suppress(subprocess.CalledProcessError):
                subprocess.run(["umount", path], check=True, stderr=sys.stderr)
