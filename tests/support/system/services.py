"""Services that can be killed and started again one by one, on the ports that they had."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support.system.system import START_TIMEOUT_S, clean_environment, get_json
from support.waiting import wait_until
from wavry_cp.master.keys.files import init_keys, load_keys

MODULES = {"master": "wavry_cp.master", "gateway": "wavry_cp.gateway", "relay": "wavry_relay"}


class Services:
    """Master, gateway and one relay as separate processes."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700)
        self.directory = directory
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.ready: dict[str, dict[str, Any]] = {}
        keys = directory / "keys"
        init_keys(keys, now_s=int(time.time()), random_bytes=secrets.token_bytes)
        for name in ("service", "admin"):
            path = directory / f"{name}.token"
            path.touch(mode=0o600)
            path.write_text(secrets.token_urlsafe(32))
        self.settings: dict[str, dict[str, str]] = {
            "master": {
                "WAVRY_MASTER_LISTEN": "127.0.0.1:0",
                "WAVRY_MASTER_DATA_DIR": str(directory / "master"),
                "WAVRY_MASTER_KEYS_DIR": str(keys),
                "WAVRY_MASTER_HEARTBEAT_INTERVAL_MS": "1000",
                "WAVRY_MASTER_PRIVATE_ENDPOINTS": "1",
            },
            "gateway": {
                "WAVRY_GATEWAY_LISTEN": "127.0.0.1:0",
                "WAVRY_GATEWAY_DATA_DIR": str(directory / "gateway"),
            },
            "relay": {
                "WAVRY_RELAY_LISTEN": "127.0.0.1:0",
                "WAVRY_RELAY_OPS_LISTEN": "127.0.0.1:0",
                "WAVRY_RELAY_WORKERS": "2",
                "WAVRY_RELAY_STATE_DIR": str(directory / "relay"),
                "WAVRY_RELAY_DRAIN_TIMEOUT_S": "0",
                "WAVRY_RELAY_ENROLMENT_TOKEN_FILE": str(directory / "service.token"),
                "WAVRY_RELAY_ROOT_KEY": load_keys(keys).keyset.root_public_key,
            },
        }
        for role in ("master", "gateway"):
            for name in ("service", "admin"):
                variable = f"WAVRY_{role.upper()}_{name.upper()}_TOKEN_FILE"
                self.settings[role][variable] = str(directory / f"{name}.token")

    def __enter__(self) -> Self:
        try:
            self.start("master")
            self.settings["gateway"]["WAVRY_GATEWAY_MASTER_URL"] = self.ready["master"]["url"]
            self.settings["relay"]["WAVRY_RELAY_MASTER_URL"] = self.ready["master"]["url"]
            self.start("gateway")
            self.start("relay")
            self.wait_for_relay()
        except BaseException:
            self.stop_all()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop_all()

    @property
    def gateway_url(self) -> str:
        return str(self.ready["gateway"]["url"])

    @property
    def ops_url(self) -> str:
        return str(self.ready["relay"]["ops_url"])

    def start(self, name: str) -> None:
        """Start a service; again on the address it had, if it ran before."""
        ready_file = self.directory / f"{name}.json"
        ready_file.unlink(missing_ok=True)
        with (self.directory / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", MODULES[name], "run", "--ready-file", str(ready_file)],
                env=clean_environment(**self.settings[name]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        process = self._processes[name]
        wait_until(
            lambda: ready_file.exists() or process.poll() is not None,
            timeout_s=START_TIMEOUT_S,
            what=f"{name} is ready",
        )
        assert process.poll() is None, self.log(name)
        self.ready[name] = json.loads(ready_file.read_text())
        if name == "relay":
            self.settings["relay"]["WAVRY_RELAY_LISTEN"] = self.ready["relay"]["udp"][0]
            self.settings["relay"]["WAVRY_RELAY_OPS_LISTEN"] = self.ops_url.rpartition("/")[2]
        else:
            variable = f"WAVRY_{name.upper()}_LISTEN"
            self.settings[name][variable] = self.ready[name]["url"].rpartition("/")[2]

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a service; waits for its end after SIGKILL and SIGTERM."""
        process = self._processes[name]
        os.kill(process.pid, number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            process.wait(30)

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def returncode(self, name: str) -> int | None:
        return self._processes[name].returncode

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def wait_for_relay(self) -> None:
        """Until the relay says that it is ready: registered, with keys."""

        def is_ready() -> bool:
            try:
                get_json(self.ops_url + "/ready")
            except OSError:
                return False
            return True

        wait_until(is_ready, timeout_s=START_TIMEOUT_S, what="relay registers")

    def stop_all(self) -> None:
        for process in reversed(self._processes.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
