"""The command line: help, guards, and asking a relay that is not there."""

from pathlib import Path

import pytest
from support.relay.mint import Mint
from typer.testing import CliRunner

from wavry_relay.cli import app

COMMANDS = ["run", "identity", "status", "drain", "undrain", "reload", "upgrade"]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("WAVRY_RELAY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("NO_COLOR", "1")
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(command, name: str) -> None:
    shown = command(name, "--help")
    assert shown.exit_code == 0
    assert "Example: " in shown.output


def test_version(command) -> None:
    shown = command("--version")
    assert shown.exit_code == 0
    assert shown.output.startswith("wavry-relay ")


def test_no_trusted_key_exits_with_2(command) -> None:
    shown = command("run")
    assert shown.exit_code == 2
    assert "WAVRY_RELAY_ALLOW_INSECURE_DEV=1" in shown.output


def test_public_bind_exits_with_2(command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAVRY_RELAY_ROOT_KEY", Mint().root_text)
    shown = command("run", "--listen", "0.0.0.0:0")
    assert shown.exit_code == 2
    assert "WAVRY_RELAY_ALLOW_PUBLIC_BIND=1" in shown.output


@pytest.mark.parametrize("name", ["status", "drain", "undrain", "reload", "upgrade"])
def test_no_relay_answers(command, name: str) -> None:
    shown = command(name)
    assert shown.exit_code == 1
    assert "is it running" in shown.output
