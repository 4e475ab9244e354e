from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.system.real_peers import new_user
from support.system.system import RunningSystem, running_system


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    with running_system(tmp_path_factory.mktemp("system") / "data") as running:
        yield running


class Users:
    """Fresh accounts on a running system, each with its own home."""

    def __init__(self, system: RunningSystem, home: Path) -> None:
        self._system = system
        self._home = home

    def new(self, name: str) -> dict[str, Any]:
        return new_user(self._system.gateway_url, self._home, name)


@pytest.fixture
def users(system: RunningSystem, tmp_path: Path) -> Users:
    return Users(system, tmp_path)


@pytest.fixture
def pair(users: Users) -> tuple[dict[str, Any], dict[str, Any]]:
    return users.new("alice"), users.new("bob")
