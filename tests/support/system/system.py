"""A whole system of real processes for the integration and fault tests."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.waiting import wait_until

START_TIMEOUT_S = 60.0


def clean_environment(**extra: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WAVRY_")}
    return kept | extra


def get_json(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=5) as response:
        body: dict[str, Any] = json.load(response)
    return body


def get_text(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:
        return str(response.read().decode())


class RunningSystem:
    """A system started by ``wavryctl dev up``, and its command line."""

    def __init__(self, directory: Path, process: "subprocess.Popen[str] | None" = None) -> None:
        self.directory = directory
        self.process = process
        self.description: dict[str, Any] = json.loads((directory / "dev.json").read_text())
        self.gateway_url: str = self.description["gateway_url"]
        self.master_url: str = self.description["master_url"]

    @property
    def relay(self) -> dict[str, Any]:
        relay: dict[str, Any] = self.description["relays"][0]
        return relay

    def health(self, relay: int = 0) -> dict[str, Any]:
        return get_json(self.description["relays"][relay]["ops_url"] + "/health")

    def worker_pids(self, relay: int = 0) -> list[int]:
        return [pid for pid in self.health(relay)["workers"]["pids"] if pid]

    def service_pid(self, name: str) -> int:
        return int(json.loads((self.directory / "run" / f"{name}.json").read_text())["pid"])

    def ctl(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, "-m", "wavry_cp.admin", "--dev", str(self.directory), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env=clean_environment(),
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def ctl_json(self, *arguments: str) -> Any:
        return json.loads(self.ctl(*arguments, "--json").stdout)

    def logs(self) -> str:
        return "\n".join(
            path.read_text(errors="replace") for path in sorted((self.directory / "logs").iterdir())
        )


@contextlib.contextmanager
def running_system(
    directory: Path, *, relays: int = 1, workers: int = 2, settings_file: Path | None = None
) -> Iterator[RunningSystem]:
    """``wavryctl dev up`` for the length of a block."""
    settings = [] if settings_file is None else ["--settings-file", str(settings_file)]
    process = subprocess.Popen(
        [
            sys.executable, "-m", "wavry_cp.admin", "dev", "up", "--json",
            "--relays", str(relays), "--workers", str(workers), "--data", str(directory),
            *settings,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )  # fmt: skip
    try:
        wait_until(
            lambda: (directory / "dev.json").exists() or process.poll() is not None,
            timeout_s=START_TIMEOUT_S,
            what="dev.json",
        )
        if process.poll() is not None:
            output = process.communicate()
            raise AssertionError(f"dev up ended with {process.returncode}: {output}")
        yield RunningSystem(directory, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
