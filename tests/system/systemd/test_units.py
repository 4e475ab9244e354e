"""The shipped units: correct for systemd, tight, and true of the code."""

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest
import typer
from support.machines.unit_files import EXAMPLES, SERVICES, UNITS, Unit, assignments
from support.needs import need_program
from support.paths import REPOSITORY

from wavry_cp.admin.commands.app import app as wavryctl
from wavry_cp.app.http import SHUTDOWN_TIMEOUT_S
from wavry_cp.gateway.cli import app as wavry_gateway
from wavry_cp.gateway.config import GatewayConfig
from wavry_cp.master.cli import app as wavry_master
from wavry_cp.master.config import MasterConfig
from wavry_peer.cli.app import app as wavry_peer
from wavry_peer.cli.output import EXIT_STATUSES
from wavry_peer.service.settings import describe, load, load_layers
from wavry_relay.cli import app as wavry_relay
from wavry_relay.config import RelayConfig
from wavry_relay.supervisor.supervisor import STOP_GRACE_S

EXPOSURE = 25
"""Tenths; systemd calls everything below 5 OK, an unrestricted service has 9.6."""
CONFIGS = {"gateway": GatewayConfig, "master": MasterConfig, "relay": RelayConfig}
COMMANDS = {
    "wavry-gateway": wavry_gateway,
    "wavry-master": wavry_master,
    "wavry-peer": wavry_peer,
    "wavry-relay": wavry_relay,
    "wavryctl": wavryctl,
}
PEER_VARIABLES = {"WAVRY_GATEWAY_URL", "WAVRY_PEER_HOME"}
HOSTS_FILES = {
    "gateway": "EnvironmentFile=/etc/wavry/gateway.env",
    "master": "EnvironmentFile=-/etc/wavry/master.env",
    "peer": "EnvironmentFile=/etc/wavry/peer.env",
    "relay": "Environment=WAVRY_RELAY_SETTINGS_FILE=%E/wavry/relay.conf",
}
by_name = pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.stem)


def role_of(path: Path) -> str:
    return path.stem.removeprefix("wavry-")


def settings_file(role: str) -> Path:
    return EXAMPLES / ("relay.conf" if role == "relay" else f"{role}.env")


@pytest.fixture(scope="module")
def analyze() -> str:
    need_program("systemd-analyze")
    return "systemd-analyze"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units with their commands where some program is: none is installed in /opt here."""
    for path in UNITS:
        text = path.read_text().replace("/opt/wavry/bin/", f"{tmp_path}/bin/")
        (tmp_path / path.name).write_text(text)
    (tmp_path / "bin").mkdir()
    for name in COMMANDS:
        (tmp_path / "bin" / name).symlink_to("/bin/true")
    return tmp_path


def verify(analyze: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [analyze, "verify", "--man=no", *(str(directory / path.name) for path in UNITS)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


# -- What systemd says -----------------------------------------------------------------------------


def test_systemd_finds_nothing_to_say(analyze: str, installed: Path) -> None:
    done = verify(analyze, installed)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_check_would_see_a_wrong_line(analyze: str, installed: Path) -> None:
    with (installed / "wavry-relay.service").open("a") as unit:
        unit.write("\n[Service]\nTypo=yes\nTimeoutStopSec=soon\n")
    done = verify(analyze, installed)
    assert "Unknown key" in done.stderr
    assert "soon" in done.stderr


@by_name
def test_exposure_is_small(analyze: str, path: Path) -> None:
    done = subprocess.run(
        [analyze, "security", "--offline=yes", f"--threshold={EXPOSURE}", "--no-pager", str(path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    level = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert level is not None
    assert float(level[1]) <= EXPOSURE / 10


# -- What the code says ----------------------------------------------------------------------------


@by_name
def test_each_command_exists_and_takes_its_options(path: Path) -> None:
    for words in Unit.read(path).commands:
        program, name = Path(words[0]), Path(words[0]).name
        assert str(program.parent) == "/opt/wavry/bin"
        assert f'{name} = "' in (REPOSITORY / "pyproject.toml").read_text()
        command: click.Command = typer.main.get_command(COMMANDS[name])
        rest = words[1:]
        context = command.make_context(name, list(rest), resilient_parsing=True)
        assert isinstance(command, click.Group) or hasattr(command, "commands")
        sub = command.commands[rest[0]]  # type: ignore[attr-defined]
        # Raises where an option does not exist or lacks its value.
        sub.make_context(rest[0], [word.replace("%d", "/run") for word in rest[1:]], parent=context)


@by_name
def test_each_variable_is_a_setting_and_is_read(path: Path) -> None:
    role = role_of(path)
    named = {*Unit.read(path).environment(S="", d="", E=""), *assignments(settings_file(role))}
    if role == "peer":
        assert named == PEER_VARIABLES
        return
    assert named <= {row.variable for row in describe(CONFIGS[role])}


@by_name
def test_the_example_settings_file_is_the_one_that_the_unit_names(path: Path) -> None:
    role = role_of(path)
    assert HOSTS_FILES[role] in path.read_text().splitlines()
    assert HOSTS_FILES[role].endswith(settings_file(role).name)


@by_name
def test_each_credential_is_given_to_a_setting_or_an_option(path: Path) -> None:
    unit = Unit.read(path)
    uses = [*unit.all("Environment"), *unit.all("ExecStart")]
    used = {name for text in uses for name in re.findall(r"%d/([\w-]+)", text)}
    assert used == set(unit.credentials)
    assert all(source.startswith("/etc/wavry/credentials/") for source in unit.credentials.values())
    guide = (REPOSITORY / "docs" / "systemd.md").read_text()
    for source in unit.credentials.values():
        assert Path(source).name in guide
    for name, value in unit.environment(S="", d="@", E="").items():
        assert value.startswith("@") == (name.endswith("_FILE") and "SETTINGS" not in name), name


@pytest.mark.parametrize("role", ["gateway", "master"])
def test_the_settings_of_the_unit_are_taken(role: str) -> None:
    """Nothing that the role requires is left out, nothing is refused."""
    unit = Unit.read(EXAMPLES / f"wavry-{role}.service")
    environ = unit.environment(S="/var/lib", d="/run/credentials/x", E="/etc")
    load(CONFIGS[role], environ | assignments(settings_file(role)))


def test_the_settings_of_the_relay_unit_are_taken(tmp_path: Path) -> None:
    (tmp_path / "wavry").mkdir()
    shutil.copy(EXAMPLES / "relay.conf", tmp_path / "wavry" / "relay.conf")
    unit = Unit.read(EXAMPLES / "wavry-relay.service")
    environ = unit.environment(S="/var/lib", d="/run/credentials/x", E=str(tmp_path))
    config = load_layers(RelayConfig, environ, file_field="settings_file")
    assert config.advertise
    socket = Unit.read(EXAMPLES / "wavry-relay.socket")
    addresses = socket.all("ListenDatagram")
    assert {addresses.count(address) for address in addresses} == {config.workers}
    assert socket.one("ReceiveBuffer") == socket.one("SendBuffer")
    assert socket.one("ReceiveBuffer") == f"{config.socket_buffer_bytes >> 20}M"
    ports = {address.rsplit(":", 1)[1] for address in addresses}
    assert {address.rsplit(":", 1)[1] for address in config.advertise} == ports


def test_a_stop_leaves_time_for_the_drain() -> None:
    unit = Unit.read(EXAMPLES / "wavry-relay.service")
    shipped = float(assignments(EXAMPLES / "relay.conf")["WAVRY_RELAY_DRAIN_TIMEOUT_S"])
    default = RelayConfig.__dataclass_fields__["drain_timeout_s"].default
    assert unit.seconds("TimeoutStopSec") >= max(shipped, default) + STOP_GRACE_S + 5
    assert unit.one("KillMode") == "mixed", "workers must not hear of it before the supervisor"
    assert unit.one("KillSignal") == "SIGTERM"


@pytest.mark.parametrize("role", ["gateway", "master"])
def test_a_stop_leaves_time_for_requests_under_way(role: str) -> None:
    unit = Unit.read(EXAMPLES / f"wavry-{role}.service")
    assert unit.seconds("TimeoutStopSec") > 2 * SHUTDOWN_TIMEOUT_S
    limit = GatewayConfig.__dataclass_fields__["max_connections"].default
    assert int(unit.one("LimitNOFILE")) > limit + 1000


@by_name
def test_a_service_is_restarted_but_not_for_a_wrong_setting(path: Path) -> None:
    unit = Unit.read(path)
    role = role_of(path)
    assert unit.one("Restart") == ("always" if role == "peer" else "on-failure")
    prevented = unit.one("RestartPreventExitStatus").split()
    assert prevented == (["2", "4"] if role == "peer" else ["2"])
    assert unit.one("StartLimitIntervalSec") == "0"
    if role == "peer":
        assert "wrong use" in EXIT_STATUSES[2]
        assert "password" in EXIT_STATUSES[4]
    else:
        assert unit.one("Type") == "notify"
        assert unit.one("NotifyAccess") == "main"
        assert unit.seconds("WatchdogSec") > 0


def test_sandbox_is_the_same_everywhere() -> None:
    """One of them changed alone would be an oversight."""

    def sandbox(path: Path) -> set[tuple[str, str, str]]:
        text = path.read_text().partition("# Sandbox")[2].partition("[Install]")[0]
        rows = {("Service", *line.split("=", 1)) for line in text.splitlines() if "=" in line}
        return rows - {("Service", "SystemCallFilter", "sched_setaffinity")}

    assert len({frozenset(sandbox(path)) for path in SERVICES}) == 1
    assert len(sandbox(SERVICES[0])) > 25
