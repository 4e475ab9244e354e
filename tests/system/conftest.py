from collections.abc import Iterator
from pathlib import Path

import pytest
from support.relay.host import StrictManager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[StrictManager]:
    with StrictManager(str(tmp_path / "notify.sock")) as made:
        yield made
