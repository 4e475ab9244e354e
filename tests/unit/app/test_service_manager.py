"""What systemd hears from master and gateway."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.control.master import MasterFiles
from support.paths import REPOSITORY
from support.relay.host import ServiceManager


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[ServiceManager]:
    with ServiceManager(str(tmp_path / "notify.sock")) as listener:
        yield listener


def settings(role: str, tmp_path: Path) -> dict[str, str]:
    files = MasterFiles.make(tmp_path)
    if role == "master":
        return {**files.environ(), "WAVRY_MASTER_LISTEN": "127.0.0.1:0"}
    return {
        "WAVRY_GATEWAY_LISTEN": "127.0.0.1:0",
        "WAVRY_GATEWAY_DATA_DIR": str(tmp_path / "gateway"),
        "WAVRY_GATEWAY_MASTER_URL": "http://127.0.0.1:1",
        "WAVRY_GATEWAY_SERVICE_TOKEN_FILE": str(files.service_token_file),
        "WAVRY_GATEWAY_ADMIN_TOKEN_FILE": str(files.admin_token_file),
    }


def start(role: str, environ: dict[str, str], **options: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", f"wavry_cp.{role}", "run"],
        cwd=REPOSITORY, env={**os.environ, **environ}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
    )  # fmt: skip


@pytest.mark.parametrize("role", ["master", "gateway"])
def test_ready_watchdog_and_stopping(role: str, tmp_path: Path, listener: ServiceManager) -> None:
    environ = settings(role, tmp_path) | {
        "NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": "200000",
    }  # fmt: skip
    process = start(role, environ)
    try:
        ready = listener.wait_for(READY="1")
        assert ready["MAINPID"] == str(process.pid)
        assert ready["STATUS"].startswith("Serving http://127.0.0.1:")
        began = time.monotonic()
        for _ in range(4):
            listener.wait_for(WATCHDOG="1")
        assert time.monotonic() - began > 0.2, "not without a pause"
        host, _, port = ready["STATUS"].removeprefix("Serving http://").partition(":")
        with socket.create_connection((host, int(port))) as half:
            path = {"master": b"/v1/relays/register", "gateway": b"/auth/login"}[role]
            half.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            time.sleep(0.2)
            process.terminate()
            listener.wait_for(STOPPING="1")
            for _ in range(4):  # The request under way has its time, the watchdog is fed.
                listener.wait_for(WATCHDOG="1")
    finally:
        process.kill() if process.poll() is None and not listener.messages else None
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert b"Traceback" not in said


@pytest.mark.parametrize("role", ["master", "gateway"])
def test_credentials_that_root_owns_are_taken(role: str, tmp_path: Path) -> None:
    """Mode 0440 is how an access list shows in the directory that systemd names."""
    environ = settings(role, tmp_path)
    given = tmp_path / "given"
    given.mkdir(mode=0o700)
    for variable, path in list(environ.items()):
        if variable.endswith("_TOKEN_FILE"):
            moved = given / Path(path).name
            moved.write_bytes(Path(path).read_bytes())
            moved.chmod(0o440)
            environ[variable] = str(moved)
    ready = tmp_path / "ready"
    for directory, served in (("", False), (str(given), True)):
        process = start(role, environ | {"CREDENTIALS_DIRECTORY": directory})
        with process:
            if not served:
                said, _ = process.communicate(timeout=30)
                assert b"open to others (mode 0440)" in said
                assert process.returncode in (1, 2)
                continue
            assert process.stdout is not None
            assert any(b'"serving"' in line for line in process.stdout), ready
            process.terminate()
            assert process.wait(30) == 0
