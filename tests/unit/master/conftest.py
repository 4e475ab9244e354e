from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.control.master import FakeClock, FakeRelay, MasterClient, running_master


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def master(tmp_path: Path, clock: FakeClock) -> AsyncIterator[MasterClient]:
    """A master whose time is moved by hand."""
    async with running_master(tmp_path, clock.clock()) as client:
        yield client


@pytest.fixture
async def relay(master: MasterClient) -> FakeRelay:
    """A relay that has registered."""
    return await FakeRelay(master).join()
