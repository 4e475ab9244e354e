"""Puts a backup back: all of it, or nothing.

Everything is read and checked before anything is written.  Then each file is written beside its
place, and only when all are on the disk they get their names, the database last.  Where that is cut
off, a marker keeps the service from starting on half of it, and the same command goes on: a file
that is there already with the same content is left alone, one with another content is never
replaced.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wavry_cp.app.database_marker import DatabaseMarker, marker_path, write_marker
from wavry_cp.app.directory_lock import LOCK_FILE, UNFINISHED_FILE, held_directory
from wavry_peer.protocol.errors import LocalError

from .contents import Item, Manifest, Places, newest_schema
from .making import BLOCK_BYTES, sync_directory
from .reading import Backup, TakeBytes, opened_backup
from .sealed_file import BackupFileError, Secret

__all__ = ["RestoreRefusedError", "Restored", "restore"]

FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
_STAGED_PREFIX: Final = ".restoring-"


class RestoreRefusedError(LocalError):
    """Something is where the backup would go; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did.

    Attributes:
        manifest: of the backup.
        written: files that were written.
        unchanged: files that were there already, the same.
        left_out: items for which nobody named a place.
    """

    manifest: Manifest
    written: tuple[Path, ...]
    unchanged: tuple[Path, ...]
    left_out: tuple[Item, ...]


def restore(
    path: Path, ask_secret: Callable[[str], Secret], places_of: Callable[[Manifest], Places]
) -> Restored:
    """Restore a backup.

    Args:
        path: of the backup.
        ask_secret: see `SealedReader.open`.
        places_of: says where the files of the service go; raises where it cannot.

    Raises:
        BackupFileError: the backup cannot be used; nothing was changed.
        RestoreRefusedError: something else is where it would go; nothing was changed.
        DirectoryInUseError: the service runs; nothing was changed.
        LocalError: a place cannot be written.
    """
    with opened_backup(path, ask_secret) as backup:
        manifest = backup.manifest
        backup.verify()
    newest = newest_schema(manifest.service)
    if manifest.schema > newest:
        raise BackupFileError(
            f"{path} is of version {manifest.version} with schema {manifest.schema}; this version"
            f" ({newest}) is older: install that one, or a newer one, and restore again"
        )
    places = places_of(manifest)
    targets = {item: places.of(item) for item in manifest.items}
    named = {item: target for item, target in targets.items() if target is not None}
    with _held(places):
        unchanged = _refuse_others(named, places)
        missing = {item: target for item, target in named.items() if item not in unchanged}
        for target in named.values():
            _beside(target).unlink(missing_ok=True)  # of a restore that was killed
        with _staged(missing) as staged:
            with opened_backup(path, ask_secret) as backup:
                _stage(backup, manifest, staged)
            _put(staged, places, manifest)
    return Restored(
        manifest,
        tuple(missing.values()),
        tuple(named[item] for item in unchanged),
        tuple(item for item, target in targets.items() if target is None),
    )


@contextlib.contextmanager
def _held(places: Places) -> Iterator[None]:
    """Hold the directories, and take away those that were made for nothing."""
    made: list[Path] = []
    directories = [places.data_dir]
    if places.keys_dir is not None and places.keys_dir.resolve() != places.data_dir.resolve():
        directories.append(places.keys_dir)
    with ExitStack() as held:
        try:
            for directory in directories:
                made += _make(directory)
                held.enter_context(held_directory(directory, "wavryctl restore"))
                _own(directory / LOCK_FILE)
        except OSError as error:
            _unmake(made)
            raise LocalError(f"{error.filename}: {error.strerror}") from error
        except LocalError:
            _unmake(made)
            raise
        try:
            yield
        except BaseException:
            if not (places.data_dir / UNFINISHED_FILE).exists():
                _unmake(made)
            raise


def _make(directory: Path) -> list[Path]:
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=DIRECTORY_MODE)
        _own(path)
    return missing


def _unmake(made: list[Path]) -> None:
    for directory in sorted(made, key=lambda path: -len(path.parts)):
        with contextlib.suppress(OSError):
            (directory / LOCK_FILE).unlink(missing_ok=True)
            directory.rmdir()


def _own(path: Path) -> None:
    """Give a file to the owner of its directory: root restores for the service's user."""
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


def _refuse_others(named: dict[Item, Path], places: Places) -> list[Item]:
    """Return the items that are in place already.

    Raises:
        RestoreRefusedError: names every file that is in the way.
    """
    unchanged = [item for item, target in named.items() if _is_same(target, item)]
    database = places.database
    in_the_way = [
        target
        for item, target in named.items()
        if item not in unchanged and (target.exists() or target.is_symlink())
    ]
    # A WAL of another database would be played into the restored one.
    in_the_way += [
        path
        for path in (
            database.with_name(database.name + end) for end in ("-wal", "-shm", "-journal")
        )
        if path.exists()
    ]
    if places.keys_dir is not None:
        known = {target.name for item, target in named.items() if item.kind == "key"}
        in_the_way += [
            path
            for path in sorted(places.keys_dir.glob("*.key"))
            if path.name not in known and known
        ]
    if in_the_way:
        raise RestoreRefusedError(
            "a restore replaces nothing; move these files aside first:\n  "
            + "\n  ".join(str(path) for path in in_the_way)
        )
    return unchanged


def _is_same(path: Path, item: Item) -> bool:
    try:
        if path.stat().st_size != item.size:
            return False
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
    except OSError:
        return False
    return digest.hexdigest() == item.sha256


@contextlib.contextmanager
def _staged(missing: dict[Item, Path]) -> Iterator[dict[Item, tuple[Path, Path]]]:
    """Give where each file is written first, and where it goes; removes what stays behind."""
    staged = {item: (_beside(target), target) for item, target in missing.items()}
    try:
        yield staged
    except OSError as error:
        raise LocalError(f"{error.filename}: {error.strerror}") from error
    finally:
        for beside, _ in staged.values():
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)


def _beside(target: Path) -> Path:
    return target.with_name(_STAGED_PREFIX + target.name)


def _stage(backup: Backup, manifest: Manifest, staged: dict[Item, tuple[Path, Path]]) -> None:
    if backup.manifest != manifest:
        raise BackupFileError("the backup was changed while it was read")
    descriptors: list[int] = []

    def take(item: Item) -> TakeBytes:
        if item not in staged:
            return lambda _block: None
        beside = staged[item][0]
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        descriptors.append(descriptor)
        _own(beside)
        return lambda block: _write(descriptor, block)

    try:
        backup.read_items(take)
        for descriptor in descriptors:
            os.fsync(descriptor)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _write(descriptor: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(descriptor, view) :]


def _put(staged: dict[Item, tuple[Path, Path]], places: Places, manifest: Manifest) -> None:
    """Give the files their names: keys before their document, the database after all others."""
    unfinished = places.data_dir / UNFINISHED_FILE
    unfinished.touch(mode=FILE_MODE)
    sync_directory(places.data_dir)
    ordered = sorted(staged, key=lambda item: item.kind == "database")
    for item in ordered:
        beside, target = staged[item]
        beside.rename(target)
    for directory in {target.parent for _, target in staged.values()} | {places.data_dir}:
        sync_directory(directory)
    if manifest.database_id:
        path = marker_path(places.database)
        write_marker(path, DatabaseMarker(manifest.database_id, manifest.created_at, "restored"))
        _own(path)
    unfinished.unlink()
    sync_directory(places.data_dir)
