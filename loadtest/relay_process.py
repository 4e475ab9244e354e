"""Starts the relay that is measured: the real program, its real supervisor and workers."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from wavry_peer.service.settings import parse_address

from .bench_master import BenchMaster
from .processes import descendants, is_alive, launch, stop, stop_orphan

__all__ = ["RelayProcess", "RelayStartError"]

_START_S: Final = 20.0
_UNLIMITED: Final = "1000000000"
_UNDEFENDED: Final = {
    # The limits are checked as always; they are only too wide to bite.
    "WAVRY_RELAY_IP_PER_S": "1000000",
    "WAVRY_RELAY_IP_BURST": "1000000",
    # What is measured is the admission, not what guards it from a flood.
    "WAVRY_RELAY_COOKIE_AT_VERIFIES_PER_S": _UNLIMITED,
}
_DEFENDED: Final = {"WAVRY_RELAY_IP_BURST": "1000"}
"""As by default, but for the peers of the bench, who all come from one address."""


class RelayStartError(RuntimeError):
    """The relay did not come up; the message holds the end of its log."""


class _Ready(msgspec.Struct, frozen=True):
    relay_id: str
    udp: list[str]
    ops_url: str
    pid: int
    worker_pids: list[int]


class RelayProcess:
    """A relay of its own state directory on free loopback ports; use as a context manager."""

    def __init__(
        self,
        master: BenchMaster,
        directory: Path,
        *,
        workers: int = 1,
        core: int | None = None,
        max_sessions: int = 8192,
        engine: str = "auto",
        defended: bool = False,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._core = core
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("WAVRY_")},
            "WAVRY_RELAY_LISTEN": "127.0.0.1:0",
            "WAVRY_RELAY_OPS_LISTEN": "127.0.0.1:0",
            "WAVRY_RELAY_WORKERS": str(workers),
            "WAVRY_RELAY_MASTER_URL": master.url,
            "WAVRY_RELAY_ROOT_KEY": master.root_public_key,
            "WAVRY_RELAY_STATE_DIR": str(directory / "state"),
            "WAVRY_RELAY_DRAIN_TIMEOUT_S": "0",
            "WAVRY_RELAY_MAX_SESSIONS": str(max_sessions),
            "WAVRY_RELAY_MAX_BITRATE_KBPS": _UNLIMITED,
            "WAVRY_RELAY_SHED_AT_PCT": "100",
            "WAVRY_RELAY_ENGINE": engine,
            "WAVRY_LOG_LEVEL": "warning",
            **(_DEFENDED if defended else _UNDEFENDED),
        }
        self.max_sessions = max_sessions

    def _log_end(self) -> str:
        return (self._directory / "relay.log").read_text(errors="replace")[-2000:]

    def _wait_ready(self) -> _Ready:
        ready_file = self._directory / "ready.json"
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if ready_file.exists():
                return msgspec.json.decode(ready_file.read_bytes(), type=_Ready)
            if self._process.poll() is not None:
                raise RelayStartError(f"relay ended at start:\n{self._log_end()}")
            time.sleep(0.02)
        raise RelayStartError(f"relay was not ready in {_START_S:g} s:\n{self._log_end()}")

    def _wait_for_keys(self, ops_url: str) -> None:
        """Wait for the ready file (sockets are open) and the master's keys (leases need them)."""
        deadline = time.monotonic() + _START_S
        while True:
            try:
                # The URL is our own relay's.
                with urllib.request.urlopen(ops_url + "/ready", timeout=_START_S):  # noqa: S310 - http only
                    return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise RelayStartError(f"relay got no keys: {error}") from error
            time.sleep(0.02)

    def __enter__(self) -> Self:
        ready_file = self._directory / "ready.json"
        ready_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "wavry_relay", "run", "--ready-file", str(ready_file)]
        with (self._directory / "relay.log").open("wb") as log:
            self._process = launch(
                command,
                core=self._core,
                environment=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            ready = self._wait_ready()
            self._wait_for_keys(ready.ops_url)
        except BaseException:
            stop(self._process)
            raise
        self.relay_id = ready.relay_id
        self.target = ready.udp[0]
        self.ops_url = ready.ops_url
        self.pid = ready.pid
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.pid != self._process.pid:
            stop_orphan(self.pid)
        stop(self._process)

    def upgrade(self) -> float:
        """Upgrade to the same version; return how long it took, in seconds.

        Raises:
            RelayStartError: the old process did not hand over.
        """
        ready_file = self._directory / "ready.json"
        began = time.monotonic()
        os.kill(self.pid, signal.SIGUSR2)
        while is_alive(self.pid):
            if time.monotonic() - began > _START_S:
                raise RelayStartError(f"relay was not upgraded:\n{self._log_end()}")
            time.sleep(0.01)
        took_s = time.monotonic() - began
        self.pid = msgspec.json.decode(ready_file.read_bytes(), type=_Ready).pid
        return took_s

    @property
    def address(self) -> tuple[str, int]:
        """UDP address as the socket module takes it."""
        return parse_address(self.target)

    def worker_pids(self) -> list[int]:
        """Return processes that forward, as they are now: all that the supervisor has started."""
        return sorted(descendants(self.pid))
