from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.peer.peer_world import PeerWorld, peer_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[PeerWorld]:
    async with peer_world(tmp_path) as made:
        yield made
