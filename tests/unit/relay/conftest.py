from collections.abc import Iterator

import pytest
from support.needs import need_engine
from support.relay.world import World, open_world

from wavry_relay.shm.control import EngineKind


@pytest.fixture(params=list(EngineKind), ids=lambda kind: kind.name.lower())
def engine_kind(request: pytest.FixtureRequest) -> EngineKind:
    """Each engine in turn."""
    return need_engine(request.param)


@pytest.fixture
def world() -> Iterator[World]:
    with open_world() as made:
        yield made
