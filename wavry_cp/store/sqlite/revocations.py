"""Revocations in the master's SQLite file."""

import secrets
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

import sqlite_utils

from wavry_cp.master.revocations.store import NewRevocation, RevocationLog, RevocationRow
from wavry_cp.operators.audit import AuditEntry
from wavry_peer.protocol.http.relay_events import RevocationKind

from .database import Database
from .operators import append_audit

__all__ = ["HIT_SESSIONS", "RevocationSqlite", "begin_another_log", "create_revocations"]

HIT_SESSIONS: Final = {
    "jti": "client_jti = :value OR server_jti = :value"
    " OR client_previous_jti = :value OR server_previous_jti = :value",
    "session": "session_id = :value",
    "sub": "client_sub = :value OR server_sub = :value",
    "kid": "client_kid = :value OR server_kid = :value",
}
"""Conditions of the sessions table; operators revoke by hand, so a scan is fast enough."""


def create_revocations(db: sqlite_utils.Database) -> None:
    """Migration: the log, and an id that tells it from the log of another database."""
    db.execute(
        """
        CREATE TABLE revocations (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            kind TEXT NOT NULL CHECK (kind IN ('jti', 'session', 'sub', 'kid', 'unban')),
            value TEXT NOT NULL,
            issued_until_s INTEGER NOT NULL,
            expires_at_s INTEGER NOT NULL,
            at_s INTEGER NOT NULL,
            who TEXT NOT NULL,
            reason TEXT NOT NULL
        ) STRICT
        """
    )
    db.execute("CREATE INDEX revocations_by_expiry ON revocations (expires_at_s)")
    db.execute("CREATE TABLE revocation_log (log_id TEXT NOT NULL) STRICT")
    db.execute("INSERT INTO revocation_log VALUES (?)", (secrets.token_hex(16),))


def begin_another_log(db: sqlite_utils.Database) -> None:
    """Give the log another id: relays read all of it, and keep what they know beyond it.

    The database of a backup ends before numbers that relays have seen; new rows would have these
    numbers again, and relays would pass them over.
    """
    db.execute("UPDATE revocation_log SET log_id = ?", (secrets.token_hex(16),))


class RevocationSqlite:
    """`RevocationStore` over a `Database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def revocation_log(self) -> RevocationLog:
        """See `RevocationStore`."""

        def read(db: sqlite_utils.Database) -> RevocationLog:
            (log_id,) = db.execute("SELECT log_id FROM revocation_log").fetchone()
            # Not max(number): the newest row may be pruned, and its number is used all the same.
            last = db.execute(
                "SELECT seq FROM sqlite_sequence WHERE name = 'revocations'"
            ).fetchone()
            rows = db.query("SELECT * FROM revocations ORDER BY number")
            return RevocationLog(log_id, last[0] if last else 0, tuple(map(_row, rows)))

        return await self._database.run(read)

    async def add_revocation(
        self, new: NewRevocation, audit: AuditEntry
    ) -> tuple[Sequence[RevocationRow], int]:
        """See `RevocationStore`."""

        def add(db: sqlite_utils.Database) -> tuple[Sequence[RevocationRow], int]:
            rows = [_insert(db, new)]
            if new.kind == "jti":
                rows += [_insert(db, replace(new, value=jti)) for jti in _successors(db, new.value)]
            (hit,) = db.execute(
                f"SELECT count(*) FROM sessions WHERE expires_at_s > :now_s"  # noqa: S608  # ours
                f" AND ({HIT_SESSIONS[new.kind]})",
                {"now_s": new.at_s, "value": new.value},
            ).fetchone()
            append_audit(db, audit)
            return rows, hit

        return await self._database.run(add)

    async def sessions_of(self, sub: str, relays: Collection[str], now_s: int) -> Sequence[str]:
        """See `RevocationStore`."""
        wanted = frozenset(relays)

        def find(db: sqlite_utils.Database) -> Sequence[str]:
            rows = db.execute(
                f"SELECT session_id, relay_id FROM sessions WHERE expires_at_s > :now_s"  # noqa: S608  # ours
                f" AND ({HIT_SESSIONS['sub']})",
                {"now_s": now_s, "value": sub},
            )
            return [session_id for session_id, relay_id in rows if relay_id in wanted]

        return await self._database.run(find)

    async def knows(self, kind: RevocationKind, value: str) -> bool:
        """See `RevocationStore`."""

        def look(db: sqlite_utils.Database) -> bool:
            found = db.execute(
                f"SELECT 1 FROM sessions WHERE {HIT_SESSIONS[kind]} LIMIT 1",  # noqa: S608  # ours
                {"value": value},
            ).fetchone()
            if found is None and kind == "kid":
                found = db.execute("SELECT 1 FROM key_uses WHERE kid = ?", (value,)).fetchone()
            return found is not None

        return await self._database.run(look)

    async def add_unban(self, new: NewRevocation, audit: AuditEntry) -> RevocationRow:
        """See `RevocationStore`."""

        def add(db: sqlite_utils.Database) -> RevocationRow:
            # A relay that starts from nothing reads the shortened rows; one that has them reads
            # the new row, and both come to the same.
            db.execute(
                "UPDATE revocations SET issued_until_s = min(issued_until_s, :until_s),"
                " expires_at_s = min(expires_at_s, :expires_s)"
                " WHERE kind = 'sub' AND value = :value",
                {
                    "until_s": new.issued_until_s,
                    "expires_s": new.expires_at_s,
                    "value": new.value,
                },
            )
            row = _insert(db, new)
            append_audit(db, audit)
            return row

        return await self._database.run(add)

    async def prune_revocations(self, expired_before_s: int) -> int:
        """See `RevocationStore`."""
        return await self._database.run(
            lambda db: (
                db.execute(
                    "DELETE FROM revocations WHERE expires_at_s < ?", (expired_before_s,)
                ).rowcount
            )
        )


def _successors(db: sqlite_utils.Database, jti: str) -> list[str]:
    """Return the leases that replaced this one by renewal."""
    return [
        row[0]
        for role in ("client", "server")
        for row in db.execute(
            f"SELECT {role}_jti FROM sessions WHERE {role}_previous_jti = ?",  # noqa: S608  # ours
            (jti,),
        ).fetchall()
    ]


def _insert(db: sqlite_utils.Database, new: NewRevocation) -> RevocationRow:
    values = asdict(new)
    cursor = db.execute(
        "INSERT INTO revocations (kind, value, issued_until_s, expires_at_s, at_s, who, reason)"
        " VALUES (:kind, :value, :issued_until_s, :expires_at_s, :at_s, :who, :reason)",
        values,
    )
    number = cursor.lastrowid
    assert number is not None  # noqa: S101  # an INSERT that returned has a row id
    return RevocationRow(**values, number=number)


def _row(row: dict[str, Any]) -> RevocationRow:
    return RevocationRow(**row)
