"""The gateway's store in SQLite."""
# ruff: noqa: S608  # the pieces put into statements are constants of this module

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import sqlite_utils

from wavry_cp.gateway.sessions.rules import (
    CallFilter,
    CallLimits,
    CallSession,
    Change,
    Keys,
    SessionKey,
    close,
    expire,
)
from wavry_cp.operators.audit import AuditEntry

from .accounts import AccountSqlite, own_accounts
from .database import Database, Migration
from .operators import append_audit, create_admin_tables, create_audit_table

__all__ = ["MIGRATIONS", "SqliteGatewayStore"]

_SCHEMA_1: Final = (
    """
    CREATE TABLE users (
        username TEXT PRIMARY KEY,
        password_hash TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        last_login_at INTEGER
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE tokens (
        token_hash TEXT PRIMARY KEY,
        username TEXT NOT NULL REFERENCES users (username) ON DELETE CASCADE,
        created_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        number INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX tokens_of_user ON tokens (username, number)",
    "CREATE INDEX tokens_by_expiry ON tokens (expires_at)",
    """
    CREATE TABLE sessions (
        number INTEGER PRIMARY KEY,
        session_id TEXT NOT NULL UNIQUE,
        caller TEXT NOT NULL REFERENCES users (username) ON DELETE CASCADE,
        callee TEXT NOT NULL REFERENCES users (username) ON DELETE CASCADE,
        state TEXT NOT NULL CHECK (state IN ('pending', 'accepted', 'active', 'closed')),
        created_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        caller_identity_key TEXT,
        caller_noise_key TEXT,
        callee_identity_key TEXT,
        callee_noise_key TEXT,
        relay_id TEXT,
        relay_addrs TEXT NOT NULL DEFAULT '[]',
        lease_expires_at INTEGER,
        closed_at INTEGER
    ) STRICT
    """,
    "CREATE INDEX sessions_of_caller ON sessions (caller, number)",
    "CREATE INDEX sessions_of_callee ON sessions (callee, number)",
    "CREATE INDEX open_sessions_by_expiry ON sessions (expires_at) WHERE state != 'closed'",
    "CREATE INDEX closed_sessions ON sessions (closed_at) WHERE state = 'closed'",
)


def _create_schema(db: sqlite_utils.Database) -> None:
    for statement in _SCHEMA_1:
        db.execute(statement)


def _admin_tables(db: sqlite_utils.Database) -> None:
    create_audit_table(db)
    create_admin_tables(db)


def _session_path(db: sqlite_utils.Database) -> None:
    db.execute("ALTER TABLE sessions ADD COLUMN path TEXT CHECK (path IN ('direct', 'relay'))")


MIGRATIONS: Final = (
    Migration(1, "users, tokens and sessions", _create_schema),
    Migration(2, "audit log, switches, bans", _admin_tables),
    Migration(3, "the path that users report of a session", _session_path),
    Migration(4, "logins by id, password resets, names of deleted accounts", own_accounts),
)

_SESSION_COLUMNS: Final = (
    "session_id, caller, callee, state, created_at, expires_at, caller_identity_key, "
    "caller_noise_key, callee_identity_key, callee_noise_key, relay_id, relay_addrs, "
    "lease_expires_at, closed_at, path"
)
_SESSION: Final = f"SELECT {_SESSION_COLUMNS} FROM sessions"
_INSERT_SESSION: Final = f"INSERT INTO sessions ({_SESSION_COLUMNS}) VALUES ({', '.join('?' * 15)})"
_UPDATE_SESSION: Final = (
    f"UPDATE sessions SET ({_SESSION_COLUMNS}) = ({', '.join('?' * 15)}) WHERE session_id = ?"
)
_COUNT_OPEN: Final = """
    SELECT count(*), coalesce(sum(state = 'pending'), 0),
           coalesce(sum(state = 'pending' AND callee = ?), 0)
    FROM sessions WHERE caller = ? AND state != 'closed' AND expires_at > ?
"""
_BETWEEN: Final = f"""
    {_SESSION} WHERE ((caller = ? AND callee = ?) OR (caller = ? AND callee = ?))
    AND state != 'closed' AND expires_at > ? ORDER BY number DESC LIMIT 100
"""


def _row(session: CallSession) -> tuple[Any, ...]:
    return (
        session.session_id,
        session.caller,
        session.callee,
        session.state,
        session.created_at,
        session.expires_at,
        session.caller_keys.identity,
        session.caller_keys.noise,
        session.callee_keys.identity,
        session.callee_keys.noise,
        session.relay_id,
        msgspec.json.encode(session.relay_addrs).decode(),
        session.lease_expires_at,
        session.closed_at,
        session.path,
    )


def _session(row: tuple[Any, ...]) -> CallSession:
    return CallSession(
        session_id=row[0],
        caller=row[1],
        callee=row[2],
        state=row[3],
        created_at=row[4],
        expires_at=row[5],
        caller_keys=Keys(row[6], row[7]),
        callee_keys=Keys(row[8], row[9]),
        relay_id=row[10],
        relay_addrs=msgspec.json.decode(row[11], type=tuple[str, ...]),
        lease_expires_at=row[12],
        closed_at=row[13],
        path=row[14],
    )


def _update(db: sqlite_utils.Database, before: CallSession, after: CallSession) -> None:
    if after != before:
        db.execute(_UPDATE_SESSION, (*_row(after), before.session_id))


class SqliteGatewayStore(AccountSqlite):
    """`GatewayStore` on one SQLite file."""

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open (and make or migrate) the file; errors as in `Database.open`."""
        return cls(await Database.open(path, MIGRATIONS))

    async def close(self) -> None:
        """Release the file."""
        await self._database.close()

    async def check(self) -> None:
        """Do the smallest possible write transaction."""
        await self._database.check_write()

    # -- sessions ---------------------------------------------------------------------------

    async def add_session(self, session: CallSession, limits: CallLimits) -> bool:
        """Store a new session; False where its caller is at one of the limits."""

        def work(db: sqlite_utils.Database) -> bool:
            args = (session.callee, session.caller, session.created_at)
            total, pending, to_callee = db.execute(_COUNT_OPEN, args).fetchone()
            if (
                total >= limits.open_per_caller
                or pending >= limits.pending_per_caller
                or to_callee >= limits.pending_per_pair
            ):
                return False
            db.execute(_INSERT_SESSION, _row(session))
            return True

        return await self._database.run(work)

    async def session(self, session_id: SessionKey) -> CallSession | None:
        """Return a session by id."""

        def work(db: sqlite_utils.Database) -> CallSession | None:
            row = db.execute(f"{_SESSION} WHERE session_id = ?", (session_id,)).fetchone()
            return None if row is None else _session(row)

        return await self._database.run(work)

    async def change_session(
        self, session_id: SessionKey, change: Change, audit: AuditEntry | None = None
    ) -> tuple[CallSession, CallSession] | None:
        """Apply a rule atomically; see `CallStore.change_session`."""

        def work(db: sqlite_utils.Database) -> tuple[CallSession, CallSession] | None:
            row = db.execute(f"{_SESSION} WHERE session_id = ?", (session_id,)).fetchone()
            if row is None:
                return None
            before = _session(row)
            after = change(before)
            _update(db, before, after)
            append_audit(db, audit)
            return before, after

        return await self._database.run(work)

    async def find_sessions(
        self, wanted: CallFilter, *, limit: int
    ) -> tuple[tuple[int, CallSession], ...]:
        """Return sessions with their numbers, newest first."""
        conditions = ["session_id = :session_id" if wanted.session_id else "TRUE"]
        if wanted.state is not None:
            conditions.append("state = :state")
        elif wanted.session_id is None:
            conditions.append("state != 'closed'")
        if wanted.user is not None:
            conditions.append("(caller = :user OR callee = :user)")
        if wanted.relay_id is not None:
            conditions.append("relay_id = :relay_id")
        if wanted.before is not None:
            conditions.append("number < :before")
        query = (
            f"SELECT number, {_SESSION_COLUMNS} FROM sessions WHERE {' AND '.join(conditions)} "
            "ORDER BY number DESC LIMIT :limit"
        )
        values = {**asdict(wanted), "limit": limit}

        def work(db: sqlite_utils.Database) -> tuple[tuple[int, CallSession], ...]:
            return tuple((row[0], _session(row[1:])) for row in db.execute(query, values))

        return await self._database.run(work)

    async def sessions_of(self, username: str, *, limit: int) -> tuple[CallSession, ...]:
        """Return the newest sessions of a user, newest first."""

        def work(db: sqlite_utils.Database) -> tuple[CallSession, ...]:
            query = f"{_SESSION} WHERE caller = ? OR callee = ? ORDER BY number DESC LIMIT ?"
            return tuple(_session(row) for row in db.execute(query, (username, username, limit)))

        return await self._database.run(work)

    async def open_sessions_between(
        self, one: str, other: str, *, now_s: int
    ) -> tuple[CallSession, ...]:
        """Return the sessions of two users that have not ended, newest first."""

        def work(db: sqlite_utils.Database) -> tuple[CallSession, ...]:
            rows = db.execute(_BETWEEN, (one, other, other, one, now_s))
            return tuple(_session(row) for row in rows)

        return await self._database.run(work)

    async def close_sessions_of(
        self, username: str, *, now_s: int, limit: int
    ) -> tuple[CallSession, ...]:
        """Close open sessions of a user; returns them."""

        def work(db: sqlite_utils.Database) -> tuple[CallSession, ...]:
            query = f"{_SESSION} WHERE (caller = ? OR callee = ?) AND state != 'closed' LIMIT ?"
            found = [_session(row) for row in db.execute(query, (username, username, limit))]
            closed = tuple(close(session, now_s=now_s) for session in found)
            for before, after in zip(found, closed, strict=True):
                _update(db, before, after)
            return closed

        return await self._database.run(work)

    async def expire_sessions(self, *, now_s: int, limit: int) -> tuple[CallSession, ...]:
        """Close sessions whose time is over; returns them."""

        def work(db: sqlite_utils.Database) -> tuple[CallSession, ...]:
            query = f"{_SESSION} WHERE state != 'closed' AND expires_at <= ? LIMIT ?"
            over = [_session(row) for row in db.execute(query, (now_s, limit)).fetchall()]
            closed = tuple(expire(session, now_s=now_s) for session in over)
            for before, after in zip(over, closed, strict=True):
                _update(db, before, after)
            return closed

        return await self._database.run(work)

    async def forget_sessions(self, *, closed_before_s: int, limit: int) -> int:
        """Forget sessions that were closed long ago; returns how many."""

        def work(db: sqlite_utils.Database) -> int:
            cursor = db.execute(
                "DELETE FROM sessions WHERE number IN (SELECT number FROM sessions "
                "WHERE state = 'closed' AND closed_at < ? LIMIT ?)",
                (closed_before_s, limit),
            )
            return int(cursor.rowcount)

        return await self._database.run(work)

    async def count_sessions(self) -> dict[str, int]:
        """Return the number of sessions by state, closed ones left out."""

        def work(db: sqlite_utils.Database) -> dict[str, int]:
            query = "SELECT state, count(*) FROM sessions WHERE state != 'closed' GROUP BY state"
            return dict(db.execute(query).fetchall())

        return await self._database.run(work)

    async def count_paths(self) -> dict[str, int]:
        """Return the number of answered sessions by the path reported last, or ``"unreported"``."""

        def work(db: sqlite_utils.Database) -> dict[str, int]:
            query = (
                "SELECT coalesce(path, 'unreported'), count(*) FROM sessions "
                "WHERE state IN ('accepted', 'active') GROUP BY path"
            )
            return dict(db.execute(query).fetchall())

        return await self._database.run(work)
