import pytest
from support.needs import need_engine

from wavry_relay.shm.control import EngineKind


@pytest.fixture(params=[kind.name.lower() for kind in EngineKind], scope="module")
def engine(request: pytest.FixtureRequest) -> str:
    """Name of each engine in turn."""
    need_engine(EngineKind[request.param.upper()])
    return str(request.param)
