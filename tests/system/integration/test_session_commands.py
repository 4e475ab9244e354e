"""An operator finds a session, its leases and their cause, and ends it."""

import asyncio
import signal
import subprocess
import sys
from typing import Any

import pytest
from support.system.real_peers import echo_one, two_peers
from support.system.system import RunningSystem, clean_environment

import wavry_peer


def rows_of(system: RunningSystem, *arguments: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = system.ctl_json("sessions", "list", *arguments)["sessions"]
    return rows


async def test_a_session_is_found_shown_and_ended(system: RunningSystem, pair: Any) -> None:
    caller, callee = (who["credentials"][0] for who in pair)
    async with two_peers(system.gateway_url, *pair) as (alice, bob):
        await echo_one(alice, bob, b"over the relay")
        session_id = alice.session_id
        await asyncio.to_thread(check_shown, system, session_id, caller, callee)
        done = await asyncio.to_thread(
            system.ctl, "sessions", "end", session_id, "--reason", "case 7"
        )
        assert "closed" in done.stdout
        for peer in (alice, bob):
            with pytest.raises(wavry_peer.SessionClosedError):
                async with asyncio.timeout(20):
                    while True:
                        await peer.receive()
    await asyncio.to_thread(check_ended, system, session_id, caller)


def check_shown(system: RunningSystem, session_id: str, caller: str, callee: str) -> None:
    (row,) = rows_of(system, "--user", caller)
    assert row == system.ctl_json("sessions", "show", session_id)
    call, leased = row["call"], row["leased"]
    assert (call["session_id"], call["caller"], call["callee"]) == (session_id, caller, callee)
    assert call["state"] == "active"
    relay_id = call["relay_id"]
    assert relay_id == leased["relay_id"] == system.relay["relay_id"]
    assert [row["call"]["session_id"] for row in rows_of(system, "--relay", relay_id)]
    shown = system.ctl("sessions", "show", session_id).stdout
    for lease in leased["leases"]:
        assert lease["jti"] in shown, "the id that `leases revoke` wants"
        assert lease["sub"] in {caller, callee}
        found = system.ctl_json("leases", "show", lease["jti"])["sessions"]
        assert [one["session_id"] for one in found] == [session_id]
        assert lease["request_id"], "what caused it"
    assert system.ctl_json("leases", "show", "--user", caller)["sessions"]
    none = system.ctl("leases", "show", "--session", session_id, "--relay", "rly-0", check=False)
    assert none.returncode == 1


def check_ended(system: RunningSystem, session_id: str, caller: str) -> None:
    assert rows_of(system, "--user", caller) == []
    (row,) = rows_of(system, "--user", caller, "--state", "closed")
    assert row["call"]["closed_at"]
    acts = system.ctl_json("audit", "--limit", "1000")["entries"]
    mine = [
        (act["service"], act["action"], act["reason"])
        for act in acts
        if act["target"] == session_id
    ]
    assert ("gateway", "end_session", "case 7") in mine
    events = system.ctl_json("events", "--limit", "200")["events"]
    steps = [one["event"] for one in events if one["target"] == session_id]
    assert steps[:3] == ["called", "accepted", "relayed"]
    assert {"closed", "end_session"} <= set(steps)
    assert ("relay", "ACTIVE", system.relay["relay_id"]) in {
        (one["kind"], one["event"], one["target"]) for one in events
    }
    shown = system.ctl("events", "--limit", "200").stdout
    assert f"session closed {session_id}: {caller} > " in shown
    again = system.ctl("sessions", "end", session_id)
    assert again.returncode == 0, "ordered again it is the same order"


def test_unknown_sessions_are_refused_by_name(system: RunningSystem) -> None:
    unknown = "00000000-0000-4000-8000-000000000000"
    for command in (("sessions", "show", unknown), ("sessions", "end", unknown, "--json")):
        done = system.ctl(*command, check=False)
        assert done.returncode == 1
        assert "unknown_session" in done.stdout + done.stderr
    done = system.ctl("sessions", "list", "--state", "odd", check=False)
    assert done.returncode == 1
    assert "state must be one of" in done.stderr
    assert "(request " in done.stderr, "what to look for in the gateway's log"


def test_status_is_watched_until_it_is_interrupted(system: RunningSystem) -> None:
    command = [sys.executable, "-m", "wavry_cp.admin", "--dev", str(system.directory)]
    with subprocess.Popen(
        [*command, "status", "--watch", "0.2"], stdout=subprocess.PIPE, env=clean_environment()
    ) as watching:
        assert watching.stdout is not None
        seen = 0
        for line in watching.stdout:
            seen += b"master" in line
            if seen == 3:
                break
        watching.send_signal(signal.SIGINT)
        assert watching.wait(20) == 130
