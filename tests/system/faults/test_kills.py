"""kill -9 and SIGSTOP of each service under a live session."""

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.system.real_peers import echo_one, new_user, two_peers
from support.system.services import Services
from support.system.system import get_json
from support.waiting import is_alive, wait_until

import wavry_peer


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    with Services(tmp_path_factory.mktemp("faults") / "services") as running:
        yield running


@pytest.fixture
def pair(services: Services, tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return (
        new_user(services.gateway_url, tmp_path, "alice"),
        new_user(services.gateway_url, tmp_path, "bob"),
    )


async def in_thread(function: Any, *arguments: Any) -> None:
    await asyncio.to_thread(function, *arguments)


async def test_kill_9_of_gateway_keeps_the_session_and_the_accounts(
    services: Services, pair: Any
) -> None:
    async with two_peers(services.gateway_url, *pair) as (alice, bob):
        await in_thread(services.kill, "gateway")
        await echo_one(alice, bob, b"without a gateway")
        await in_thread(services.start, "gateway")
        await echo_one(alice, bob, b"with a new gateway")
    async with two_peers(services.gateway_url, *pair) as (alice, bob):
        await echo_one(alice, bob, b"the accounts are still there")


async def test_kill_9_of_master_keeps_sessions_relays_and_keys(
    services: Services, pair: Any
) -> None:
    relay_id = services.ready["relay"]["relay_id"]
    async with two_peers(services.gateway_url, *pair) as (alice, bob):
        await in_thread(services.kill, "master")
        await echo_one(alice, bob, b"without a master")
        await in_thread(services.start, "master")
        await echo_one(alice, bob, b"with a new master")
    await in_thread(services.wait_for_relay)
    assert services.ready["relay"]["relay_id"] == relay_id
    async with two_peers(services.gateway_url, *pair) as (alice, bob):
        await echo_one(alice, bob, b"leases are signed again")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "hanging"])
async def test_without_a_master_a_new_session_fails_fast_with_a_clear_error(
    services: Services, pair: Any, how: signal.Signals
) -> None:
    caller, callee = pair
    await in_thread(services.kill, "master", how)
    try:
        async with wavry_peer.listen(services.gateway_url, accept="all", **callee):
            began = time.monotonic()
            with pytest.raises(wavry_peer.PeerError) as caught:
                async with wavry_peer.connect(
                    services.gateway_url, callee["credentials"][0], timeout_s=10, **caller
                ):
                    pass
            assert time.monotonic() - began < 8, "the broker's answer came before our time-out"
        assert "relay" in str(caught.value)
    finally:
        if how == signal.SIGKILL:
            await in_thread(services.start, "master")
        else:
            await in_thread(services.kill, "master", signal.SIGCONT)
        await in_thread(services.wait_for_relay)

    async def works_again() -> bool:
        try:
            async with two_peers(services.gateway_url, *pair) as (alice, bob):
                await echo_one(alice, bob, b"it works again")
        except wavry_peer.PeerError:
            return False
        return True

    deadline = time.monotonic() + 20
    while not await works_again():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.5)


async def test_kill_9_of_the_relay_supervisor_ends_its_workers_and_the_next_start_is_clean(
    services: Services, pair: Any
) -> None:
    def segments(relay_id: str) -> set[int]:
        return {p.stat().st_ino for p in Path("/dev/shm").iterdir() if relay_id in p.name}

    health = get_json(services.ops_url + "/health")
    workers = health["workers"]["pids"]
    relay_id = health["relay_id"]
    own = segments(relay_id)
    assert len(own) == 1, "the segment's name shows whose it is"
    await in_thread(services.kill, "relay")
    for pid in workers:
        await in_thread(wait_until, lambda pid=pid: not is_alive(pid))
    await in_thread(services.start, "relay")
    await in_thread(services.wait_for_relay)
    after = get_json(services.ops_url + "/health")
    assert after["relay_id"] == relay_id
    left = segments(relay_id)
    assert len(left) == 1, "only the new segment is there"
    assert left != own, "the stale segment was removed"
    async with two_peers(services.gateway_url, *pair) as (alice, bob):
        await echo_one(alice, bob, b"through the new relay")


async def test_sigterm_ends_each_service_with_0(services: Services) -> None:
    for name in ("relay", "gateway", "master"):
        await in_thread(services.kill, name, signal.SIGTERM)
        assert services.returncode(name) == 0, services.log(name)
    for name in ("master", "gateway", "relay"):
        await in_thread(services.start, name)
    await in_thread(services.wait_for_relay)


def test_no_service_logged_a_traceback(services: Services) -> None:
    for name in ("relay", "gateway", "master"):
        assert "Traceback" not in services.log(name)
        assert "unhandled" not in services.log(name)
