from collections.abc import Iterator
from pathlib import Path

import pytest
from support.needs import need_engine
from support.relay.host import StrictManager

from wavry_relay.shm.control import EngineKind


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[StrictManager]:
    with StrictManager(str(tmp_path / "notify.sock")) as made:
        yield made


@pytest.fixture(params=[kind.name.lower() for kind in EngineKind], scope="module")
def engine(request: pytest.FixtureRequest) -> str:
    """Name of each engine in turn."""
    need_engine(EngineKind[request.param.upper()])
    return str(request.param)
