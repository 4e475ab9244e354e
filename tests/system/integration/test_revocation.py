"""Revocation through the whole system: wavryctl, master, relay, two real peers."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.system.real_peers import echo_one, new_user, two_peers
from support.system.services import Services
from support.system.system import clean_environment, get_json, running_system
from support.waiting import wait_until

import wavry_peer

DEADLINE_S = 20


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with running_system(tmp_path_factory.mktemp("revoke") / "dev", workers=2) as running:
        wait_until(lambda: running.health()["master"]["events"], what="event stream")
        yield running


@pytest.fixture
def pairs(system: Any, tmp_path: Path) -> list[dict[str, Any]]:
    return [new_user(system.gateway_url, tmp_path, name) for name in ("ann", "bob", "cat", "dan")]


async def revoke(system: Any, *arguments: str) -> Any:
    return await asyncio.to_thread(system.ctl_json, "leases", "revoke", *arguments)


async def ended(session: wavry_peer.Session) -> str:
    """Why a session ended; only its own end stops the waiting."""
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(wavry_peer.PeerError) as caught:
            while True:
                await session.receive()
    return str(caught.value)


@pytest.mark.parametrize("by", ["--session", "--user"])
async def test_revoked_session_ends_with_a_clear_error_for_both_and_others_go_on(
    system: Any, pairs: list[dict[str, Any]], by: str
) -> None:
    ann, bob, cat, dan = pairs
    async with (
        two_peers(system.gateway_url, cat, dan) as others,
        two_peers(system.gateway_url, ann, bob) as (caller, callee),
    ):
        await echo_one(caller, callee, b"before")
        value = caller.session_id if by == "--session" else ann["credentials"][0]
        began_s = time.monotonic()
        ending = asyncio.gather(ended(caller), ended(callee))
        outcome = await revoke(system, by, value, "--reason", "a test")
        assert outcome["live_sessions"] == 1
        assert (outcome["relays_confirmed"], outcome["relays_connected"]) == (1, 1)
        for text in await ending:
            assert "revoked" in text, text
        print(f"both peers knew {time.monotonic() - began_s:.2f} s after the command began")
        await echo_one(*others, b"untouched")
    # Whoever was not banned may call again.
    await asyncio.sleep(1.1)
    async with two_peers(system.gateway_url, ann, bob) as (caller, callee):
        await echo_one(caller, callee, b"a new session")


def test_list_shows_what_is_in_force_and_each_relay(system: Any) -> None:
    system.ctl_json("leases", "revoke", "--kid", "no-such-key", "--reason", "listing", "--force")
    listed = system.ctl_json("leases", "list-revocations")
    row = listed["revocations"][-1]
    assert (row["kind"], row["value"], row["reason"]) == ("kid", "no-such-key", "listing")
    (relay,) = listed["relays"]
    assert relay["connected"]
    assert relay["acked"] == listed["number"] == row["number"]
    text = system.ctl("leases", "list-revocations").stdout
    assert "no-such-key" in text
    assert "connected" in text


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["--user", "a", "--kid", "b"], 2),
        (["not-a-uuid"], 1),
        (["--user", "x" * 65], 1),
        (["--user", "x", "--reason", "y" * 300], 1),
    ],
)
def test_wrong_use_is_told_clearly(system: Any, arguments: list[str], code: int) -> None:
    done = system.ctl("leases", "revoke", *arguments, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert done.stderr
    told = json.loads(system.ctl("leases", "revoke", *arguments, "--json", check=False).stdout)
    assert told["error"]


def test_unknown_key_is_refused_and_an_unknown_lease_is_said(system: Any) -> None:
    done = system.ctl("leases", "revoke", "--kid", "0123456789abcdef", check=False)
    assert done.returncode == 1
    assert "keys list" in done.stderr
    told = system.ctl("leases", "revoke", "--kid", "0123456789abcdef", "--json", check=False)
    assert (told.returncode, json.loads(told.stdout)["error"]) == (1, "unknown_key")
    unknown = "0b7c2c5e-6f3b-4a43-9f0e-2f6d3a9b1c11"
    done = system.ctl("leases", "revoke", unknown)
    assert "check the spelling" in done.stderr
    assert system.ctl_json("leases", "revoke", "--session", unknown)["known"] is False


def test_unreachable_master_is_exit_code_3(system: Any) -> None:
    done = system.ctl(
        "--master-url", "http://127.0.0.1:9", "leases", "revoke", "--user", "x", check=False
    )
    assert done.returncode == 3


# -- Either side is killed right after the act -------------------------------------------------


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    running = Services(tmp_path / "services")
    running.settings["relay"]["WAVRY_RELAY_EVENT_POLL_S"] = "1"
    with running:
        yield running


def ctl(services: Services, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "wavry_cp.admin", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment(
            WAVRY_MASTER_URL=services.ready["master"]["url"],
            WAVRY_ADMIN_TOKEN_FILE=str(services.directory / "admin.token"),
        ),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


async def test_revocation_survives_kill_9_of_master_and_of_relay(
    services: Services, tmp_path: Path
) -> None:
    pair = [new_user(services.gateway_url, tmp_path, name) for name in ("ann", "bob")]

    def connected() -> bool:
        return bool(get_json(services.ops_url + "/health")["master"]["events"])

    await asyncio.to_thread(wait_until, connected, what="event stream")
    async with two_peers(services.gateway_url, *pair) as (caller, callee):
        await echo_one(caller, callee, b"before")
        # The relay hangs, the master takes the act and dies at once: whether the row was under
        # way already or not, it is there in the end.
        os.kill(services.pid("relay"), signal.SIGSTOP)
        outcome = await asyncio.to_thread(
            ctl, services, "leases", "revoke", "--session", caller.session_id, "--wait", "0"
        )
        assert outcome["live_sessions"] == 1
        await asyncio.to_thread(services.kill, "master")
        os.kill(services.pid("relay"), signal.SIGCONT)
        ending = asyncio.gather(ended(caller), ended(callee))
        await asyncio.to_thread(services.start, "master")
        for text in await ending:
            assert "revoked" in text, text
    number = outcome["revocation"]["number"]

    def kept() -> bool:
        health = get_json(services.ops_url + "/health")
        return bool(health["revocations"]["number"] == number)

    await asyncio.to_thread(wait_until, kept, what="row on the relay")
    path = services.directory / "relay" / "revocations.json"
    await asyncio.to_thread(
        wait_until, lambda: path.exists() and json.loads(path.read_bytes())["number"] == number
    )
    await asyncio.to_thread(services.kill, "relay")
    await asyncio.to_thread(services.start, "relay")
    assert get_json(services.ops_url + "/health")["revocations"]["in_force"] == 1
    await asyncio.to_thread(services.wait_for_relay)
    async with two_peers(services.gateway_url, *pair) as (caller, callee):
        await echo_one(caller, callee, b"a new session is another one")
    for name in ("relay", "gateway", "master"):
        assert "Traceback" not in services.log(name)
