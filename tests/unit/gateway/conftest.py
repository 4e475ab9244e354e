from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.control.gateway import (
    FakeMaster,
    RunningGateway,
    make_config,
    running_gateway,
    running_master,
)


@pytest.fixture
async def master() -> AsyncIterator[FakeMaster]:
    async with running_master() as fake:
        yield fake


@pytest.fixture
async def gateway(tmp_path: Path, master: FakeMaster) -> AsyncIterator[RunningGateway]:
    async with running_gateway(make_config(tmp_path, master.url)) as running:
        yield running
