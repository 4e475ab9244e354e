"""wavryctl's admin commands against a system started by `wavryctl dev up`, also from afar."""

import asyncio
import json
import os
import pty
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest
from support.system.real_peers import echo_one, two_peers
from support.system.system import RunningSystem, clean_environment, get_json, get_text
from support.waiting import wait_until

import wavry_peer


def remote(
    system: RunningSystem, tmp_path: Path, *arguments: str, stdin: str = "", **environ: str
) -> "subprocess.CompletedProcess[str]":
    """wavryctl as on another machine: no dev directory, addresses and token by environment."""
    places = {"WAVRY_GATEWAY_URL": system.gateway_url, "WAVRY_MASTER_URL": system.master_url}
    return subprocess.run(
        [sys.executable, "-m", "wavry_cp.admin", *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        timeout=60,
        cwd=tmp_path,
        env=clean_environment(**{**places, **environ}),
    )


def admin_token(system: RunningSystem) -> str:
    return Path(system.description["admin_token_file"]).read_text().strip()


def acts(system: RunningSystem) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = system.ctl_json("audit", "--limit", "1000")["entries"]
    return entries


def test_tokens_are_created_rotated_listed_and_revoked(
    system: RunningSystem, tmp_path: Path
) -> None:
    file = tmp_path / "carol.token"
    made = system.ctl_json(
        "tokens", "create", "carol", "--role", "operator", "--for", "90d", "--output", str(file)
    )
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first = file.read_text().strip()
    assert "token" not in made, "what is in a file is not shown"
    assert made["info"]["expires_at"] - made["info"]["created_at"] == 90 * 86_400
    listed = remote(system, tmp_path, "relays", "list", WAVRY_ADMIN_TOKEN_FILE=str(file))
    assert listed.returncode == 0, listed.stderr
    system.ctl("tokens", "rotate", "carol", "--overlap", "1h", "--output", str(file))
    second = file.read_text().strip()
    assert first != second
    for token in (first, second):
        done = remote(system, tmp_path, "users", "list", WAVRY_ADMIN_TOKEN=token)
        assert done.returncode == 0, done.stderr
    rows = [row for row in system.ctl_json("tokens", "list")["tokens"] if row["name"] == "carol"]
    assert [row["valid"] for row in rows] == [True, True]
    assert "carol" in system.ctl("tokens", "list").stdout
    assert second not in system.ctl("tokens", "list", "--json").stdout
    assert system.ctl("tokens", "revoke", "carol", check=False).returncode == 2, "why?"
    system.ctl("tokens", "revoke", "carol", "--reason", "test is over")
    done = remote(system, tmp_path, "relays", "list", WAVRY_ADMIN_TOKEN=second)
    assert done.returncode == 4
    assert second not in done.stdout + done.stderr + system.logs()


def test_a_token_file_is_never_overwritten_and_a_bad_path_costs_no_token(
    system: RunningSystem, tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for path in (taken, tmp_path / "missing" / "file"):
        done = system.ctl(
            "tokens", "create", "dora", "--role", "viewer", "--output", str(path), "--json",
            check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert "Traceback" not in done.stdout + done.stderr
    assert taken.read_text() == "mine"
    assert "dora" not in system.ctl("tokens", "list").stdout


def test_roles_hold_on_the_command_line(system: RunningSystem, tmp_path: Path) -> None:
    token = system.ctl_json("tokens", "create", "eve", "--role", "viewer")["token"]
    assert remote(system, tmp_path, "audit", WAVRY_ADMIN_TOKEN=token).returncode == 0
    for command in (
        ("relays", "drain", system.relay["relay_id"]),
        ("relay-mode", "off"),
        ("bans", "add", "user", "x", "--reason", "x"),
        ("tokens", "create", "more", "--role", "admin"),
        ("lockdown", "on", "--reason", "x"),
    ):
        done = remote(system, tmp_path, *command, "--json", WAVRY_ADMIN_TOKEN=token)
        assert done.returncode == 4, command
        assert "forbidden" in done.stdout
    system.ctl("tokens", "revoke", "eve", "--reason", "test is over")


def test_the_token_is_never_needed_on_a_command_line(system: RunningSystem, tmp_path: Path) -> None:
    """Environment, file, standard input; a terminal is asked (next test)."""
    token = admin_token(system)
    by_file = {"WAVRY_ADMIN_TOKEN_FILE": system.description["admin_token_file"]}
    assert remote(system, tmp_path, "tokens", "list", "--json", **by_file).returncode == 0
    assert remote(system, tmp_path, "tokens", "list", WAVRY_ADMIN_TOKEN=token).returncode == 0
    stdin = ("--admin-token-file", "-", "tokens", "list")
    assert remote(system, tmp_path, *stdin, stdin=token + "\n").returncode == 0
    empty = remote(system, tmp_path, *stdin)
    assert empty.returncode == 4
    assert "stdin" in empty.stderr
    no_terminal = remote(system, tmp_path, "--ask-token", "tokens", "list")
    assert no_terminal.returncode == 4
    assert "terminal" in no_terminal.stderr


def test_a_terminal_is_asked_for_the_token_and_does_not_show_it(
    system: RunningSystem, tmp_path: Path
) -> None:
    token = admin_token(system)
    fd, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "wavry_cp.admin", "--ask-token", "tokens", "list", "--json"],
        stdin=terminal, stdout=terminal, stderr=terminal, cwd=tmp_path, start_new_session=True,
        env=clean_environment(
            WAVRY_GATEWAY_URL=system.gateway_url, WAVRY_MASTER_URL=system.master_url
        ),
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    try:
        while b"admin token: " not in shown:
            shown += os.read(fd, 4096)
        os.write(fd, token.encode() + b"\n")
        while True:
            try:
                data = os.read(fd, 4096)
            except OSError:  # the other end of the terminal is closed
                break
            if not data:
                break
            shown += data
    finally:
        status = process.wait(30)
        os.close(fd)
    assert status == 0, shown
    assert b'"tokens"' in shown
    assert token.encode() not in shown


@contextmanager
def following(system: RunningSystem, *arguments: str) -> Iterator[Callable[[float], str]]:
    """`wavryctl audit --follow`; gives a function that waits for the next line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "wavry_cp.admin", "--dev", str(system.directory),
         "audit", "--follow", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment(),
    )  # fmt: skip
    lines: Queue[str] = Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield lambda timeout_s: lines.get(timeout=timeout_s)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()
            reader.join()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def test_audit_follow_prints_a_new_act_of_either_service_within_seconds(
    system: RunningSystem,
) -> None:
    system.ctl("relay-mode", "on", "--reason", "before anybody follows")
    with following(system, "--json") as next_line:
        while json.loads(next_line(30))["reason"] != "before anybody follows":
            pass
        for command, wanted in (
            (("relay-mode", "on", "--reason", "nothing new"), {("master", "relay_mode_on")}),
            (
                ("bans", "add", "user", "zoe", "--reason", "drill"),
                {("master", "ban_user"), ("gateway", "ban_user")},
            ),
            (
                ("bans", "lift", "user", "zoe"),
                {("master", "unban_user"), ("gateway", "unban_user")},
            ),
        ):
            system.ctl(*command)
            began_s = time.monotonic()
            seen = set()
            while not wanted <= seen:  # a ban also shows what it revoked
                try:
                    line = json.loads(next_line(10))
                except Empty:
                    pytest.fail(f"{wanted} is not shown, only {seen}")
                seen.add((line["service"], line["action"]))
                assert line["who"] == "admin"
            assert time.monotonic() - began_s < 10
    with following(system) as next_line:
        assert "admin" in next_line(30)


def test_audit_lists_both_services_by_time_and_since_when(system: RunningSystem) -> None:
    system.ctl("lockdown", "off", "--reason", "marker")
    entries = acts(system)
    assert [e["at"] for e in entries] == sorted(e["at"] for e in entries)
    markers = [e for e in entries if e["reason"] == "marker"]
    assert {e["service"] for e in markers} == {"gateway", "master"}
    assert "marker" in system.ctl("audit", "--since", "1h").stdout
    assert system.ctl("audit", "--since", "yesterday", check=False).returncode == 2


async def test_relay_mode_off_keeps_live_sessions_and_gives_no_new_one(
    system: RunningSystem, pair: Any, users: Any
) -> None:
    caller, callee = users.new("gina"), users.new("hugo")
    async with two_peers(system.gateway_url, *pair) as (alice, bob):
        assert system.ctl_json("relay-mode", "off", "--reason", "drill").get("on") is False
        try:
            await echo_one(alice, bob, b"a live session does not notice")
            async with wavry_peer.listen(system.gateway_url, accept="all", **callee):
                with pytest.raises(wavry_peer.PeerError):
                    async with wavry_peer.connect(
                        system.gateway_url, callee["credentials"][0], timeout_s=8, **caller
                    ):
                        pass
            status = system.ctl_json("status")
            (row,) = [r for r in status["services"] if r["service"] == "master"]
            assert "relay mode is off" in row["detail"]
            assert get_json(system.master_url + "/health")["relay_mode"] == "off"
            assert "wavry_master_relay_mode 0.0" in get_text(system.master_url + "/metrics")
        finally:
            system.ctl("relay-mode", "on")
    async with two_peers(system.gateway_url, caller, callee) as (gina, hugo):
        await echo_one(gina, hugo, b"and on again")


async def test_lockdown_on_and_off_for_both_services(system: RunningSystem, pair: Any) -> None:
    bare = system.ctl("lockdown", "on", "--json")
    try:
        assert "--reason" in bare.stderr, "allowed, and told that the audit log lacks the why"
        done = system.ctl_json("lockdown", "on", "--reason", "drill")
        assert done["ok"] is True
        assert [row["service"] for row in done["services"]] == ["master", "gateway"]
        status = system.ctl_json("status")
        assert status["ok"], "a lockdown is no fault"
        details = {row["service"]: row.get("detail", "") for row in status["services"]}
        assert "LOCKDOWN" in details["gateway"]
        assert "LOCKDOWN" in details["master"]
        with pytest.raises(wavry_peer.PeerError):
            async with wavry_peer.listen(system.gateway_url, accept="all", **pair[1]):
                pass
    finally:
        system.ctl("lockdown", "off")
    async with two_peers(system.gateway_url, *pair) as (alice, bob):
        await echo_one(alice, bob, b"open again")


async def test_banned_user_is_out_and_comes_back_when_lifted(
    system: RunningSystem, pair: Any
) -> None:
    name = pair[0]["credentials"][0]
    done = system.ctl_json("bans", "add", "user", name, "--for", "2h", "--reason", "spam")
    assert done["ok"] is True
    (row,) = [ban for ban in system.ctl_json("bans", "list")["bans"] if ban["value"] == name]
    assert row["services"] == ["master", "gateway"]
    assert row["expires_at"] - row["at"] == 7200
    assert name in system.ctl("bans", "list").stdout
    with pytest.raises(wavry_peer.PeerError) as caught:
        async with wavry_peer.listen(system.gateway_url, accept="all", **pair[0]):
            pass
    assert "banned" in str(caught.value)
    system.ctl("bans", "lift", "user", name)
    async with two_peers(system.gateway_url, *pair) as (alice, bob):
        await echo_one(alice, bob, b"back again")


async def ended(session: wavry_peer.Session) -> str:
    """Why a session ended."""
    async with asyncio.timeout(20):
        with pytest.raises(wavry_peer.PeerError) as caught:
            while True:
                await session.receive()
    return str(caught.value)


async def test_banned_users_live_session_is_cut_at_the_relay_and_the_ban_expires(
    system: RunningSystem, pair: Any
) -> None:
    name = pair[0]["credentials"][0]

    def cut() -> float:
        metrics = get_text(system.relay["ops_url"] + "/metrics")
        (line,) = (
            x for x in metrics.splitlines() if 'sessions_closed_total{reason="revoked"}' in x
        )
        return float(line.split()[-1])

    before = cut()
    async with two_peers(system.gateway_url, *pair) as (alice, bob):
        await echo_one(alice, bob, b"not yet banned")
        ending = asyncio.gather(ended(alice), ended(bob))
        order = ("bans", "add", "user", name, "--for", "6s", "--reason", "spam")
        assert (await asyncio.to_thread(system.ctl_json, *order))["ok"] is True
        until_s = time.time() + 6
        await asyncio.to_thread(wait_until, lambda: cut() == before + 1, what="cut at the relay")
        told = await ending
    assert "banned" in told[0], told
    assert "ask the operator" in told[0]
    await asyncio.sleep(max(0.0, until_s - time.time()))
    async with two_peers(system.gateway_url, *pair) as (alice, bob):
        await echo_one(alice, bob, b"the ban is over")


def test_a_ban_of_a_typo_says_so(system: RunningSystem) -> None:
    done = system.ctl("bans", "add", "user", "nobody-here", "--reason", "typo", "--for", "5s")
    assert "no user of this name" in done.stderr


def test_a_banned_relay_goes_and_comes_back_by_itself(system: RunningSystem) -> None:
    relay_id = system.relay["relay_id"]

    def state() -> str:
        # Not by another wavryctl: on a busy machine its start takes longer than the ban.
        request = urllib.request.Request(
            f"{system.master_url}/v1/relays/{relay_id}",
            headers={"Authorization": f"Bearer {admin_token(system)}"},
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return str(json.load(response)["state"])

    system.ctl("bans", "add", "relay", relay_id, "--for", "5s", "--reason", "drill")
    assert state() == "BANNED"
    wait_until(lambda: state() == "ACTIVE", timeout_s=60, what="relay is taken back")


def test_remote_use_with_json(system: RunningSystem, tmp_path: Path) -> None:
    token = {"WAVRY_ADMIN_TOKEN": admin_token(system)}
    for command in (
        ("tokens", "create", "remote", "--role", "viewer"),
        ("tokens", "list"),
        ("tokens", "rotate", "remote"),
        ("tokens", "revoke", "remote", "--reason", "over"),
        ("relay-mode", "on"),
        ("lockdown", "off"),
        ("bans", "add", "user", "far", "--reason", "x", "--for", "1m"),
        ("bans", "list"),
        ("bans", "lift", "user", "far"),
        ("audit",),
    ):
        done = remote(system, tmp_path, *command, "--json", **token)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert isinstance(json.loads(done.stdout), dict)


def test_relays_drain_and_undrain_keep_the_reason_in_the_audit(
    system: RunningSystem, tmp_path: Path
) -> None:
    """As the operator types them, from afar; without a reason they work too."""
    token = {"WAVRY_ADMIN_TOKEN": admin_token(system)}
    relay_id = str(system.relay["relay_id"])
    for order, reason in (("drain", "new kernel"), ("undrain", "kernel is in"), ("undrain", "")):
        given = ("--reason", reason) if reason else ()
        done = remote(system, tmp_path, "relays", order, relay_id, *given, "--json", **token)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["relay_id"] == relay_id
        last = [act for act in acts(system) if act["target"] == relay_id][-1]
        assert (last["action"], last["reason"]) == (order, reason)


def test_relays_are_enrolled_named_and_removed(system: RunningSystem, tmp_path: Path) -> None:
    relay_id = str(system.relay["relay_id"])
    shown = system.ctl_json("relays", "show", relay_id[:16])
    assert (shown["relay_id"], shown["name"], shown["enrolment"]) == (relay_id, "relay-0", "token")
    assert system.ctl_json("relays", "rename", "relay-0", "fra-1")["name"] == "fra-1"
    try:
        for words in (("drain", "fra-1"), ("undrain", relay_id[4:12]), ("show", "fra-1")):
            assert system.ctl_json("relays", *words)["relay_id"] == relay_id
        assert system.ctl_json("blocks", "list", "--relay", "fra-1") == {"blocks": []}
        assert system.ctl_json("sessions", "list", "--relay", "fra-1")["sessions"] == []
        assert "fra-1" in system.ctl("relays", "list").stdout
        file = tmp_path / "new.token"
        made = system.ctl_json(
            "relays", "enrol", "--name", "fra-2", "--region", "eu", "--for", "2h",
            "--output", str(file),
        )  # fmt: skip
        assert (made["info"]["name"], made["file"]) == ("fra-2", str(file))
        assert "token" not in made
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert file.read_text().startswith("wve_")
        alone = system.ctl("relays", "enrol", "--name", "fra-2")
        assert alone.stdout.startswith("wve_"), "alone, to be put into a file"
        assert "before is worth nothing" in alone.stderr
        waiting = system.ctl_json("relays", "tokens")["enrolments"]
        assert [one["name"] for one in waiting] == ["fra-2"]
        assert "worth nothing" in system.ctl("relays", "reject", "fra-2").stdout
        for words, code, says in (
            (("enrol", "--name", "fra-1"), 1, "name_taken"),
            (("enrol", "--name", "rly-1"), 2, "name"),
            (("show", "nobody"), 1, "unknown_relay"),
            (("remove", "nobody"), 1, "unknown_relay"),
            (("approve", "fra-1"), 1, "wrong_state"),
            (("reject", "fra-1"), 1, "wrong_state"),
        ):
            done = system.ctl("relays", *words, check=False)
            assert (done.returncode, says in done.stderr) == (code, True), done.stderr
        done = system.ctl("bans", "add", "relay", "nobody", "--reason", "typo", check=False)
        assert (done.returncode, "unknown_relay" in done.stderr) == (1, True)
    finally:
        system.ctl("relays", "rename", relay_id, "relay-0")


def test_commands_of_leases_blocks_and_keys_from_afar_with_json(
    system: RunningSystem, tmp_path: Path
) -> None:
    token = {"WAVRY_ADMIN_TOKEN": admin_token(system)}
    nobody = "0b7c2c5e-6f3b-4a43-9f0e-2f6d3a9b1c11"
    for command in (
        ("leases", "revoke", nobody),
        ("leases", "revoke", "--session", nobody),
        ("leases", "revoke", "--user", "nobody-at-all"),
        ("leases", "revoke", "--kid", "00000000000000ff", "--force"),
        ("blocks", "list"),
        ("keys", "status"),
        ("relays", "list"),
    ):
        done = remote(system, tmp_path, *command, "--json", **token)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert isinstance(json.loads(done.stdout), dict)


def test_an_order_that_one_service_missed_says_which_and_fails(
    system: RunningSystem, tmp_path: Path
) -> None:
    done = remote(
        system, tmp_path, "bans", "add", "user", "half", "--reason", "x", "--for", "1m", "--json",
        WAVRY_ADMIN_TOKEN=admin_token(system), WAVRY_GATEWAY_URL="http://127.0.0.1:9",
    )  # fmt: skip
    assert done.returncode == 3
    answer = json.loads(done.stdout)
    assert answer["ok"] is False
    assert [(row["service"], row["ok"]) for row in answer["services"]] == [
        ("master", True),
        ("gateway", False),
    ]
    system.ctl("bans", "lift", "user", "half", check=False)
