"""Runbooks of relays bring back what is broken; see test_runbooks.py."""

import contextlib
import signal
import threading
from pathlib import Path

from support.machines.runbook import read_runbook
from support.machines.runbook_faults import (
    Holder,
    churning,
    firewall,
    kill_a_worker,
    lift_blocks,
    relay_path,
    reload_settings,
    rises,
    spoof,
    violate,
)
from support.machines.runbook_world import RELAY, UDP_PORT, World
from support.system.live_sessions import Live, Users
from support.waiting import wait_until

from wavry_peer.protocol import constants as c

# -- Relay -----------------------------------------------------------------------------------------


def test_relay_whose_supervisor_is_gone(world: World, users: Users, lives: list[Live]) -> None:
    page = read_runbook("relay-unhealthy.md")
    there = relay_path(world, "relay-2")
    stayed = [live for live in lives if live.path == there]
    world.machines["relay-1"].signal(RELAY, signal.SIGKILL)
    world.follow(page, "The process is gone")
    assert world.relay_states()["relay-1"][0] == "ACTIVE"
    for live in lives:
        live.goes_on(timeout_s=60)
    assert all(live.ends[0].session.statistics().path_changes == 0 for live in stayed)
    users.calls_work()


def test_relay_whose_workers_crash_in_a_loop(world: World, users: Users, lives: list[Live]) -> None:
    """The head of its shared memory is damaged: a worker that must start anew never comes up."""
    machine = world.machines["relay-1"]
    before = machine.pid(RELAY)
    with next(Path("/dev/shm").glob(f"*{world.relay_id('relay-1')}*")).open("r+b") as segment:
        segment.write(bytes(8))
    kill_a_worker(machine)
    failures = 'wavry_relay_worker_restarts_total{cause="boot_failed"}'
    wait_until(lambda: world.metric(failures) >= 2, timeout_s=30, what="a crash loop")
    wait_until(
        lambda: world.relay_states()["relay-1"][0] == "DEGRADED",
        what="the master gives it nothing new",
    )
    results = world.follow(read_runbook("relay-unhealthy.md"), "Workers crash in a loop")
    assert "1 of 2 workers run" in results[0][1].splitlines()[0]
    assert world.metric(failures) == 0
    assert machine.pid(RELAY) != before
    assert world.relay_states()["relay-1"][0] == "ACTIVE"
    for live in lives:
        live.goes_on(timeout_s=60)
    users.calls_work()


def test_relay_whose_udp_port_is_blocked(world: World, users: Users, lives: list[Live]) -> None:
    with firewall(world.machines["relay-1"], f"udp dport {UDP_PORT} drop"):
        wait_until(
            lambda: any(live.stands_still(for_s=1) for live in lives), timeout_s=10, what="silence"
        )
        results = world.follow(read_runbook("relay-unhealthy.md"), "Its UDP port is blocked")
        assert "broken: network" in results[0][1]
        for live in lives:
            live.goes_on(timeout_s=60)
        before = world.metric("wavry_relay_sessions_created_total")
        wait_until(
            lambda: (
                users.calls_work() or world.metric("wavry_relay_sessions_created_total") > before
            ),
            timeout_s=30,
            what="a new session on the relay",
        )


# -- Load ------------------------------------------------------------------------------------------


def test_full_relays(world: World, users: Users, lives: list[Live]) -> None:
    for name in ("relay-1", "relay-2"):
        reload_settings(world.machines[name], "WAVRY_RELAY_SHED_AT_PCT=1")
    wait_until(
        lambda: min(world.metric("wavry_relay_shedding", name) for name in ("relay-1", "relay-2")),
        what="shedding",
    )
    for name in ("relay-1", "relay-2"):
        with contextlib.closing(Holder(world, name)) as holder:
            assert holder.present() == "SESSION_FULL"
    wait_until(
        lambda: {row["load_pct"] for row in world.relay_rows().values()} == {100.0},
        what="the master knows that they are full",
    )
    page = read_runbook("high-relay-load.md")
    try:
        world.follow(page, "It is full")
        users.calls_work()
        for live in lives:
            live.goes_on()
            assert live.path != relay_path(world, "relay-1"), "it was drained"
        assert world.relay_states()["relay-1"][0] == "ACTIVE"
    finally:
        for name in ("relay-1", "relay-2"):
            reload_settings(world.machines[name], "")
        world.typed("systemctl stop wavry-relay", at="relay-3")


def test_blocked_addresses_of_good_users(world: World, users: Users, lives: list[Live]) -> None:
    machine = world.machines["relay-1"]
    reload_settings(machine, "WAVRY_RELAY_COOKIE_AT_VERIFIES_PER_S=0\nWAVRY_RELAY_BLOCK_AFTER=3")
    try:
        wait_until(lambda: violate(world) == c.RejectReason.BANNED, timeout_s=30, what="a block")
        wait_until(
            lambda: "/32" in world.typed("wavryctl blocks list"), timeout_s=30, what="the report"
        )
        world.follow(read_runbook("high-relay-load.md"), "Good users are blocked")
        assert violate(world) == c.RejectReason.INVALID_SIGNATURE
        users.calls_work()
        for live in lives:
            live.goes_on()
    finally:
        lift_blocks(machine)  # the stranger is needed by other tests
        reload_settings(machine, "")


# -- NAT -------------------------------------------------------------------------------------------


REBINDS, CHALLENGES = "nat_rebinds_total", 'answers_sent_total{type="challenge"}'
HELD_BACK = 'limited_total{layer="host"}'


def test_nat_churn_over_the_limit_of_an_address(
    world: World, users: Users, lives: list[Live]
) -> None:
    page = read_runbook("nat-churn.md")
    machine = world.machines["relay-1"]
    with contextlib.ExitStack() as stack:
        stack.callback(reload_settings, machine, "")
        here = [live for live in lives if live.path == relay_path(world, "relay-1")]
        while len(here) < 6:
            made = stack.enter_context(users.calling(3))
            here += [live for live in made if live.path == relay_path(world, "relay-1")]
        reload_settings(machine, "WAVRY_RELAY_IP_PER_S=1\nWAVRY_RELAY_IP_BURST=1")
        stack.enter_context(churning(world, 2.0))
        wait_until(
            lambda: any(live.stands_still(for_s=2) for live in here), timeout_s=30, what="silence"
        )
        results = world.follow(page, "The proofs are held back")
        confirmed, verified = (
            rises(said) for block, said in results if block.section in ("Confirm", "Verify")
            and "nat_rebinds" in block.commands
        )  # fmt: skip
        assert confirmed[CHALLENGES] > 0
        assert confirmed[HELD_BACK] > 0
        assert confirmed[REBINDS] < confirmed[CHALLENGES]
        assert verified[HELD_BACK] == 0
        assert verified[REBINDS] > confirmed[REBINDS]
        for live in here:
            live.goes_on(timeout_s=10)
    users.calls_work()


def test_spoofed_sources_look_different_from_nat_churn(
    world: World, users: Users, lives: list[Live]
) -> None:
    page = read_runbook("nat-churn.md")
    live = next(live for live in lives if live.path == relay_path(world, "relay-1"))
    stop = threading.Event()
    thread = threading.Thread(target=spoof, args=(world, live, stop))
    thread.start()
    try:
        ((block, said),) = [
            result for result in world.follow(page, sections=("Confirm",))
            if "nat_rebinds" in result[0].commands
        ]  # fmt: skip
    finally:
        stop.set()
        thread.join()
    seen = rises(said)
    assert block.case == ""
    assert seen[CHALLENGES] > 10
    assert seen[REBINDS] == 0
    live.goes_on()
