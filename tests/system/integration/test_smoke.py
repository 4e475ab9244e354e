"""``wavryctl smoke`` against a real system: what works, what it refuses to touch, what it sees."""

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.system.system import RunningSystem, clean_environment, running_system
from support.waiting import wait_until
from typer.testing import CliRunner

from wavry_cp.admin.commands.app import app

STEPS = ["auth", "signaling", "lease", "relay", "drain"]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    directory = tmp_path_factory.mktemp("smoke")
    settings = directory / "settings.env"  # All runs of this module come from one address.
    settings.write_text(
        "WAVRY_GATEWAY_REGISTER_PER_MINUTE=6000\nWAVRY_GATEWAY_REGISTER_BURST=1000\n"
        "WAVRY_GATEWAY_LOGIN_PER_MINUTE=6000\nWAVRY_GATEWAY_LOGIN_BURST=1000\n"
    )
    with running_system(directory / "data", relays=2, workers=1, settings_file=settings) as running:
        yield running


def relay_ids(system: RunningSystem) -> list[str]:
    return [relay["relay_id"] for relay in system.description["relays"]]


def states(system: RunningSystem) -> set[str]:
    token = Path(system.description["admin_token_file"]).read_text().strip()
    request = urllib.request.Request(
        system.master_url + "/v1/relays", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return {relay["state"] for relay in json.load(response)["relays"]}


def kept_accounts(system: RunningSystem) -> tuple[str, str]:
    """Registrations are limited by address: most runs share two accounts."""
    return ("--accounts", str(system.directory / "smoke-accounts.json"))


def smoke(system: RunningSystem, *options: str, code: int = 0) -> dict[str, Any]:
    """Steps by name."""
    if "--accounts" not in options:
        options += kept_accounts(system)
    done = system.ctl("smoke", *options, "--json", check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert answer["ok"] is (code == 0)
    return {step["step"]: step for step in answer["steps"]}


def verdicts(steps: dict[str, Any]) -> dict[str, str]:
    return {name: step["verdict"] for name, step in steps.items()}


def smoke_by_url(
    system: RunningSystem, *options: str, master: bool = True, **environ: str
) -> "subprocess.CompletedProcess[str]":
    """As an operator far away: by URLs, without the dev.json."""
    places = {"WAVRY_GATEWAY_URL": system.gateway_url} | environ
    if master:
        places["WAVRY_MASTER_URL"] = system.master_url
    return subprocess.run(
        [sys.executable, "-m", "wavry_cp.admin", "smoke", *options, "--json"],
        capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
        env=clean_environment(**places), cwd="/",
    )  # fmt: skip


def test_a_healthy_system_passes_every_step_and_is_left_as_it_was(system: RunningSystem) -> None:
    steps = smoke(system)
    assert list(steps) == STEPS
    assert verdicts(steps) == dict.fromkeys(STEPS, "ok")
    assert all(step["ms"] > 0 and step["evidence"] for step in steps.values())
    assert steps["relay"]["figures"]["sent"] == 400
    assert 0 < steps["relay"]["figures"]["rtt_p50_ms"] <= steps["relay"]["figures"]["rtt_p99_ms"]
    assert "signature checked" in steps["lease"]["evidence"]
    assert states(system) == {"ACTIVE"}
    acts = [row["action"] for row in system.ctl_json("audit")["entries"]]
    assert acts[-2:] == ["drain", "undrain"]
    table = system.ctl("smoke", "--only", "auth").stdout
    assert "left out by --only or --skip" in table
    assert "2 accounts registered" in table, "thrown away where no file is named"


def test_a_named_relay_is_drained_wherever_the_session_lands(system: RunningSystem) -> None:
    relay_id = relay_ids(system)[1]
    step = smoke(system, "--only", "drain", "--drain", relay_id)["drain"]
    assert step["evidence"].startswith(f"{relay_id} drained")
    assert "moved" in step["evidence"]


def test_a_single_relay_keeps_the_session_and_refuses_new_ones_and_a_drained_one_is_left_alone(
    system: RunningSystem,
) -> None:
    drained, alone = relay_ids(system)
    system.ctl("relays", "drain", drained, "--reason", "somebody else's work")
    try:
        wait_until(lambda: system.health(0)["draining"], what="the relay drains")
        step = smoke(system, "--only", "drain")["drain"]
        assert step["evidence"].startswith(f"{alone} drained")
        assert "no_relay_available" in step["evidence"]
        left = smoke(system, "--only", "drain", "--drain", drained)["drain"]
        assert left["verdict"] == "skipped"
        assert "audit" in left["next_step"]
        assert states(system) == {"ACTIVE", "DRAINING"}, "it stays as its operator wanted it"
    finally:
        system.ctl("relays", "undrain", drained)
        wait_until(lambda: states(system) == {"ACTIVE"}, what="both relays are back")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_drain_it_gives_the_relay_back(
    system: RunningSystem, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "wavry_cp.admin", "--dev", str(system.directory), "smoke",
         "--only", "drain", *kept_accounts(system)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment(),
    )  # fmt: skip
    wait_until(lambda: "DRAINING" in states(system) or process.poll() is not None, what="the drain")
    process.send_signal(number)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "Traceback" not in err
    assert "given back first" in err
    wait_until(lambda: states(system) == {"ACTIVE"}, what="the relay is given back")


def test_far_away_the_drain_is_made_only_where_a_relay_is_named(system: RunningSystem) -> None:
    done = smoke_by_url(system, *kept_accounts(system))
    steps = {step["step"]: step for step in json.loads(done.stdout)["steps"]}
    assert done.returncode == 0, done.stdout
    assert verdicts(steps) == dict.fromkeys(STEPS[:-1], "ok") | {"drain": "skipped"}
    assert "--drain RELAY_ID" in steps["drain"]["evidence"]
    meant = smoke_by_url(system, "--only", "drain")
    assert (meant.returncode, json.loads(meant.stdout)["error"]) == (2, "usage")
    no_token = smoke_by_url(system, "--only", "drain", "--drain", relay_ids(system)[0])
    assert no_token.returncode == 4
    wrong = smoke_by_url(
        system, "--only", "drain", "--drain", relay_ids(system)[0], WAVRY_ADMIN_TOKEN="x" * 43
    )
    assert wrong.returncode == 4
    assert states(system) == {"ACTIVE"}
    gateway_only = smoke_by_url(system, "--only", "lease", *kept_accounts(system), master=False)
    assert gateway_only.returncode == 0
    assert "signature not checked" in gateway_only.stdout


def test_the_accounts_of_a_file_are_made_once(system: RunningSystem, tmp_path: Path) -> None:
    path = tmp_path / "accounts.json"
    options = ("--only", "auth,signaling", "--accounts", str(path))
    assert "2 accounts registered" in smoke(system, *options)["auth"]["evidence"]
    assert path.stat().st_mode & 0o777 == 0o600
    before = len(system.ctl_json("users", "list")["users"])
    assert "accounts were there" in smoke(system, *options)["auth"]["evidence"]
    assert len(system.ctl_json("users", "list")["users"]) == before
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"caller": kept["caller"] | {"password": "x" * 20}}))
    wrong = smoke(system, *options, code=1)["auth"]
    assert "username_taken" in wrong["evidence"]
    assert "x" * 20 not in json.dumps(wrong)
    path.chmod(0o644)
    done = system.ctl("smoke", *options, check=False)
    assert done.returncode == 2
    assert "chmod 600" in done.stderr


def test_a_run_with_accounts_of_its_own_leaves_none_behind(system: RunningSystem) -> None:
    before = system.ctl_json("users", "list")
    assert system.ctl("smoke", "--only", "auth").returncode == 0
    assert system.ctl_json("users", "list") == before


@pytest.mark.parametrize(
    "options",
    [
        ("--only", "auth,nonsense"),
        ("--skip", "nonsense"),
        ("--skip", "drain", "--drain", "rly-1"),
        ("--accounts", "/proc/nothing/accounts"),
    ],
)
def test_wrong_usage_exits_with_2(system: RunningSystem, options: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, ["--dev", str(system.directory), "smoke", *options, "--json"])
    assert done.exit_code == 2, done.output
    assert json.loads(done.stdout)["message"]


def test_what_is_broken_fails_its_step_and_the_rest_is_not_made(system: RunningSystem) -> None:
    system.ctl("relay-mode", "off", "--reason", "test")
    try:
        steps = smoke(system, code=1)
    finally:
        system.ctl("relay-mode", "on")
    assert verdicts(steps) == {
        "auth": "ok", "signaling": "ok", "lease": "fail", "relay": "skipped", "drain": "skipped",
    }  # fmt: skip
    assert "wavryctl relay-mode on" in steps["lease"]["next_step"]
    assert steps["drain"]["evidence"] == "not made: lease failed"


def test_a_gateway_that_is_not_there_exits_with_3(system: RunningSystem) -> None:
    done = smoke_by_url(system, WAVRY_GATEWAY_URL="http://127.0.0.1:9")
    assert done.returncode == 3
    steps = {step["step"]: step for step in json.loads(done.stdout)["steps"]}
    assert steps["auth"]["verdict"] == "fail"
    assert "doctor" in steps["auth"]["next_step"]
