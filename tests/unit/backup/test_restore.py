"""What a restore refuses, and that it has changed nothing then."""

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest
from nacl.pwhash import argon2id

from wavry_cp.app.directory_lock import (
    UNFINISHED_FILE,
    DirectoryInUseError,
    UnfinishedRestoreError,
    data_directory,
    held_directory,
)
from wavry_cp.backup.contents import Places
from wavry_cp.backup.making import Lock, make_backup
from wavry_cp.backup.restoring import RestoreRefusedError, restore
from wavry_cp.backup.sealed_file import BackupFileError, Secret
from wavry_cp.store.sqlite.gateway import SqliteGatewayStore
from wavry_peer.protocol.errors import LocalError

PASSPHRASE = "correct horse battery staple"


@pytest.fixture(autouse=True)
def cheap_passphrase(monkeypatch):
    monkeypatch.setattr(argon2id, "OPSLIMIT_MODERATE", argon2id.OPSLIMIT_MIN)
    monkeypatch.setattr(argon2id, "MEMLIMIT_MODERATE", argon2id.MEMLIMIT_MIN)


@pytest.fixture
async def data(tmp_path):
    """The data directory of a gateway that was used."""
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    store = await SqliteGatewayStore.open(directory / "gateway.db")
    await store.add_user("ann", "hash", now_s=1)
    await store.close()
    return directory


def backed_up(data: Path) -> Path:
    file = data.parent / "b"
    make_backup(Places("gateway", data), file, Lock(PASSPHRASE), None, now_s=lambda: 7)
    return file


def restored(file: Path, data: Path, passphrase: str = PASSPHRASE):
    return restore(file, lambda _: Secret(passphrase), lambda _: Places("gateway", data))


def content(directory: Path) -> dict[str, bytes]:
    if not directory.exists():
        return {}
    return {path.name: path.read_bytes() for path in directory.iterdir()}


async def test_a_database_of_a_newer_version_is_refused(data, tmp_path):
    with contextlib.closing(sqlite3.connect(data / "gateway.db")) as db:
        db.execute("INSERT INTO wavry_migrations VALUES (99, 'of tomorrow', 1)")
        db.commit()
    file = backed_up(data)
    with pytest.raises(BackupFileError, match="schema 99"):
        restored(file, tmp_path / "new")
    assert not (tmp_path / "new").exists()


async def test_a_wrong_passphrase_changes_nothing(data, tmp_path):
    file = backed_up(data)
    with pytest.raises(BackupFileError, match="passphrase"):
        restored(file, tmp_path / "new", "another passphrase")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["gateway.db", "gateway.db-wal", "gateway.db-shm"])
async def test_what_is_in_the_way_is_named_and_kept(data, tmp_path, name):
    file, new = backed_up(data), tmp_path / "new"
    new.mkdir(mode=0o700)
    (new / name).write_bytes(b"of somebody")
    with pytest.raises(RestoreRefusedError, match=name):
        restored(file, new)
    left = content(new)
    left.pop("in-use.lock")
    assert left == {name: b"of somebody"}


async def test_a_restore_that_is_killed_is_finished_by_the_same_one(data, tmp_path):
    file, new = backed_up(data), tmp_path / "new"
    restored(file, new)
    # As a kill between two names leaves it.
    (new / UNFINISHED_FILE).touch()
    (new / "gateway.db").rename(new / ".restoring-gateway.db")
    held = data_directory(new, "wavry-gateway", "WAVRY_GATEWAY_DATA_DIR")
    with pytest.raises(UnfinishedRestoreError, match="was cut off"), held:
        pass
    restored(file, new)
    with data_directory(new, "wavry-gateway", "WAVRY_GATEWAY_DATA_DIR"):
        store = await SqliteGatewayStore.open(new / "gateway.db")
        assert (await store.count_users(), store.warning) == (1, "")
        await store.close()
    names = {path.name for path in new.iterdir()}
    assert names == {"gateway.db", "gateway.marker", "in-use.lock"}


async def test_a_service_that_runs_keeps_its_directory(data, tmp_path):
    file, new = backed_up(data), tmp_path / "new"
    new.mkdir(mode=0o700)
    with held_directory(new, "wavry-gateway"), pytest.raises(DirectoryInUseError, match="gateway"):
        restored(file, new)
    assert set(content(new)) == {"in-use.lock"}


async def test_a_disk_that_is_full_leaves_no_half(data, tmp_path, monkeypatch):
    file, new = backed_up(data), tmp_path / "new"
    write = os.write

    def full(descriptor, block):
        if Path(f"/proc/self/fd/{descriptor}").readlink().name.endswith("gateway.db"):
            raise OSError(28, "No space left on device")
        return write(descriptor, block)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(LocalError, match="No space left"):
        restored(file, new)
    assert not new.exists()


async def test_a_damaged_database_is_not_backed_up(data, tmp_path):
    raw = bytearray((data / "gateway.db").read_bytes())
    raw[4096:] = b"?" * (len(raw) - 4096)
    (data / "gateway.db").write_bytes(raw)
    with pytest.raises(LocalError, match=r"gateway\.db"):
        backed_up(data)
    assert not (tmp_path / "b").exists()
    assert not list(data.glob(".backup-*"))
