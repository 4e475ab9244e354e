"""Makes the backup of a service that may be running, in one file that is there whole or not at all.

The database is copied by SQLite's backup inside one read transaction: the copy is the database of
that moment, writers do not wait for it, and no write makes it begin again.  The copy lies beside
the database for as long as that takes, with no name as soon as it is whole.
"""

import contextlib
import fcntl
import glob
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from nacl.public import PublicKey

from wavry_peer.protocol.errors import LocalError
from wavry_peer.service.version import software_version

from .contents import KEYS_DOCUMENT, Item, ItemKind, Manifest, Places, key_files
from .sealed_file import SealedWriter

__all__ = ["BLOCK_BYTES", "MANIFEST_LENGTH_BYTES", "Lock", "make_backup", "sync_directory"]

MANIFEST_LENGTH_BYTES: Final = 4
BLOCK_BYTES: Final = 1 << 20
PAGES_AT_ONCE: Final = 256
BUSY_TIMEOUT_S: Final = 10.0
MAX_FILE_BYTES: Final = 1 << 20
"""Keys, tokens and settings are a few kilobytes; a larger file is a slip of the hand."""
KEYS_TRIES: Final = 5
_COPY_PREFIX: Final = ".backup-"


@dataclass(frozen=True, slots=True)
class Lock:
    """What a backup is encrypted for: a passphrase or a recipient."""

    passphrase: str | None = None
    recipient: PublicKey | None = None


def make_backup(
    places: Places, target: Path, lock: Lock, settings: bytes | None, *, now_s: Callable[[], int]
) -> Manifest:
    """Write a backup of a service.

    Args:
        places: its files; those that are named are taken along.
        target: the file to write, mode 0600; replaced as a whole where it exists.
        lock: what it is encrypted for.
        settings: the settings themselves, where they are in no file.
        now_s: unix seconds.

    Raises:
        LocalError: a file is missing or cannot be read, or the database is damaged.
        OSError: the target cannot be written.
    """
    if not places.database.is_file():
        raise LocalError(f"there is no {places.database}: is this the data directory?")
    created_at = now_s()
    with _copy_of(places.database) as (copy, facts):
        small = list(_small_items(places, settings))
        items = [_item("database", places.database.name, copy), *(item for item, _ in small)]
        manifest = Manifest(
            places.service, created_at, software_version(), facts.schema, facts.database_id,
            facts.rows, tuple(items),
        )  # fmt: skip
        with _new_file(target) as file:
            writer = SealedWriter(file, lock.passphrase, lock.recipient)
            raw = msgspec.json.encode(manifest)
            writer.write(len(raw).to_bytes(MANIFEST_LENGTH_BYTES) + raw)
            for block in _blocks(copy):
                writer.write(block)
            for _, content in small:
                writer.write(content)
            writer.close()
    return manifest


@dataclass(frozen=True, slots=True)
class _Facts:
    schema: int
    database_id: str
    rows: dict[str, int]


@contextmanager
def _copy_of(database: Path) -> Iterator[tuple[BinaryIO, _Facts]]:
    """Give a copy of a database as an open file that has no name any more."""
    _remove_left(database.parent, f"{_COPY_PREFIX}*.db*")
    path = database.with_name(f"{_COPY_PREFIX}{os.getpid()}.db")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            facts = _copy(database, path)
        except sqlite3.Error as error:
            raise LocalError(f"{database} cannot be copied: {error}") from error
        finally:
            path.unlink()
        file.seek(0)
        yield file, facts


def _copy(database: Path, path: Path) -> _Facts:
    with (
        contextlib.closing(_connect(database)) as source,
        contextlib.closing(_connect(path)) as copy,
    ):
        # The copy is thrown away where anything fails: it needs no journal and no fsync.
        for pragma in ("journal_mode=OFF", "synchronous=OFF"):
            copy.execute(f"PRAGMA {pragma}")
        source.execute("BEGIN")
        source.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        source.backup(copy, pages=PAGES_AT_ONCE, sleep=0)
        # In WAL mode only SQLite itself would see what it wrote last.
        copy.execute("PRAGMA journal_mode=DELETE")
        (sound,) = copy.execute("PRAGMA quick_check(1)").fetchone()
        if sound != "ok":
            raise LocalError(f"{database} is damaged ({sound}): it was not backed up")
        return _facts(copy)


def _connect(path: Path) -> sqlite3.Connection:
    uri = path.absolute().as_uri() + "?mode=rw"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)


def _facts(copy: sqlite3.Connection) -> _Facts:
    tables = {
        name
        for (name,) in copy.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        if not name.startswith("sqlite_")
    }
    rows = {
        # The names are the database's own.
        name: int(copy.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0])  # noqa: S608
        for name in sorted(tables)
        if not name.startswith("wavry_")
    }
    schema, database_id = 0, ""
    if "wavry_migrations" in tables:
        schema = copy.execute("SELECT max(number) FROM wavry_migrations").fetchone()[0] or 0
    if "wavry_database" in tables:
        database_id = copy.execute("SELECT id FROM wavry_database").fetchone()[0]
    return _Facts(schema, database_id, rows)


def _remove_left(directory: Path, pattern: str) -> None:
    """Remove what backups that were killed left; what one is writing now is locked."""
    for path in directory.glob(pattern):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _small_items(places: Places, settings: bytes | None) -> Iterator[tuple[Item, bytes]]:
    if places.keys_dir is not None:
        for name, content in _keys(places.keys_dir).items():
            yield _small_item("key", name, content), content
    single: Mapping[ItemKind, Path | None] = {
        "service token": places.service_token_file,
        "admin token": places.admin_token_file,
        "settings": places.settings_file,
    }
    for kind, path in single.items():
        if path is not None:
            content = _read(path)
        elif kind == "settings" and settings is not None:
            content = settings
        else:
            continue
        yield _small_item(kind, path.name if path else "settings.env", content), content


def _keys(directory: Path) -> dict[str, bytes]:
    """Return the key files as they belong together: none of a rotation that is under way."""
    if not (directory / KEYS_DOCUMENT).is_file():
        raise LocalError(f"there is no {directory / KEYS_DOCUMENT}: is this the key directory?")
    for _ in range(KEYS_TRIES):
        before = _read(directory / KEYS_DOCUMENT)
        with contextlib.suppress(FileNotFoundError):
            found = {path.name: _read(path) for path in key_files(directory)}
            if found.get(KEYS_DOCUMENT) == before:
                return found
    raise LocalError(f"the keys in {directory} change all the time: try again")


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise LocalError(f"{path} is over 1 MiB and cannot be what it should be")
    return content


def _small_item(kind: ItemKind, name: str, content: bytes) -> Item:
    return Item(kind, name, len(content), hashlib.sha256(content).hexdigest())


def _item(kind: ItemKind, name: str, file: BinaryIO) -> Item:
    digest, size = hashlib.sha256(), 0
    for block in _blocks(file):
        digest.update(block)
        size += len(block)
    return Item(kind, name, size, digest.hexdigest())


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while block := file.read(BLOCK_BYTES):
        yield block


@contextmanager
def _new_file(target: Path) -> Iterator[BinaryIO]:
    """Give a file of mode 0600 that takes the place of `target` when the block has ended well."""
    _remove_left(target.parent, f".{glob.escape(target.name)}.*.partial")
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.partial")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
        sync_directory(target.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Make what was renamed in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
