"""Runs of wavry-peer with a password file leave no login behind, however they end."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.control.gateway import GatewayProcess, gateway_process
from support.system.system import clean_environment

PASSWORD = "correct horse battery"


def private(path: Path, text: str) -> str:
    path.write_text(text + "\n")
    path.chmod(0o600)
    return str(path)


class Person:
    """Somebody with a home directory, an account and a password file."""

    def __init__(self, directory: Path, gateway: GatewayProcess, name: str) -> None:
        self.name, self.gateway, self.directory = name, gateway, directory
        self.file = private(directory / f"{name}.password", PASSWORD)
        self.environment = clean_environment(
            WAVRY_GATEWAY_URL=gateway.url, WAVRY_PEER_HOME=str(directory / name)
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "wavry_peer", *arguments],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            stdin=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        out, error = process.communicate(timeout=60)
        return process.returncode, out + error

    def scripted(self) -> tuple[str, ...]:
        return ("--as", self.name, "--password-file", self.file)

    def logins(self) -> list[dict[str, Any]]:
        done = self.ctl("users", "show", self.name, "--json")
        logins: list[dict[str, Any]] = json.loads(done)["logins"]
        return logins

    def ctl(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "wavry_cp.admin", *arguments],
            env=self.environment
            | {"WAVRY_ADMIN_TOKEN_FILE": str(self.gateway.directory / "admin.token")},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def ann(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    directory = tmp_path_factory.mktemp("people")
    limits = {"WAVRY_GATEWAY_TOKENS_PER_USER": "1"}
    with gateway_process(directory / "gateway", "http://127.0.0.1:1", limits) as gateway:
        person = Person(directory, gateway, "ann")
        assert person.run("register", "ann", "--password-file", person.file)[0] == 0
        assert person.run("login", "ann", "--password-file", person.file)[0] == 0
        yield person


def test_no_run_leaves_a_login_or_ends_the_persons_own(ann):
    own = ann.logins()
    assert [login["temporary"] for login in own] == [False]
    status, text = ann.run("ping", "nobody-here", *ann.scripted())
    assert status == 5, text
    assert ann.logins() == own

    host = ann.start("host", "--from", "bob", "--json", *ann.scripted())
    assert host.stdout is not None
    assert "listening" in host.stdout.readline()
    assert [login["temporary"] for login in ann.logins()] == [True, False]
    host.send_signal(signal.SIGTERM)
    assert host.wait(30) == 0
    assert ann.logins() == own
    host.communicate()

    killed = ann.start("host", "--from", "bob", "--json", *ann.scripted())
    assert killed.stdout is not None
    assert "listening" in killed.stdout.readline()
    killed.kill()
    killed.communicate()
    assert len(ann.logins()) == 2  # It could say nothing; the next run takes its place.
    assert ann.run("ping", "nobody-here", *ann.scripted())[0] == 5
    assert ann.logins() == own


def test_a_person_changes_resets_and_deletes_by_commands(ann, tmp_path):
    new = private(tmp_path / "new.password", "a password after it")
    status, text = ann.run("account", "password", "--password-file", ann.file,
                           "--new-password-file", new, "--json")  # fmt: skip
    assert (status, json.loads(text)) == (0, {"event": "password_changed", "ended": 0})
    status, text = ann.run("logins", "list", "--json")
    assert (status, json.loads(text)["current"]) == (0, True)
    assert ann.run("login", "ann", "--password-file", ann.file)[0] == 4

    token = tmp_path / "ann.reset"
    ann.ctl("users", "reset", "ann", "--for", "10m", "--output", str(token))
    status, text = ann.run("account", "reset", "ann", "--token-file", str(token),
                           "--new-password-file", ann.file)  # fmt: skip
    assert status == 0, text
    assert token.read_text().strip() not in ann.gateway.log
    assert ann.run("login", "ann", "--password-file", ann.file)[0] == 0
    status, text = ann.run("account", "export")
    assert (status, json.loads(text)["username"]) == (0, "ann")
    status, text = ann.run("account", "delete", "--yes", "--password-file", ann.file)
    assert status == 0, text
    status, text = ann.run("logins", "list")
    assert status == 4, text
    assert "not logged in" in text
    assert PASSWORD not in ann.gateway.log
