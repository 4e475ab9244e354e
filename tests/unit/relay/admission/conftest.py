from collections.abc import Iterator

import pytest
from support.relay.world import World, open_world

from wavry_relay.shm.control import EngineKind


@pytest.fixture
def world(engine_kind: EngineKind) -> Iterator[World]:
    """Every rule, with each engine."""
    with open_world(kind=engine_kind) as made:
        yield made
