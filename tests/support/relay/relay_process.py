"""Real relays: processes of their own on free ports."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

from support.paths import REPOSITORY
from support.relay.mint import Mint
from support.waiting import is_alive, wait_until
from wavry_peer.protocol import keyset


class Orphan:
    """A process that is not our child, as far as `subprocess.Popen` is used here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        """0 where it has ended: nobody but its parent knows the exit code."""
        return None if is_alive(self.pid) else 0

    def wait(self, timeout_s: float) -> int:
        wait_until(lambda: not is_alive(self.pid), timeout_s=timeout_s, what="end of the relay")
        return 0

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


class RelayProcess:
    """A real relay: ``python -m wavry_relay run`` on free ports.

    Attributes:
        root: where the packages are taken from.

    Args:
        directory: state, ready file and log.
        mint: its root is pinned; its key set is put into the state directory.
        launcher: a Python program to start instead of ``-m wavry_relay``: what "the installed
            version" is for a test that upgrades to another one.
        environ: further settings.
    """

    root = REPOSITORY

    def __init__(
        self,
        directory: Path,
        mint: Mint,
        *,
        workers: int = 2,
        keyset_cached: bool = True,
        launcher: Path | None = None,
        **environ: str,
    ) -> None:
        self.directory = directory
        self._program = ["-m", "wavry_relay"] if launcher is None else [str(launcher)]
        self.state_dir = directory / "state"
        self.ready_file = directory / "ready.json"
        self.log_path = directory / "relay.log"
        self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if keyset_cached:
            document = keyset.encode_keyset(mint.keyset())
            (self.state_dir / "keyset.json").write_bytes(document)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("WAVRY_")}
        self.environ = {
            **inherited,
            "WAVRY_RELAY_LISTEN": "127.0.0.1:0",
            "WAVRY_RELAY_OPS_LISTEN": "127.0.0.1:0",
            "WAVRY_RELAY_STATE_DIR": str(self.state_dir),
            "WAVRY_RELAY_DRAIN_TIMEOUT_S": "0",
            "WAVRY_RELAY_WORKERS": str(workers),
            "WAVRY_RELAY_ROOT_KEY": mint.root_text,
            "WAVRY_RELAY_MAX_SESSIONS": "100",
            "WAVRY_RELAY_IP_PER_S": "100000",
            "WAVRY_RELAY_IP_BURST": "100000",
            "WAVRY_RELAY_COOKIE_AT_VERIFIES_PER_S": "1000000",
            "WAVRY_RELAY_SHED_AT_PCT": "100",
            "WAVRY_RELAY_IDENTITY_PER_S": "100000",
            "WAVRY_RELAY_IDENTITY_BURST": "100000",
            "WAVRY_RELAY_SOCKET_BUFFER_BYTES": "1000000",
            **environ,
        }
        self.environ = {name: text for name, text in self.environ.items() if text}
        self.process: subprocess.Popen[bytes] | Orphan | None = None
        self.facts: dict[str, Any] = {}

    def start(self) -> Self:
        """Start and wait until it serves."""
        self.launch()
        wait_until(
            lambda: self.ready_file.exists() or self.exited,
            timeout_s=60,
            what=f"relay start (log: {self.log_path})",
        )
        if not self.ready_file.exists():
            raise AssertionError(f"relay ended at its start:\n{self.log()}")
        self.facts = json.loads(self.ready_file.read_bytes())
        return self

    def launch(self) -> None:
        """Start without waiting."""
        self.ready_file.unlink(missing_ok=True)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command("--ready-file", str(self.ready_file)),
                cwd=self.root,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def command(self, *options: str) -> list[str]:
        """Command line of ``run``."""
        return [sys.executable, *self._program, "run", *options]

    def follow(self) -> Self:
        """Wait until a successor has taken over and the old process has ended; then be that one."""
        old = self.process
        assert old is not None
        assert old.wait(30) == 0, self.log()
        self.adopt()
        assert self.facts["pid"] != old.pid
        return self

    def adopt(self) -> None:
        """Be the process that the ready file names."""
        self.facts = json.loads(self.ready_file.read_bytes())
        self.process = Orphan(self.facts["pid"])

    @property
    def exited(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    @property
    def relay_id(self) -> str:
        return str(self.facts["relay_id"])

    @property
    def udp(self) -> list[str]:
        return list(self.facts["udp"])

    @property
    def shm_path(self) -> Path:
        found = list(Path("/dev/shm").glob(f"wavry-{self.relay_id}-*"))
        return found[0] if found else Path("/dev/shm/wavry-none")

    def log(self) -> str:
        """What was logged, once no more comes: lines leave by a thread that may lag."""
        text = self.log_path.read_text(errors="replace")
        for _ in range(20):
            time.sleep(0.05)
            before, text = text, self.log_path.read_text(errors="replace")
            if text == before:
                break
        return text

    def events(self, name: str) -> list[dict[str, Any]]:
        """Log lines with an event name."""
        lines = (line for line in self.log().splitlines() if line.startswith("{"))
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def get(self, path: str) -> tuple[int, bytes]:
        """GET from the ops server."""
        try:
            with urllib.request.urlopen(self.facts["ops_url"] + path, timeout=5) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def health(self) -> dict[str, Any]:
        return json.loads(self.get("/health")[1])

    def worker_pids(self) -> list[int]:
        return list(self.health()["workers"]["pids"])

    def metric(self, name: str, **labels: str) -> float:
        """Value of a metric, 0 where it has none."""
        text = ",".join(f'{key}="{value}"' for key, value in labels.items())
        start = f"{name}{{{text}}} " if labels else f"{name} "
        for line in self.get("/metrics")[1].decode().splitlines():
            if line.startswith(start):
                return float(line.removeprefix(start))
        return 0.0

    def send_signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 10) -> int:
        assert self.process is not None
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        """SIGTERM and wait; the exit code."""
        if not self.exited:
            self.send_signal(signal.SIGTERM)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.send_signal(signal.SIGKILL)
            self.wait()
            raise

    def close(self) -> None:
        """Stop it, and remove what a killed one left behind."""
        if self.process is not None:
            self.stop()
        if self.facts:
            self.shm_path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()
