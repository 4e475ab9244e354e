"""One data centre for each module of runbooks, with users; every test gives it back well."""

from collections.abc import Iterator

import pytest
from support.machines.namespaces import need_namespaces
from support.machines.runbook_world import GATEWAY_URL, PROGRAMS, World
from support.needs import need_program
from support.system.live_sessions import Live, Users

from wavry_peer.errors import SessionFailedError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    need_program(*PROGRAMS)
    need_namespaces()
    with World(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture(scope="module")
def users(world: World) -> Iterator[Users]:
    made = Users(GATEWAY_URL, world.net.home, world.operator.namespace, world.directory)
    yield made
    made.close()


@pytest.fixture
def lives(world: World, users: Users) -> Iterator[list[Live]]:
    """Live sessions, at least one on each of the two relays."""
    wanted = {f"relay {world.relay_id(name)}" for name in ("relay-1", "relay-2")}
    made: list[Live] = []
    failed = 0
    try:
        while not {live.path for live in made} >= wanted:
            assert len(made) < 15, "relays are chosen at random"
            try:
                made.append(users.call())
            except SessionFailedError:  # A NAT or a limit that the test before left behind.
                failed += 1
                assert failed <= 2, "calls do not work before the fault is made"
        for live in made:
            live.goes_on()
        yield made
    finally:
        for live in made:
            users.hang_up(live)
        world.heal()
