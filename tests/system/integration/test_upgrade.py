"""`wavryctl relay upgrade`: a whole system under a live call, and every way it can end badly."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.system.real_peers import echo_one, new_user, two_peers
from support.system.services import Services
from support.system.system import clean_environment, get_json
from support.waiting import is_alive, wait_until

from wavry_cp.admin.relay_control import DEFAULT_STATE_DIR
from wavry_relay.config import RelayConfig


def wavryctl(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wavry_cp.admin", *arguments],
        capture_output=True, text=True, timeout=90, env=clean_environment(**environ),
    )  # fmt: skip


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    with Services(tmp_path / "services") as running:
        yield running
        # The relay of the end is no child of the test.
        pid = get_json(running.ops_url + "/health")["pid"]
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not is_alive(pid), what="end of the upgraded relay")
        assert "Traceback" not in running.log("relay")


async def test_a_live_call_does_not_notice_an_upgrade(services: Services, tmp_path: Path) -> None:
    alice_user, bob_user = [
        await asyncio.to_thread(new_user, services.gateway_url, tmp_path, name)
        for name in ("alice", "bob")
    ]
    old = services.pid("relay")
    state_dir = services.settings["relay"]["WAVRY_RELAY_STATE_DIR"]
    async with two_peers(services.gateway_url, alice_user, bob_user) as (alice, bob):
        await echo_one(alice, bob, b"before")
        upgrade = asyncio.create_task(
            asyncio.to_thread(wavryctl, "relay", "upgrade", "--state-dir", state_dir, "--json")
        )
        rounds = 0
        while not upgrade.done():
            await echo_one(alice, bob, b"meanwhile %d" % rounds)
            rounds += 1
        done = upgrade.result()
        assert done.returncode == 0, done.stdout + done.stderr + services.log("relay")
        outcome = json.loads(done.stdout)
        assert outcome["upgraded"] is True
        assert outcome["workers"] == 2
        assert outcome["pid"] not in (0, old)
        assert rounds > 1
        await echo_one(alice, bob, b"after")
        await asyncio.to_thread(services.wait_for_relay)

        def is_alone() -> bool:
            return bool(get_json(services.ops_url + "/health")["sessions"]["active"] == 1)

        # The master's own session may be there for a moment, too.
        await asyncio.to_thread(wait_until, is_alone, what="one session, not two")
        health = await asyncio.to_thread(get_json, services.ops_url + "/health")
        assert health["upgrades"]["done"] == 1
    async with two_peers(services.gateway_url, alice_user, bob_user) as (alice, bob):
        await echo_one(alice, bob, b"a new call through the upgraded relay")


# -- When it cannot ----------------------------------------------------------------------------


def test_default_state_directory_is_the_relays() -> None:
    assert RelayConfig.__dataclass_fields__["state_dir"].default == DEFAULT_STATE_DIR


def test_nothing_is_running(tmp_path: Path) -> None:
    done = wavryctl("relay", "upgrade", WAVRY_RELAY_STATE_DIR=str(tmp_path))
    assert done.returncode == 3
    assert "is it running on this host" in done.stderr
    done = wavryctl("relay", "upgrade", "--state-dir", str(tmp_path), "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"] == "unreachable"


@contextmanager
def relay_that_answers(directory: Path, *lines: bytes) -> Iterator[list[bytes]]:
    """A control socket that says these lines to its first client; what that one said."""
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(directory / "control.sock"))
        listening.listen()
        listening.settimeout(60)

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                heard.append(connection.recv(4096))
                connection.sendall(b"".join(line + b"\n" for line in lines))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield heard
        finally:
            thread.join()


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (b'{"error": "upgrade_refused", "message": "is stopping"}', "upgrade_refused", "stopping"),
        (
            b'{"upgraded": false, "error": "upgrade_failed", "message": "goes on"}',
            "upgrade_failed",
            "goes on",
        ),
        (b'{"error": "unknown_command", "message": "x"}', "unknown_command", "start the new"),
        (b"not json", "bad_answer", "fitting version"),
        (b'["list"]', "bad_answer", "fitting version"),
        (b'{"progress": "half-way"}', "no_answer", "log"),
    ],
)
def test_relay_that_refuses_fails_or_goes_away(
    tmp_path: Path, answer: bytes, code: str, said: str
) -> None:
    with relay_that_answers(tmp_path, answer) as heard:
        done = wavryctl("relay", "upgrade", "--state-dir", str(tmp_path), "--json")
    assert done.returncode == 1
    shown: dict[str, Any] = json.loads(done.stdout)
    assert shown["error"] == code
    assert said in shown["message"]
    assert "Traceback" not in done.stderr
    assert json.loads(heard[0]) == {"command": "upgrade"}


def test_progress_and_outcome_for_people(tmp_path: Path) -> None:
    outcome = {
        "upgraded": True, "pid": 7, "from_version": "1", "to_version": "2", "workers": 4,
    }  # fmt: skip
    with relay_that_answers(
        tmp_path, b'{"progress": "worker 0 of 4 moved"}', json.dumps(outcome).encode()
    ):
        done = wavryctl("relay", "upgrade", "--state-dir", str(tmp_path))
    assert done.returncode == 0
    assert "worker 0 of 4 moved" in done.stderr
    assert "from 1 to 2" in done.stdout
