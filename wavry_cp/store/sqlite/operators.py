"""Audit log, admin tokens, switches and bans in SQLite: the same tables in both services."""

from collections.abc import Sequence
from typing import Any, Final

import sqlite_utils

from wavry_cp.operators.admin_tokens import AdminToken
from wavry_cp.operators.audit import ADDRESS_PREFIX, AuditEntry, AuditPart, AuditRecord
from wavry_cp.operators.bans import Ban, BanKind
from wavry_cp.operators.roles import AdminRole
from wavry_cp.operators.switches import Switch, SwitchState

from .database import Database

__all__ = [
    "AdminSqlite",
    "TokenSqlite",
    "append_audit",
    "create_admin_tables",
    "create_audit_table",
    "create_token_table",
    "forbid_audit_changes",
    "put_ban",
    "remove_ban",
]

MAX_TARGET_CHARS: Final = 200
"""A refused act names what the caller wrote into the path; the log has no place for all of it."""

_PARTS: Final = {
    AuditPart.ACTS: f"AND who NOT LIKE '{ADDRESS_PREFIX}%'",
    AuditPart.REFUSED: f"AND who LIKE '{ADDRESS_PREFIX}%'",
}
_AUDIT: Final = "SELECT id, at_s, who, action, target, reason, outcome FROM audit"


def create_audit_table(db: sqlite_utils.Database) -> None:
    """Make the audit log of a service that had none."""
    db.execute(
        """
        CREATE TABLE audit (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            at_s INTEGER NOT NULL,
            who TEXT NOT NULL,
            action TEXT NOT NULL,
            target TEXT NOT NULL,
            reason TEXT NOT NULL DEFAULT '',
            outcome TEXT NOT NULL DEFAULT 'done'
        ) STRICT
        """
    )
    for verb in ("UPDATE", "DELETE"):
        db.execute(
            f"""
            CREATE TRIGGER audit_no_{verb.lower()} BEFORE {verb} ON audit
            BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END
            """
        )
    forbid_audit_changes(db)


def forbid_audit_changes(db: sqlite_utils.Database) -> None:
    """Close the way around the other triggers: REPLACE removes a row without a DELETE trigger."""
    db.execute(
        """
        CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit
        WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id)
        BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END
        """
    )


def create_admin_tables(db: sqlite_utils.Database) -> None:
    """Make the tables of switches and bans."""
    db.execute(
        """
        CREATE TABLE switches (
            switch TEXT PRIMARY KEY,
            is_on INTEGER NOT NULL,
            at_s INTEGER NOT NULL,
            who TEXT NOT NULL,
            reason TEXT NOT NULL
        ) STRICT
        """
    )
    db.execute(
        """
        CREATE TABLE bans (
            kind TEXT NOT NULL CHECK (kind IN ('user', 'relay')),
            value TEXT NOT NULL,
            at_s INTEGER NOT NULL,
            expires_at_s INTEGER,
            who TEXT NOT NULL,
            reason TEXT NOT NULL,
            was_draining INTEGER NOT NULL,
            PRIMARY KEY (kind, value)
        ) STRICT
        """
    )


def create_token_table(db: sqlite_utils.Database) -> None:
    """Make the table of named admin tokens."""
    db.execute(
        """
        CREATE TABLE admin_tokens (
            token_id TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            role TEXT NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
            secret_hash TEXT NOT NULL,
            created_at_s INTEGER NOT NULL,
            expires_at_s INTEGER
        ) STRICT
        """
    )


def append_audit(db: sqlite_utils.Database, entry: AuditEntry | None) -> None:
    """Write a row of the audit log inside the caller's transaction; the only place that does."""
    if entry is None:
        return
    target = "".join(char if char.isprintable() else "?" for char in entry.target)
    db.execute(
        "INSERT INTO audit (at_s, who, action, target, reason, outcome) VALUES (?, ?, ?, ?, ?, ?)",
        (
            entry.at_s,
            entry.who,
            entry.action,
            target[:MAX_TARGET_CHARS],
            entry.reason,
            entry.outcome,
        ),
    )


def put_ban(db: sqlite_utils.Database, ban: Ban) -> None:
    """Write a ban inside the caller's transaction."""
    db.execute(
        "INSERT OR REPLACE INTO bans "
        "(kind, value, at_s, expires_at_s, who, reason, was_draining) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            ban.kind.value,
            ban.value,
            ban.at_s,
            ban.expires_at_s,
            ban.who,
            ban.reason,
            int(ban.was_draining),
        ),
    )


def remove_ban(db: sqlite_utils.Database, kind: BanKind, value: str) -> None:
    """Remove a ban inside the caller's transaction."""
    db.execute("DELETE FROM bans WHERE kind = ? AND value = ?", (kind.value, value))


class AdminSqlite:
    """`AdminStore` over a `Database`; base of the stores of both services."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def warning(self) -> str:
        """See `AdminStore`."""
        return self._database.warning

    async def checkpoint(self) -> None:
        """See `AdminStore`."""
        await self._database.checkpoint()

    async def record_act(self, entry: AuditEntry) -> None:
        """See `AuditLog`."""
        await self._database.run(lambda db: append_audit(db, entry))

    async def record_acts(self, entries: Sequence[AuditEntry]) -> None:
        """See `AuditLog`."""

        def write(db: sqlite_utils.Database) -> None:
            for entry in entries:
                append_audit(db, entry)

        await self._database.run(write)

    async def audit_page(
        self,
        *,
        after: int | None,
        since_s: int | None,
        limit: int,
        only: AuditPart | None = None,
    ) -> Sequence[AuditRecord]:
        """See `AuditLog`."""
        order = "DESC" if after is None else "ASC"
        part = "" if only is None else _PARTS[only]
        sql = f"{_AUDIT} WHERE id > ? AND at_s >= ? {part} ORDER BY id {order} LIMIT ?"
        values = (after or 0, since_s or 0, limit)

        def read(db: sqlite_utils.Database) -> list[AuditRecord]:
            return [AuditRecord(row[0], AuditEntry(*row[1:])) for row in db.execute(sql, values)]

        records = await self._database.run(read)
        return records if after is not None else records[::-1]

    async def switches(self) -> Sequence[SwitchState]:
        """See `AdminStore`."""

        def read(db: sqlite_utils.Database) -> list[SwitchState]:
            rows = db.execute("SELECT switch, is_on, at_s, who, reason FROM switches")
            return [SwitchState(Switch(row[0]), bool(row[1]), *row[2:]) for row in rows]

        return await self._database.run(read)

    async def set_switch(self, state: SwitchState, audit: AuditEntry) -> None:
        """See `AdminStore`."""
        row = (state.switch.value, int(state.on), state.at_s, state.who, state.reason)

        def write(db: sqlite_utils.Database) -> None:
            db.execute("INSERT OR REPLACE INTO switches VALUES (?, ?, ?, ?, ?)", row)
            append_audit(db, audit)

        await self._database.run(write)

    async def bans(self) -> Sequence[Ban]:
        """See `AdminStore`."""

        def read(db: sqlite_utils.Database) -> list[Ban]:
            return [
                Ban(
                    **{
                        **row,
                        "kind": BanKind(row["kind"]),
                        "was_draining": bool(row["was_draining"]),
                    }
                )
                for row in db.query("SELECT * FROM bans")
            ]

        return await self._database.run(read)

    async def save_ban(self, ban: Ban, audit: AuditEntry) -> None:
        """See `AdminStore`."""

        def write(db: sqlite_utils.Database) -> None:
            put_ban(db, ban)
            append_audit(db, audit)

        await self._database.run(write)

    async def remove_ban(self, kind: BanKind, value: str, audit: AuditEntry) -> None:
        """See `AdminStore`."""

        def write(db: sqlite_utils.Database) -> None:
            remove_ban(db, kind, value)
            append_audit(db, audit)

        await self._database.run(write)


class TokenSqlite(AdminSqlite):
    """`TokenStore` as well; the master's."""

    async def admin_tokens(self) -> Sequence[AdminToken]:
        """See `TokenStore`."""

        def read(db: sqlite_utils.Database) -> list[AdminToken]:
            rows = db.query("SELECT * FROM admin_tokens")
            return [AdminToken(**{**row, "role": AdminRole(row["role"])}) for row in rows]

        return await self._database.run(read)

    async def change_admin_tokens(
        self, keep: Sequence[AdminToken], forget: Sequence[AdminToken], audit: AuditEntry
    ) -> None:
        """See `TokenStore`."""

        def write(db: sqlite_utils.Database) -> None:
            for token in forget:
                db.execute("DELETE FROM admin_tokens WHERE token_id = ?", (token.token_id,))
            for token in keep:
                row: dict[str, Any] = {
                    "token_id": token.token_id,
                    "name": token.name,
                    "role": token.role.value,
                    "secret_hash": token.secret_hash,
                    "created_at_s": token.created_at_s,
                    "expires_at_s": token.expires_at_s,
                }
                db.table("admin_tokens").insert(row, pk="token_id", replace=True)
            append_audit(db, audit)

        await self._database.run(write)
