"""One SQLite file behind one thread.

Strategy: SQLite blocks, so every call runs on a single dedicated thread and the event loop only
awaits it; one thread also means one writer, so that a transaction never waits for its neighbour.
Each call is one transaction: it commits before the caller goes on, or leaves nothing behind.
WAL with synchronous=FULL means that what was answered survives kill -9 and a power cut.
"""

import asyncio
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import sqlite_utils
import structlog

from wavry_cp.app.database_marker import (
    DatabaseMarker,
    FoundDatabase,
    judge,
    marker_path,
    read_marker,
    write_marker,
)
from wavry_cp.app.store_errors import StoreUnavailableError, StoreVersionError
from wavry_peer.protocol.errors import LocalError

__all__ = ["Database", "Migration", "StoreUnavailableError", "StoreVersionError"]

T = TypeVar("T")

FILE_MODE: Final = 0o600
BUSY_TIMEOUT_S: Final = 5.0
"""Only another program (a backup, a person with the sqlite3 shell) can hold the lock."""

MAX_PENDING_CALLS: Final = 2048
"""A stalled disk must not turn into unbounded memory: past this the answer is 503 at once."""

_UNAVAILABLE: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)
_PRIMARY_CODE: Final = 0xFF  # the lower byte of an extended result code

_log = structlog.get_logger(__name__)

_MIGRATIONS_TABLE: Final = """
CREATE TABLE IF NOT EXISTS wavry_migrations (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    applied_at_s INTEGER NOT NULL
) STRICT
"""
_IDENTITY_TABLE: Final = "CREATE TABLE IF NOT EXISTS wavry_database (id TEXT NOT NULL) STRICT"


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema.

    Attributes:
        number: 1, 2, 3, … without a gap.
        name: recorded beside the number; never changed once released.
        apply: makes the step inside a transaction that the database opened.
    """

    number: int
    name: str
    apply: Callable[[sqlite_utils.Database], None]


class Database:
    """One SQLite file; made by `open`, ended by `close`.

    Attributes:
        warning: why this may not be the database that the directory was used with, or empty.
    """

    def __init__(self, path: Path, executor: ThreadPoolExecutor) -> None:
        self.warning = ""
        self._path = path
        self._executor = executor
        self._db: sqlite_utils.Database | None = None
        self._pending = 0

    @classmethod
    async def open(
        cls,
        path: Path,
        migrations: Sequence[Migration],
        *,
        used_before: str = "",
        after_restore: Callable[[sqlite_utils.Database], None] | None = None,
    ) -> Self:
        """Open the file (made with mode 0600 where missing) and bring its schema up to date.

        Args:
            path: of the file.
            migrations: all of them.
            used_before: a sign outside of the directory that it was used before, in words.
            after_restore: run inside a transaction at the first start after a restore.

        Raises:
            StoreVersionError: the file knows a migration that `migrations` does not.
            StoreUnavailableError: the file cannot be opened, or is not a database.
            LocalError: the numbers of `migrations` are not 1, 2, 3, …
        """
        if [migration.number for migration in migrations] != list(range(1, len(migrations) + 1)):
            raise LocalError("migrations must be numbered 1, 2, 3, … in order")
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"store-{path.stem}")
        database = cls(path, executor)
        try:
            await database._call(lambda: database._open(migrations, used_before, after_restore))
        except BaseException:
            await database.close()
            raise
        return database

    async def run(self, work: Callable[[sqlite_utils.Database], T]) -> T:
        """Run `work` on the store's thread as one transaction.

        What `work` raises rolls the transaction back and is raised here.

        Raises:
            StoreUnavailableError: disk full, locked, overloaded or closed; nothing was kept.
        """
        if self._db is None:
            raise StoreUnavailableError("store is closed")
        if self._pending >= MAX_PENDING_CALLS:
            raise StoreUnavailableError("store is overloaded; try again")
        db = self._db
        return await self._call(lambda: _transaction(db, work))

    async def check_write(self) -> None:
        """Write a page and commit it: a full or read-only disk answers every read.

        Raises:
            StoreUnavailableError: as for `run`.
        """
        # Nobody reads this number of the file's head, and setting it always writes its page.
        await self.run(lambda db: db.execute("PRAGMA user_version = 0"))

    async def checkpoint(self) -> None:
        """Bring what the WAL holds into the main file, without waiting for readers.

        SQLite does it by itself only every 1000 pages: the main file of a quiet service would stay
        as it was at its start for months.

        Raises:
            StoreUnavailableError: as for `run`.
        """
        db = self._db
        if db is None:
            raise StoreUnavailableError("store is closed")
        await self._call(lambda: _checkpoint(db.conn))

    async def close(self) -> None:
        """Wait for the calls under way and close the file; calling it again does nothing."""
        db, self._db = self._db, None
        try:
            if db is not None:
                await self._call(db.conn.close)
        finally:
            self._executor.shutdown(wait=True)

    async def _call(self, work: Callable[[], T]) -> T:
        self._pending += 1
        future = asyncio.get_running_loop().run_in_executor(self._executor, work)
        future.add_done_callback(self._call_ended)
        return await future

    def _call_ended(self, _future: Any) -> None:
        self._pending -= 1

    def _open(
        self,
        migrations: Sequence[Migration],
        used_before: str,
        after_restore: Callable[[sqlite_utils.Database], None] | None,
    ) -> None:
        try:
            exists = self._path.exists()
            # Made by us before SQLite sees it: the -wal and -shm files inherit the mode.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE))
            self._path.chmod(FILE_MODE)
        except OSError as error:
            raise StoreUnavailableError(f"{self._path}: {error.strerror}") from error
        conn = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                conn.execute(f"PRAGMA {pragma}")
            # Plugins are foreign code that other packages may bring along.
            db = sqlite_utils.Database(conn, execute_plugins=False)
            found = FoundDatabase(self._path, exists, not db.table_names(), used_before)
            marker = _marker_before(found)
            _migrate(db, self._path, migrations)
            own_id = _identity(db, marker)
            if after_restore and marker is not None and marker.state == "restored":
                _transaction(db, after_restore)
            self._compare(found, marker, own_id)
            _checkpoint(conn)
        except sqlite3.DatabaseError as error:
            conn.close()
            raise _unavailable(error) from error
        except BaseException:
            conn.close()
            raise
        self._db = db

    def _compare(self, found: FoundDatabase, marker: DatabaseMarker | None, own_id: str) -> None:
        path = marker_path(self._path)
        kept, self.warning = judge(found, marker, own_id, int(time.time()))
        if kept != marker:
            write_marker(path, kept)
        if self.warning:
            _log.error(
                "database_is_not_the_one_before",
                cause=self.warning,
                effect="what was in the database before is not here",
                next_step=f"stop the service and `wavryctl restore` the last backup; or accept this"
                f" database: remove {path} and restart",
            )


def _marker_before(found: FoundDatabase) -> DatabaseMarker | None:
    """Return the marker; a directory that is new gets one before its database is made."""
    path = marker_path(found.path)
    marker = read_marker(path)
    if marker is None and not found.exists and not found.used_before:
        marker = DatabaseMarker(secrets.token_hex(16), int(time.time()), "new")
        write_marker(path, marker)
    return marker


def _identity(db: sqlite_utils.Database, marker: DatabaseMarker | None) -> str:
    """Return the id of the database, which it gets once and keeps in every copy."""
    fresh = secrets.token_hex(16)
    if marker is not None and marker.state == "new":
        fresh = marker.database_id

    def work(inside: sqlite_utils.Database) -> str:
        inside.execute(_IDENTITY_TABLE)
        inside.execute(
            "INSERT INTO wavry_database SELECT ? WHERE NOT EXISTS (SELECT 1 FROM wavry_database)",
            (fresh,),
        )
        return str(inside.execute("SELECT id FROM wavry_database").fetchone()[0])

    return _transaction(db, work)


def _checkpoint(conn: sqlite3.Connection) -> None:
    try:
        conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    except sqlite3.DatabaseError as error:
        raise _unavailable(error) from error


def _transaction(db: sqlite_utils.Database, work: Callable[[sqlite_utils.Database], T]) -> T:
    try:
        db.conn.execute("BEGIN IMMEDIATE")
        try:
            answer = work(db)
            db.conn.execute("COMMIT")
        except BaseException:
            # A full disk may have ended the transaction already; then this does nothing.
            if db.conn.in_transaction:
                db.conn.execute("ROLLBACK")
            raise
    except sqlite3.DatabaseError as error:
        if _is_unavailable(error):
            raise _unavailable(error) from error
        raise
    return answer


def _is_unavailable(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & _PRIMARY_CODE in _UNAVAILABLE


def _unavailable(error: sqlite3.Error) -> StoreUnavailableError:
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return StoreUnavailableError(f"store cannot be used ({name}): {error}")


def _migrate(db: sqlite_utils.Database, path: Path, migrations: Sequence[Migration]) -> None:
    _transaction(db, lambda inside: inside.execute(_MIGRATIONS_TABLE))
    applied: dict[int, str] = dict(
        db.execute("SELECT number, name FROM wavry_migrations").fetchall()
    )
    known = {migration.number: migration.name for migration in migrations}
    for number, name in applied.items():
        if known.get(number) != name:
            raise StoreVersionError(
                f"{path} has migration {number} ({name}), which this version does not know: "
                "run the version that wrote it, or restore a backup"
            )
    for migration in migrations:
        if migration.number not in applied:
            _transaction(db, _step(migration))


def _step(migration: Migration) -> Callable[[sqlite_utils.Database], None]:
    def apply(db: sqlite_utils.Database) -> None:
        migration.apply(db)
        db.execute(
            "INSERT INTO wavry_migrations VALUES (?, ?, CAST(strftime('%s', 'now') AS INTEGER))",
            (migration.number, migration.name),
        )

    return apply
