"""`wavryctl audit --follow` from another machine, while the master is killed and comes back."""

import json
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.system.services import Services
from support.system.system import clean_environment


class Follower:
    """A running ``wavryctl audit --follow --json``, with addresses and token by environment."""

    def __init__(self, services: Services) -> None:
        self.environ = clean_environment(
            WAVRY_MASTER_URL=str(services.ready["master"]["url"]),
            WAVRY_GATEWAY_URL=services.gateway_url,
            WAVRY_ADMIN_TOKEN_FILE=str(services.directory / "admin.token"),
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wavry_cp.admin", "audit", "--follow", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environ,
        )
        self.acts: queue.Queue[dict[str, Any]] = queue.Queue()
        self.notes: queue.Queue[str] = queue.Queue()
        self._threads = [
            threading.Thread(target=self._read_acts), threading.Thread(target=self._read_notes)
        ]  # fmt: skip
        for thread in self._threads:
            thread.start()

    def _read_acts(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.acts.put(json.loads(line))

    def _read_notes(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.notes.put(line)

    def act(self, reason: str, timeout_s: float = 60) -> dict[str, Any]:
        """The next act with this reason."""
        end_s = time.monotonic() + timeout_s
        while True:
            try:
                found = self.acts.get(timeout=max(0.0, end_s - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"no act {reason!r} was shown; it {self.process.poll()=}")
            if found["reason"] == reason:
                return found

    def order(self, reason: str) -> None:
        command = [sys.executable, "-m", "wavry_cp.admin", "relay-mode", "on", "--reason", reason]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environ, timeout=60)
        assert done.returncode == 0, done.stderr

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        try:
            status = self.process.wait(60)
        finally:
            self.process.kill()
            self._close()
        return status

    def _close(self) -> None:
        self.process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


def test_audit_follow_goes_on_after_kill_9_of_the_master_and_misses_nothing(tmp_path: Path) -> None:
    with Services(tmp_path / "services") as services:
        follower = Follower(services)
        try:
            follower.order("before")
            first = follower.act("before")
            assert (first["service"], first["who"], first["action"]) == (
                "master", "admin", "relay_mode_on",
            )  # fmt: skip
            services.kill("master")
            note = follower.notes.get(timeout=60)
            assert "master" in note
            assert "waiting for it" in note
            services.start("master")
            follower.order("right after")
            second = follower.act("right after")
            assert second["id"] == first["id"] + 1, "each act once, and none is left out"
            follower.order("and on")
            assert follower.act("and on")["id"] == second["id"] + 1
        finally:
            status = follower.end()
        assert status == 130
