"""A used directory that meets an empty database, seen by the store at its start."""

import shutil
from pathlib import Path

import pytest

from wavry_cp.app.database_marker import marker_path
from wavry_cp.store.sqlite.gateway import SqliteGatewayStore
from wavry_cp.store.sqlite.master import MasterSqlite


async def start(path: Path, **more: str) -> str:
    store = await SqliteGatewayStore.open(path, **more)
    try:
        await store.add_user("ann", "hash", now_s=1)
        return store.warning
    finally:
        await store.close()


async def test_an_ordinary_life_has_no_warning(tmp_path):
    path = tmp_path / "gateway.db"
    assert await start(path) == ""
    assert await start(path) == ""
    marker_path(path).unlink()  # As for a directory of a version before.
    assert await start(path) == ""


async def test_a_database_that_vanished_is_told_until_it_is_back(tmp_path):
    path = tmp_path / "gateway.db"
    await start(path)
    path.rename(tmp_path / "kept")
    for _ in range(2):
        assert "has been in use since" in await start(path)
    path.unlink()
    (tmp_path / "kept").rename(path)
    assert await start(path) == ""


async def test_another_database_is_told_until_a_person_accepts_it(tmp_path):
    (tmp_path / "other").mkdir()
    path, other = tmp_path / "gateway.db", tmp_path / "other" / "gateway.db"
    await start(path)
    await start(other)
    shutil.copy(other, path)
    assert "is another database" in await start(path)
    marker_path(path).unlink()
    assert await start(path) == ""


async def test_a_file_without_anything_in_it_that_was_brought_here_is_told(tmp_path):
    path = tmp_path / "gateway.db"
    path.touch()
    for _ in range(2):
        assert "gateway.db" in await start(path)


async def test_a_start_that_was_cut_off_before_its_first_row_is_no_loss(tmp_path, monkeypatch):
    path = tmp_path / "gateway.db"
    with monkeypatch.context() as patched:
        patched.setattr("wavry_cp.store.sqlite.database._migrate", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await start(path)
    assert path.exists()
    assert await start(path) == ""


async def test_keys_that_a_master_changed_tell_of_a_database_that_is_gone(tmp_path):
    for expected in ("its keys were changed", "has been in use since"):
        store = await MasterSqlite.open(
            tmp_path / "master.db", used_before="its keys were changed 2 times by a master"
        )
        assert expected in store.warning
        await store.close()


async def test_the_main_file_has_what_was_written_once_it_is_checkpointed(tmp_path):
    path, copy = tmp_path / "gateway.db", tmp_path / "copy" / "gateway.db"
    copy.parent.mkdir()
    store = await SqliteGatewayStore.open(path)
    try:
        await store.add_user("ann", "hash", now_s=1)
        await store.checkpoint()
        shutil.copy(path, copy)
    finally:
        await store.close()
    copied = await SqliteGatewayStore.open(copy)
    assert await copied.count_users() == 1
    await copied.close()
