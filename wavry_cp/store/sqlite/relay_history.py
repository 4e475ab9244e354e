"""Changes of relays' states in SQLite."""

from collections.abc import Sequence
from typing import Final

import sqlite_utils

from wavry_cp.master.health.store import StateChange

from .database import Database

__all__ = ["HistorySqlite", "create_history"]

KEPT_OF_EACH: Final = 200
"""Half a year of a relay that changes daily, an hour of one that flaps every half minute."""
_COLUMNS: Final = "relay_id, at_s, before_state, after_state, causes, text"


def create_history(db: sqlite_utils.Database) -> None:
    """Make the table; the rows of a relay go with the relay."""
    db.execute(
        """
        CREATE TABLE relay_history (
            id INTEGER PRIMARY KEY,
            relay_id TEXT NOT NULL REFERENCES relays (relay_id) ON DELETE CASCADE,
            at_s INTEGER NOT NULL,
            before_state TEXT NOT NULL,
            after_state TEXT NOT NULL,
            causes TEXT NOT NULL,
            text TEXT NOT NULL
        ) STRICT
        """
    )
    db.execute("CREATE INDEX relay_history_by_relay ON relay_history (relay_id, id)")


class HistorySqlite:
    """`HistoryStore` over a `Database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def note_changes(self, changes: Sequence[StateChange]) -> None:
        """See `HistoryStore`."""

        def note(db: sqlite_utils.Database) -> None:
            for change in changes:
                # A relay may have been removed since; its history went with it.
                db.execute(
                    f"INSERT INTO relay_history ({_COLUMNS}) SELECT ?, ?, ?, ?, ?, ? "  # noqa: S608  # a constant
                    "WHERE EXISTS (SELECT 1 FROM relays WHERE relay_id = ?)",
                    (*change, change.relay_id),
                )
                db.execute(
                    "DELETE FROM relay_history WHERE relay_id = ? AND id <= ("
                    "SELECT id FROM relay_history WHERE relay_id = ? "
                    "ORDER BY id DESC LIMIT 1 OFFSET ?)",
                    (change.relay_id, change.relay_id, KEPT_OF_EACH),
                )

        await self._database.run(note)

    async def state_changes(self, relay_id: str, limit: int) -> Sequence[StateChange]:
        """See `HistoryStore`."""

        def read(db: sqlite_utils.Database) -> list[StateChange]:
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM relay_history WHERE relay_id = ? ORDER BY id DESC LIMIT ?",  # noqa: S608  # a constant
                (relay_id, limit),
            ).fetchall()
            return [StateChange(*row) for row in reversed(rows)]

        return await self._database.run(read)

    async def changes_after(
        self, after: int | None, limit: int
    ) -> Sequence[tuple[int, StateChange]]:
        """See `HistoryStore`."""
        order = "DESC" if after is None else "ASC"
        sql = f"SELECT id, {_COLUMNS} FROM relay_history WHERE id > ? ORDER BY id {order} LIMIT ?"  # noqa: S608  # constants

        def read(db: sqlite_utils.Database) -> list[tuple[int, StateChange]]:
            rows = db.execute(sql, (after or 0, limit)).fetchall()
            return sorted((row[0], StateChange(*row[1:])) for row in rows)

        return await self._database.run(read)

    async def last_changes(self) -> Sequence[StateChange]:
        """See `HistoryStore`."""

        def read(db: sqlite_utils.Database) -> list[StateChange]:
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM relay_history WHERE id IN "  # noqa: S608  # a constant
                "(SELECT max(id) FROM relay_history GROUP BY relay_id)"
            ).fetchall()
            return [StateChange(*row) for row in rows]

        return await self._database.run(read)
