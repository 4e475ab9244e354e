"""The programs of examples/ do what their docstrings say, at a system of real processes."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from support.paths import REPOSITORY
from support.system.real_peers import new_user
from support.system.system import RunningSystem, clean_environment, running_system

EXAMPLES = REPOSITORY / "examples"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    with running_system(tmp_path_factory.mktemp("system"), workers=1) as running:
        yield running


class Program:
    """A started example of one user."""

    def __init__(self, name: str, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / name), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(**environment),
        )

    def says(self) -> str:
        """The next line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ends(self, status: int = 0) -> str:
        output, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == status, output + errors
        return output

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.communicate()


def account(system: RunningSystem, directory: Path, name: str) -> tuple[str, dict[str, str]]:
    """A user's name, and the environment of their programs."""
    made: dict[str, Any] = new_user(system.gateway_url, directory, name)
    username, password = made["credentials"]
    return username, {"WAVRY_PASSWORD": password, "WAVRY_PEER_HOME": str(made["home"])}


@pytest.fixture
def alice(system: RunningSystem, tmp_path: Path) -> tuple[str, dict[str, str]]:
    return account(system, tmp_path, "alice")


@pytest.fixture
def bob(system: RunningSystem, tmp_path: Path) -> tuple[str, dict[str, str]]:
    return account(system, tmp_path, "bob")


def test_connect_and_listen(
    system: RunningSystem, alice: tuple[str, dict[str, str]], bob: tuple[str, dict[str, str]]
) -> None:
    with Program("listen.py", system.gateway_url, bob[0], alice[0], **bob[1]) as listen:
        assert listen.says() == f"waiting for {alice[0]}"
        with Program("connect.py", system.gateway_url, alice[0], bob[0], **alice[1]) as connect:
            lines = connect.ends().splitlines()
        assert lines[:3] == [f"hello, {alice[0]} {number}" for number in range(3)]
        assert lines[3].startswith("over relay ")
        # A second call to the same listener, and then the person at the keyboard ends it.
        with Program("connect.py", system.gateway_url, alice[0], bob[0], **alice[1]) as connect:
            connect.ends()
        listen.process.send_signal(signal.SIGINT)
        listen.ends()


def test_an_example_says_in_one_line_what_is_wrong(
    system: RunningSystem, alice: tuple[str, dict[str, str]]
) -> None:
    with Program("connect.py", system.gateway_url, alice[0], "nobody", **alice[1]) as connect:
        _, errors = connect.process.communicate(timeout=60)
    assert connect.process.returncode == 1
    assert errors.startswith("PeerUnavailableError: ")
    assert len(errors.splitlines()) == 1


def test_send_file(
    system: RunningSystem,
    alice: tuple[str, dict[str, str]],
    bob: tuple[str, dict[str, str]],
    tmp_path: Path,
) -> None:
    song, inbox = tmp_path / "song.ogg", tmp_path / "inbox"
    song.write_bytes(os.urandom(300_000))
    inbox.mkdir()
    digest = hashlib.sha256(song.read_bytes()).hexdigest()
    receiving = ("receive", system.gateway_url, bob[0], alice[0], str(inbox))
    with Program("send_file.py", *receiving, **bob[1]) as receive:
        assert receive.says() == f"waiting for {alice[0]}"
        sending = ("send", system.gateway_url, alice[0], bob[0], str(song))
        with Program("send_file.py", *sending, **alice[1]) as send:
            assert send.ends().endswith(f"sha256 {digest}\n")
        assert receive.ends() == f"received {inbox / 'song.ogg'}, sha256 {digest}\n"
    assert (inbox / "song.ogg").read_bytes() == song.read_bytes()


def test_admin_api(system: RunningSystem) -> None:
    relay_id = system.ctl_json("relays", "list")["relays"][0]["relay_id"]
    system.ctl("relays", "drain", relay_id)
    system.ctl("relays", "undrain", relay_id)
    token = Path(system.description["admin_token_file"]).read_text().strip()
    with Program("admin_api.py", system.master_url, WAVRY_ADMIN_TOKEN=token) as program:
        lines = program.ends().splitlines()
    assert lines[0].startswith(f"{relay_id} ")
    assert any(line.endswith(f" admin undrain {relay_id} done") for line in lines), lines
    with Program("admin_api.py", system.master_url, WAVRY_ADMIN_TOKEN="forged") as program:
        _, errors = program.process.communicate(timeout=60)
    assert program.process.returncode == 1
    assert ": " in errors
    assert "Traceback" not in errors


def test_every_example_is_run_here() -> None:
    text = Path(__file__).read_text()
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix == ".py"} == {
        "admin_api.py",
        "connect.py",
        "listen.py",
        "send_file.py",
    }
    assert all(f'Program("{path.name}"' in text for path in EXAMPLES.glob("*.py"))
