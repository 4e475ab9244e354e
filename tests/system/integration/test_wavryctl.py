"""wavryctl against a real system."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.system.real_peers import echo_one, two_peers
from support.system.system import RunningSystem, clean_environment, get_json, running_system
from support.waiting import is_alive, wait_until

import wavry_peer
from wavry_cp.admin.output import print_rows


def relay_state(system: RunningSystem) -> str:
    (relay,) = system.ctl_json("relays", "list")["relays"]
    return str(relay["state"])


def test_status_shows_every_service_as_ready(system: RunningSystem) -> None:
    answer = system.ctl_json("status")
    assert answer["ok"] is True
    assert sorted(row["service"] for row in answer["services"]) == ["gateway", "master", "relay"]
    table = system.ctl("status").stdout
    assert "gateway" in table
    assert system.relay["relay_id"][:8] in table


def test_dev_json_has_what_other_tools_read(system: RunningSystem) -> None:
    description = system.description
    assert set(description) == {
        "gateway_url", "master_url", "service_token_file", "admin_token_file", "relays",
    }  # fmt: skip
    assert set(system.relay) == {"relay_id", "udp", "ops_url", "pid"}
    for name in ("service_token_file", "admin_token_file"):
        assert Path(description[name]).stat().st_mode & 0o777 == 0o600
    assert is_alive(system.relay["pid"])


def test_lists(system: RunningSystem, users: Any) -> None:
    user = users.new("carol")
    assert user["credentials"][0] in {
        row["username"] for row in system.ctl_json("users", "list")["users"]
    }
    assert user["credentials"][0] in system.ctl("users", "list").stdout
    keys = system.ctl_json("keys", "list")
    assert [key["status"] for key in keys["keys"]] == ["active"]
    assert keys["keys"][0]["kid"] in system.ctl("keys", "list").stdout
    assert system.relay["relay_id"][:12] in system.ctl("relays", "list").stdout


async def test_a_drained_relay_gets_no_new_session_and_keeps_the_live_one(
    system: RunningSystem, pair: Any, users: Any
) -> None:
    third = await asyncio.to_thread(users.new, "dave")
    relay_id = system.relay["relay_id"]
    async with two_peers(system.gateway_url, *pair) as (alice, bob):
        await asyncio.to_thread(system.ctl, "relays", "drain", relay_id)
        try:
            assert await asyncio.to_thread(relay_state, system) == "DRAINING"
            await asyncio.to_thread(
                wait_until, lambda: system.health()["draining"], what="relay drains"
            )
            await echo_one(alice, bob, b"a live session goes on while its relay drains")
            drained = await asyncio.to_thread(system.ctl_json, "status")
            assert drained["ok"], "a drain is no fault"
            caller, callee = third, pair[1]
            async with wavry_peer.listen(system.gateway_url, accept="all", **callee):
                with pytest.raises(wavry_peer.PeerError) as caught:
                    async with wavry_peer.connect(
                        system.gateway_url, callee["credentials"][0], timeout_s=8, **caller
                    ):
                        pass
            assert "relay" in str(caught.value).lower()
        finally:
            await asyncio.to_thread(system.ctl, "relays", "undrain", relay_id)
        await asyncio.to_thread(
            wait_until, lambda: relay_state(system) == "ACTIVE", what="relay is active again"
        )
        await asyncio.to_thread(
            wait_until, lambda: not system.health()["draining"], what="relay is ready again"
        )


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (("relays", "drain", "rly-does-not-exist"), 1, "unknown_relay"),
        (("--master-url", "http://127.0.0.1:9", "relays", "list"), 3, "unreachable"),
        (("--master-url", "http://127.0.0.1:9", "status"), 3, None),
        (("--gateway-url", "not a url", "users", "list"), 2, "wrong_address"),
    ],
)
def test_failures_have_a_code_a_message_and_an_exit_code(
    system: RunningSystem, arguments: tuple[str, ...], exit_code: int, code: str | None
) -> None:
    done = system.ctl(*arguments, "--json", check=False)
    assert done.returncode == exit_code
    assert "Traceback" not in done.stdout + done.stderr
    answer = json.loads(done.stdout)
    if code is not None:
        assert answer["error"] == code
        assert answer["message"]


@pytest.mark.parametrize("command", [("relays", "list"), ("status",)])
def test_a_wrong_admin_token_exits_with_4(
    system: RunningSystem, tmp_path: Path, command: tuple[str, ...]
) -> None:
    token = tmp_path / "token"
    token.write_text("x" * 43)
    token.chmod(0o600)
    done = system.ctl("--admin-token-file", str(token), *command, check=False)
    assert done.returncode == 4
    assert "x" * 43 not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("dev", "up", "--data", "/proc/wavry"),
        ("demo", "--output", "/proc/wavry/demo.json"),
        ("keys", "init", "--keys-dir", "/proc/[/x]"),
    ],
)
def test_an_unusable_path_gets_a_message(command: tuple[str, ...]) -> None:
    for extra in ((), ("--json",)):
        done = subprocess.run(
            [sys.executable, "-m", "wavry_cp.admin", *command, *extra],
            capture_output=True, text=True, timeout=60, env=clean_environment(),
        )  # fmt: skip
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stdout + done.stderr
        assert "/proc/" in done.stdout + done.stderr


def test_what_a_service_answers_is_never_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows("Relays", ("endpoint", "version"), [("[fd00::1]:4500", "[/red]")])
    printed = capsys.readouterr().out
    assert "[fd00::1]:4500" in printed
    assert "[/red]" in printed


def test_a_named_dev_directory_wins_over_variables(system: RunningSystem) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wavry_cp.admin", "--dev", str(system.directory), "status"],
        capture_output=True, text=True, timeout=60,
        env=clean_environment(WAVRY_GATEWAY_URL="http://127.0.0.1:9"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_keys_init_never_overwrites(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wavry_cp.admin", "keys", "init", "--keys-dir",
               str(tmp_path / "keys"), "--json"]  # fmt: skip
    first = subprocess.run(command, capture_output=True, text=True, env=clean_environment())
    assert first.returncode == 0, first.stderr
    made = json.loads(first.stdout)
    files = {path.name: path.read_bytes() for path in (tmp_path / "keys").iterdir()}
    for path in (tmp_path / "keys").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    second = subprocess.run(command, capture_output=True, text=True, env=clean_environment())
    assert second.returncode == 1
    assert json.loads(second.stdout)["error"] == "keys_not_made"
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "keys").iterdir()}
    assert made["root_public_key"] not in (tmp_path / "keys" / "root.key").read_text()


def test_two_systems_do_not_collide_and_leave_nothing_behind(
    system: RunningSystem, tmp_path: Path
) -> None:
    with running_system(tmp_path / "second", relays=2, workers=1) as second:
        assert len(second.ctl_json("relays", "list")["relays"]) == 2
        assert second.ctl_json("status")["ok"]
        ids = {relay["relay_id"] for relay in second.description["relays"]}
        assert system.relay["relay_id"] not in ids
        pids = [relay["pid"] for relay in second.description["relays"]]
        pids += [second.service_pid(name) for name in ("gateway", "master")]
        pids += second.worker_pids(0) + second.worker_pids(1)
        same_place = subprocess.run(
            [sys.executable, "-m", "wavry_cp.admin", "dev", "up", "--json", "--data",
             str(second.directory)],
            capture_output=True, text=True, timeout=60, env=clean_environment(),
        )  # fmt: skip
        assert same_place.returncode == 1
        assert json.loads(same_place.stdout)["error"] == "already_running"
        assert second.ctl_json("status")["ok"], "the refused start did no harm"
    for pid in pids:
        assert not is_alive(pid)
    for relay_id in ids:
        assert not [path for path in Path("/dev/shm").iterdir() if relay_id in path.name]
    assert not (tmp_path / "second" / "dev.json").exists()


def test_kill_9_of_dev_up_ends_its_services(tmp_path: Path) -> None:
    with running_system(tmp_path / "data", workers=1) as system:
        pids = [system.relay["pid"], *system.worker_pids()]
        pids += [system.service_pid(name) for name in ("gateway", "master")]
        os.kill(system.process.pid, signal.SIGKILL)
        system.process.wait()
        for pid in pids:
            wait_until(lambda pid=pid: not is_alive(pid), what=f"process {pid} ends")


def test_a_service_that_dies_ends_dev_up_with_its_name(tmp_path: Path) -> None:
    with running_system(tmp_path / "data", workers=1) as system:
        os.kill(system.service_pid("master"), signal.SIGKILL)
        wait_until(lambda: system.process.poll() is not None, what="dev up ends")
        assert system.process.returncode == 1
        output, _ = system.process.communicate()
        assert "master ended" in output


def test_the_same_data_comes_up_again_with_its_users_and_keys(tmp_path: Path) -> None:
    from support.system.real_peers import new_user

    with running_system(tmp_path / "data", workers=1) as system:
        user = new_user(system.gateway_url, tmp_path, "erin")
        keys = system.ctl_json("keys", "list")["keys"]
        relay_id = system.relay["relay_id"]
        system.ctl("relays", "drain", relay_id)
    with running_system(tmp_path / "data", workers=1) as system:
        assert relay_state(system) == "DRAINING", "a drain outlives a restart"
        assert system.ctl_json("keys", "list")["keys"] == keys
        assert system.relay["relay_id"] == relay_id
        assert user["credentials"][0] in {
            row["username"] for row in system.ctl_json("users", "list")["users"]
        }
        assert get_json(system.gateway_url + "/ready")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("WAVRY_GATEWAY_REGISTER_BRUST=5", "is not a setting that this file may have"),
        ("PATH=/tmp", "is not a setting that this file may have"),
        ("something else", "must be NAME=value"),
    ],
)
def test_dev_up_refuses_a_settings_file_that_does_not_fit(
    tmp_path: Path, line: str, text: str
) -> None:
    path = tmp_path / "settings.env"
    path.write_text(f"# ours\nWAVRY_GATEWAY_REGISTER_BURST=5\n{line}\n")
    done = subprocess.run(
        [
            sys.executable, "-m", "wavry_cp.admin", "dev", "up", "--data", str(tmp_path / "dev"),
            "--settings-file", str(path),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment(),
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert "line 3" in done.stderr
    assert text in done.stderr
    assert not (tmp_path / "dev").exists()
