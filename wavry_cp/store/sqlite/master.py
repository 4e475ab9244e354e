"""The master's store in one SQLite file."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import sqlite_utils

from wavry_cp.master.keys.store import KeyUse
from wavry_cp.master.leases.rules import LeasedSession, LeaseFilter, LeaseSlot
from wavry_cp.master.leases.tally import LiveLeasesRow
from wavry_cp.operators.audit import AuditEntry
from wavry_peer.protocol import constants as c

from .database import Database, Migration
from .operators import (
    TokenSqlite,
    append_audit,
    create_admin_tables,
    create_token_table,
    forbid_audit_changes,
)
from .relay_history import HistorySqlite, create_history
from .relays import RelaySqlite, add_enrolment
from .revocations import HIT_SESSIONS, RevocationSqlite, begin_another_log, create_revocations

__all__ = ["MIGRATIONS", "MasterSqlite"]

_SLOT_FIELDS: Final = (
    "sub",
    "cnf",
    "jti",
    "previous_jti",
    "kid",
    "issued_at_s",
    "ttl_s",
    "request_id",
)


def _slot_columns(role: str) -> str:
    return f"""
        {role}_sub TEXT NOT NULL,
        {role}_cnf TEXT,
        {role}_jti TEXT NOT NULL,
        {role}_previous_jti TEXT,
        {role}_kid TEXT NOT NULL,
        {role}_issued_at_s INTEGER NOT NULL,
        {role}_ttl_s INTEGER NOT NULL"""


def _first_tables(db: sqlite_utils.Database) -> None:
    db.execute(
        """
        CREATE TABLE relays (
            relay_id TEXT PRIMARY KEY,
            public_key TEXT NOT NULL,
            endpoints TEXT NOT NULL,
            region TEXT,
            asn INTEGER,
            max_sessions INTEGER NOT NULL,
            max_bitrate_kbps INTEGER NOT NULL,
            features TEXT NOT NULL,
            version TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('NEW', 'ACTIVE', 'DRAINING', 'BANNED')),
            undrain_pending INTEGER NOT NULL,
            token_hash TEXT,
            registered_at_s INTEGER NOT NULL,
            last_heartbeat_at_s INTEGER NOT NULL
        ) STRICT
        """
    )
    db.execute(
        f"""
        CREATE TABLE sessions (
            session_id TEXT PRIMARY KEY,
            relay_id TEXT NOT NULL,
            soft_kbps INTEGER NOT NULL,
            hard_kbps INTEGER NOT NULL,
            created_at_s INTEGER NOT NULL,
            expires_at_s INTEGER NOT NULL,
            revision INTEGER NOT NULL,
            {_slot_columns("client")},
            {_slot_columns("server")}
        ) STRICT
        """
    )
    db.execute("CREATE INDEX sessions_by_expiry ON sessions (expires_at_s)")
    db.execute(
        """
        CREATE TABLE audit (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            at_s INTEGER NOT NULL,
            who TEXT NOT NULL,
            action TEXT NOT NULL,
            target TEXT NOT NULL
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


def _admin_tables(db: sqlite_utils.Database) -> None:
    db.execute("ALTER TABLE audit ADD COLUMN reason TEXT NOT NULL DEFAULT ''")
    db.execute("ALTER TABLE audit ADD COLUMN outcome TEXT NOT NULL DEFAULT 'done'")
    forbid_audit_changes(db)
    create_token_table(db)
    create_admin_tables(db)


def _key_uses(db: sqlite_utils.Database) -> None:
    db.execute(
        """
        CREATE TABLE key_uses (
            kid TEXT PRIMARY KEY,
            last_expiry_s INTEGER NOT NULL,
            forced INTEGER NOT NULL
        ) STRICT
        """
    )
    # A lease that a renewal replaced left no row: count the longest life from the last one.
    for role in ("client", "server"):
        db.execute(
            f"""
            INSERT INTO key_uses (kid, last_expiry_s, forced)
            SELECT {role}_kid, max({role}_issued_at_s) + {c.LEASE_TTL_MAX_S}, 0
            FROM sessions WHERE true GROUP BY {role}_kid
            {_KEEP_LATER_EXPIRY}
            """  # noqa: S608  # role is one of two words above
        )


def _only_bound_leases(db: sqlite_utils.Database) -> None:
    """Forget the leases that no relay takes: they are not renewed either."""
    db.execute("DELETE FROM sessions WHERE client_cnf IS NULL OR server_cnf IS NULL")


_KEEP_LATER_EXPIRY: Final = (
    "ON CONFLICT (kid) DO UPDATE SET last_expiry_s = max(last_expiry_s, excluded.last_expiry_s)"
)


def _lease_requests(db: sqlite_utils.Database) -> None:
    for role in ("client", "server"):
        db.execute(f"ALTER TABLE sessions ADD COLUMN {role}_request_id TEXT NOT NULL DEFAULT ''")


MIGRATIONS: Final = (
    Migration(1, "relays, sessions, audit", _first_tables),
    Migration(2, "reasons in the audit log, admin tokens, switches, bans", _admin_tables),
    Migration(3, "use of signing keys", _key_uses),
    Migration(4, "revocations", create_revocations),
    Migration(5, "leases without a key end", _only_bound_leases),
    Migration(6, "the request that a lease was issued for", _lease_requests),
    Migration(7, "names and enrolment of relays", add_enrolment),
    Migration(8, "history of relays' states", create_history),
)


class MasterSqlite(TokenSqlite, RelaySqlite):
    """`MasterStore` over a `Database`; the attributes are what further Protocols name."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.revocations = RevocationSqlite(database)
        self.history = HistorySqlite(database)

    @classmethod
    async def open(cls, path: Path, *, used_before: str = "") -> Self:
        """Open or make the file; arguments and errors as in `Database.open`."""
        return cls(
            await Database.open(
                path, MIGRATIONS, used_before=used_before, after_restore=begin_another_log
            )
        )

    async def close(self) -> None:
        """See `MasterStore`."""
        await self._database.close()

    async def check(self) -> None:
        """See `MasterStore`."""
        await self._database.check_write()

    async def session(self, session_id: str) -> LeasedSession | None:
        """See `MasterStore`."""

        def read(db: sqlite_utils.Database) -> LeasedSession | None:
            rows = db.query("SELECT * FROM sessions WHERE session_id = ?", (session_id,))
            return next((_session_from_row(row) for row in rows), None)

        return await self._database.run(read)

    async def swap_session(self, expected_revision: int | None, session: LeasedSession) -> bool:
        """See `MasterStore`."""

        def swap(db: sqlite_utils.Database) -> bool:
            stored = db.execute(
                "SELECT revision FROM sessions WHERE session_id = ?", (session.session_id,)
            ).fetchone()
            if (stored and stored[0]) != expected_revision:
                return False
            row = _row_from_session(session)
            db.table("sessions").insert(row, pk="session_id", replace=True)
            for slot in (session.client, session.server):
                db.execute(
                    f"INSERT INTO key_uses VALUES (?, ?, 0) {_KEEP_LATER_EXPIRY}",  # noqa: S608  # a constant
                    (slot.kid, slot.expires_at_s),
                )
            return True

        return await self._database.run(swap)

    async def find_sessions(self, wanted: LeaseFilter, *, limit: int) -> Sequence[LeasedSession]:
        """See `LeaseStore`."""
        conditions = ["TRUE"]
        if wanted.session_ids is not None:
            conditions.append("session_id IN (SELECT value FROM json_each(:session_ids))")
        conditions += (
            f"({HIT_SESSIONS[kind]})".replace(":value", f":{kind}")
            for kind in ("jti", "sub")
            if getattr(wanted, kind) is not None
        )
        if wanted.relay_id is not None:
            conditions.append("relay_id = :relay_id")
        sql = (
            f"SELECT * FROM sessions WHERE {' AND '.join(conditions)}"  # noqa: S608  # of constants
            " ORDER BY created_at_s DESC, session_id LIMIT :limit"
        )
        session_ids = msgspec.json.encode(wanted.session_ids).decode()
        values = {**asdict(wanted), "session_ids": session_ids, "limit": limit}

        def find(db: sqlite_utils.Database) -> Sequence[LeasedSession]:
            return tuple(_session_from_row(row) for row in db.query(sql, values))

        return await self._database.run(find)

    async def live_sessions(self, now_s: int) -> int:
        """See `MasterStore`."""

        def count(db: sqlite_utils.Database) -> int:
            sql = "SELECT count(*) FROM sessions WHERE expires_at_s > ?"
            return int(db.execute(sql, (now_s,)).fetchone()[0])

        return await self._database.run(count)

    async def live_leases(self, now_s: int) -> Sequence[LiveLeasesRow]:
        """See `MasterStore`."""
        sql = """
            SELECT relay_id, expires_at_s, count(*),
                client_previous_jti IS NOT NULL AND server_previous_jti IS NOT NULL AS proven
            FROM sessions WHERE expires_at_s > ? GROUP BY relay_id, expires_at_s, proven
            """
        return await self._database.run(
            lambda db: [
                LiveLeasesRow(relay_id, expires_at_s, bool(proven), count)
                for relay_id, expires_at_s, count, proven in db.execute(sql, (now_s,)).fetchall()
            ]
        )

    async def prune_sessions(self, expired_before_s: int, limit: int) -> int:
        """See `MasterStore`."""

        def prune(db: sqlite_utils.Database) -> int:
            return db.execute(
                "DELETE FROM sessions WHERE session_id IN "
                "(SELECT session_id FROM sessions WHERE expires_at_s < ? LIMIT ?)",
                (expired_before_s, limit),
            ).rowcount

        return await self._database.run(prune)

    async def key_uses(self) -> Mapping[str, KeyUse]:
        """See `MasterStore`."""
        return await self._database.run(
            lambda db: {
                row["kid"]: KeyUse(row["last_expiry_s"], bool(row["forced"]))
                for row in db.query("SELECT * FROM key_uses")
            }
        )

    async def record_key_step(self, audit: AuditEntry, kid: str, *, forced: bool) -> None:
        """See `MasterStore`."""

        def record(db: sqlite_utils.Database) -> None:
            db.execute(
                "INSERT INTO key_uses VALUES (?, 0, ?) "
                "ON CONFLICT (kid) DO UPDATE SET forced = excluded.forced",
                (kid, int(forced)),
            )
            append_audit(db, audit)

        await self._database.run(record)


def _row_from_session(session: LeasedSession) -> dict[str, Any]:
    row: dict[str, Any] = {
        "session_id": session.session_id,
        "relay_id": session.relay_id,
        "soft_kbps": session.soft_kbps,
        "hard_kbps": session.hard_kbps,
        "created_at_s": session.created_at_s,
        "expires_at_s": session.expires_at_s,
        "revision": session.revision,
    }
    for role, slot in (("client", session.client), ("server", session.server)):
        row.update({f"{role}_{name}": getattr(slot, name) for name in _SLOT_FIELDS})
    return row


def _session_from_row(row: dict[str, Any]) -> LeasedSession:
    client, server = (
        LeaseSlot(**{name: row[f"{role}_{name}"] for name in _SLOT_FIELDS})
        for role in ("client", "server")
    )
    return LeasedSession(
        session_id=row["session_id"],
        relay_id=row["relay_id"],
        soft_kbps=row["soft_kbps"],
        hard_kbps=row["hard_kbps"],
        client=client,
        server=server,
        created_at_s=row["created_at_s"],
        revision=row["revision"],
    )
