"""Two peers and the whole system between them: real processes, real sockets."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from support.system.real_peers import echo_one, two_peers
from support.system.system import RunningSystem, get_text
from support.waiting import is_alive, wait_until
from typer.testing import CliRunner

import wavry_peer
from wavry_cp.gateway.cli import app as gateway_app
from wavry_cp.master.cli import app as master_app
from wavry_peer.cli.app import app as peer_app
from wavry_relay.cli import app as relay_app


def forwarded(system: RunningSystem) -> float:
    for line in get_text(system.relay["ops_url"] + "/metrics").splitlines():
        if line.startswith("wavry_relay_packets_forwarded_total"):
            return float(line.split()[-1])
    raise AssertionError("the relay has no counter of forwarded packets")


async def test_datagrams_cross_the_relay_both_ways(system: RunningSystem, pair: Any) -> None:
    before = forwarded(system)
    async with two_peers(system.gateway_url, *pair) as (alice, bob):
        for number in range(50):
            await echo_one(alice, bob, f"datagram {number}".encode())
        assert alice.statistics().path.startswith("relay")
    assert forwarded(system) >= before + 100


async def test_kill_9_of_every_worker_under_traffic_keeps_the_session(
    system: RunningSystem, pair: Any
) -> None:
    async with two_peers(system.gateway_url, *pair) as (alice, bob):
        session_id = alice.session_id
        first = system.worker_pids()
        for pid in first:
            await echo_one(alice, bob, f"before {pid}".encode())
            os.kill(pid, signal.SIGKILL)
            await echo_one(alice, bob, f"after {pid}".encode())
        await asyncio.to_thread(
            wait_until, lambda: len(set(system.worker_pids()) - set(first)) == len(first)
        )
        await echo_one(alice, bob, b"with new workers only")
        assert alice.session_id == session_id
        assert alice.statistics().handshakes == 1, "the same channel went on"


def test_health_commands_know_each_running_service(
    system: RunningSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    relay_ready = ["health", "--ready", "--url", system.relay["ops_url"]]
    wait_until(  # Its workers may just have been killed by a test before.
        lambda: CliRunner().invoke(relay_app, relay_ready).exit_code == 0, what="the relay is ready"
    )
    for app, url in (
        (gateway_app, system.gateway_url),
        (master_app, system.master_url),
        (relay_app, system.relay["ops_url"]),
    ):
        for words in ((), ("--ready",)):
            told = CliRunner().invoke(app, ["health", "--url", url, *words])
            assert told.exit_code == 0, (url, told.stderr)
    monkeypatch.setenv("WAVRY_PEER_HOME", str(tmp_path))
    told = CliRunner().invoke(peer_app, ["health", "--gateway", system.gateway_url])
    assert told.exit_code == 0, told.stderr
    assert "no login is kept" in told.stdout


async def test_a_session_ends_for_both_when_one_closes(system: RunningSystem, pair: Any) -> None:
    async with two_peers(system.gateway_url, *pair) as (alice, bob):
        await echo_one(alice, bob, b"hello")
        await alice.aclose()
        with pytest.raises(wavry_peer.SessionClosedError):
            async with asyncio.timeout(10):
                while True:
                    await bob.receive()


async def test_a_call_that_is_not_accepted_gets_a_clear_error(
    system: RunningSystem, users: Any
) -> None:
    alice, bob = users.new("alice"), users.new("bob")
    async with wavry_peer.listen(system.gateway_url, accept={"somebody-else"}, **bob):
        with pytest.raises(wavry_peer.PeerError):
            async with wavry_peer.connect(
                system.gateway_url, bob["credentials"][0], timeout_s=5, **alice
            ):
                pass


async def test_no_log_holds_a_password_token_or_traceback(system: RunningSystem, pair: Any) -> None:
    async with two_peers(system.gateway_url, *pair) as (alice, bob):
        await echo_one(alice, bob, b"hello")
    logs = system.logs()
    for user in pair:
        assert user["credentials"][1] not in logs
    assert "v4.public." not in logs
    assert "Traceback" not in logs
    assert "unhandled" not in logs


async def test_a_worker_hung_in_traffic_is_replaced(system: RunningSystem, pair: Any) -> None:
    async with two_peers(system.gateway_url, *pair) as (alice, bob):
        stopped = system.worker_pids()[0]
        os.kill(stopped, signal.SIGSTOP)
        began = time.monotonic()
        await asyncio.to_thread(
            wait_until, lambda: not is_alive(stopped), timeout_s=40, what="hung worker is gone"
        )
        assert time.monotonic() - began < 40
        await echo_one(alice, bob, b"after the hang")
