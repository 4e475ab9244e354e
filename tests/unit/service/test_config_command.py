"""``config check`` and ``config show`` of every service."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from support.control.master import MasterFiles
from typer.testing import CliRunner

from wavry_cp.admin.commands.app import app as wavryctl
from wavry_cp.gateway.cli import app as gateway_app
from wavry_cp.master.cli import app as master_app
from wavry_peer.cli.app import app as wavry_peer
from wavry_relay.cli import app as relay_app

SERVICE, ADMIN = "s" * 32, "a" * 32


class Role:
    """A service, settings that fit, and one of them that is insecure."""

    def __init__(self, app: typer.Typer, environ: dict[str, str], insecure: dict[str, str]) -> None:
        self.app = app
        self.environ = environ
        self.insecure = insecure

    def config(self, command: str, *options: str, **changes: str) -> Any:
        environ = {**self.environ, **changes}
        return CliRunner().invoke(self.app, ["config", command, *options], env=environ)


@pytest.fixture(params=["relay", "gateway", "master"])
def role(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Role:
    for name in ("WAVRY_LOG_LEVEL",):
        monkeypatch.delenv(name, raising=False)
    if request.param == "relay":
        root = {"WAVRY_RELAY_ROOT_KEY": "A" * 43}
        return Role(relay_app, root, {"WAVRY_RELAY_ALLOW_INSECURE_DEV": "1"})
    files = MasterFiles.make(tmp_path / "master")
    if request.param == "master":
        return Role(
            master_app,
            {name: text for name, text in files.environ().items() if not name.endswith("LISTEN")},
            {"WAVRY_MASTER_LISTEN": "0.0.0.0:8091", "WAVRY_MASTER_ALLOW_PUBLIC_BIND": "1"},
        )
    return Role(
        gateway_app,
        {
            "WAVRY_GATEWAY_DATA_DIR": str(tmp_path),
            "WAVRY_GATEWAY_MASTER_URL": "http://127.0.0.1:1",
            "WAVRY_GATEWAY_SERVICE_TOKEN_FILE": str(files.service_token_file),
            "WAVRY_GATEWAY_ADMIN_TOKEN_FILE": str(files.admin_token_file),
        },
        {"WAVRY_GATEWAY_TRUSTED_PROXIES": "0.0.0.0/0"},
    )


def test_settings_that_fit(role: Role) -> None:
    found = role.config("check")
    assert found.exit_code == 0, found.output
    assert "the settings fit" in found.output
    body = json.loads(role.config("check", "--json").output)
    assert body == {"ok": True, "faults": [], "insecure": [], "unknown": {}}


def test_insecure_settings_are_named_and_end_with_1(role: Role) -> None:
    found = role.config("check", **role.insecure)
    assert found.exit_code == 1
    assert "insecure: WAVRY_" in found.output
    body = json.loads(role.config("check", "--json", **role.insecure).output)
    assert not body["ok"]
    assert body["insecure"]


def test_settings_that_do_not_fit_end_with_2(role: Role) -> None:
    for command in ("check", "show"):
        found = role.config(command, WAVRY_LOG_LEVEL="loud")
        assert found.exit_code == 2
        assert "does not fit: WAVRY_LOG_LEVEL must be" in found.output
        assert "loud" not in found.output


def test_unknown_variable_is_named_with_the_nearest(role: Role) -> None:
    (variable,) = (name for name in role.environ if name.endswith(("DATA_DIR", "ROOT_KEY")))
    found = role.config("check", **{variable + "S": "x"})
    assert f"{variable}S is read by nobody; is {variable} meant?" in found.output
    assert found.exit_code == 0, "a name too many stops no start"


def test_show_tells_where_each_value_comes_from(role: Role, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('log_level = "error"\n')
    shown = role.config("show", "--settings-file", str(file))
    assert shown.exit_code == 0, shown.output
    assert "WAVRY_LOG_LEVEL=error  # file" in shown.output
    rows = json.loads(role.config("show", "--json", WAVRY_LOG_LEVEL="debug").output)["settings"]
    sources = {row["variable"]: (row["value"], row["source"]) for row in rows}
    assert sources["WAVRY_LOG_LEVEL"] == ("debug", "environment")
    for name, text in role.environ.items():
        assert sources[name] == (text, "environment")
    assert "default" in {source for _, source in sources.values()}


def test_files_that_run_would_refuse_are_refused(tmp_path: Path) -> None:
    files = MasterFiles.make(tmp_path / "master")
    files.admin_token_file.chmod(0o644)
    role = Role(master_app, files.environ(), {})
    found = role.config("check")
    assert found.exit_code == 2
    assert "is open to others" in found.output
    shown = role.config("show")
    assert shown.exit_code == 0
    assert files.admin_token not in shown.output
    assert files.service_token not in shown.output


@pytest.mark.parametrize("command", ["wavryctl", "wavry-peer"])
def test_commands_of_people_tell_of_variables_that_nobody_reads(command: str) -> None:
    app, arguments = {
        "wavryctl": (wavryctl, ["relays", "list", "--help"]),
        "wavry-peer": (wavry_peer, ["identity", "--help"]),
    }[command]
    # What a service on the same host has in its environment is not theirs to judge.
    known = {"WAVRY_GATEWAY_LISTEN": "x", "WAVRY_RELAY_WORKERS": "2", "WAVRY_GATEWAY_URL": "x"}
    assert "is read by nobody" not in CliRunner().invoke(app, arguments, env=known).output
    told = CliRunner().invoke(app, arguments, env=known | {"WAVRY_GATEWAY_URI": "x"}).output
    assert "WAVRY_GATEWAY_URI" not in told, "the gateway names its own"
    told = CliRunner().invoke(app, arguments, env=known | {"WAVRY_ADMIN_TOKENFILE": "x"}).output
    assert "warning: WAVRY_ADMIN_TOKENFILE is read by nobody; is WAVRY_ADMIN_TOKEN" in told


def test_no_password_can_stand_in_a_url_and_so_none_is_shown() -> None:
    url = {
        "WAVRY_RELAY_ROOT_KEY": "A" * 43,
        "WAVRY_RELAY_MASTER_URL": "https://me:hunter2@m.example",
    }
    shown = Role(relay_app, url, {}).config("show")
    assert shown.exit_code == 2
    assert "without a user in it" in shown.output
    assert "hunter2" not in shown.output
