"""Records of relays and enrolment tokens in SQLite."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, Final

import msgspec
import sqlite_utils

from wavry_cp.master.enrolment.tokens import EnrolmentToken
from wavry_cp.master.relays.rules import RelayRecord
from wavry_cp.master.relays.table import default_names
from wavry_cp.operators.audit import AuditEntry
from wavry_cp.operators.bans import Ban, BanKind
from wavry_peer.protocol.relay_terms import Enrolment, RelayState

from .operators import AdminSqlite, append_audit, put_ban, remove_ban

__all__ = ["RelaySqlite", "add_enrolment"]


def add_enrolment(db: sqlite_utils.Database) -> None:
    """Name the relays, and say by what they came in; those of before are known to the operator."""
    kinds = ", ".join(f"'{kind.value}'" for kind in Enrolment)
    db.execute("ALTER TABLE relays ADD COLUMN name TEXT NOT NULL DEFAULT ''")
    db.execute(
        f"ALTER TABLE relays ADD COLUMN enrolment TEXT NOT NULL DEFAULT '{Enrolment.APPROVED}' "
        f"CHECK (enrolment IN ({kinds}))"
    )
    taken: set[str] = set()
    for (relay_id,) in db.execute("SELECT relay_id FROM relays ORDER BY relay_id").fetchall():
        name = next(name for name in default_names(relay_id) if name not in taken)
        taken.add(name)
        db.execute("UPDATE relays SET name = ? WHERE relay_id = ?", (name, relay_id))
    db.execute("CREATE UNIQUE INDEX relays_by_name ON relays (name)")
    db.execute(
        """
        CREATE TABLE enrolments (
            name TEXT PRIMARY KEY,
            token_id TEXT NOT NULL UNIQUE,
            region TEXT,
            secret_hash TEXT NOT NULL,
            created_at_s INTEGER NOT NULL,
            expires_at_s INTEGER NOT NULL,
            used_by TEXT
        ) STRICT
        """
    )


class RelaySqlite(AdminSqlite):
    """`RelayStore` and `EnrolmentStore` over a `Database`."""

    async def relays(self) -> Sequence[RelayRecord]:
        """See `MasterStore`."""
        return await self._database.run(
            lambda db: [
                _relay_from_row(row) for row in db.query("SELECT * FROM relays ORDER BY relay_id")
            ]
        )

    async def save_relay(self, record: RelayRecord, audit: AuditEntry | None = None) -> None:
        """See `MasterStore`."""

        def save(db: sqlite_utils.Database) -> None:
            _put_relay(db, record)
            append_audit(db, audit)

        await self._database.run(save)

    async def enrol_relay(
        self, record: RelayRecord, token_id: str, now_s: int, audit: AuditEntry
    ) -> bool:
        """See `MasterStore`."""

        def enrol(db: sqlite_utils.Database) -> bool:
            spent = db.execute(
                "UPDATE enrolments SET used_by = ? "
                "WHERE token_id = ? AND used_by IS NULL AND expires_at_s > ?",
                (record.relay_id, token_id, now_s),
            )
            if spent.rowcount != 1:
                return False
            _put_relay(db, record)
            append_audit(db, audit)
            return True

        return await self._database.run(enrol)

    async def enrolments(self) -> Sequence[EnrolmentToken]:
        """See `MasterStore`."""
        return await self._database.run(
            lambda db: [EnrolmentToken(**row) for row in db.query("SELECT * FROM enrolments")]
        )

    async def save_enrolment(self, token: EnrolmentToken, audit: AuditEntry) -> None:
        """See `MasterStore`."""

        def save(db: sqlite_utils.Database) -> None:
            db.table("enrolments").insert(asdict(token), pk="name", replace=True)
            append_audit(db, audit)

        await self._database.run(save)

    async def remove_enrolments(self, names: Sequence[str], audit: AuditEntry | None) -> None:
        """See `MasterStore`."""

        def remove(db: sqlite_utils.Database) -> None:
            for name in names:
                db.execute("DELETE FROM enrolments WHERE name = ?", (name,))
            append_audit(db, audit)

        await self._database.run(remove)

    async def remove_relay(self, relay_id: str, audit: AuditEntry | None = None) -> None:
        """See `MasterStore`."""

        def remove(db: sqlite_utils.Database) -> None:
            db.execute("DELETE FROM relays WHERE relay_id = ?", (relay_id,))
            append_audit(db, audit)

        await self._database.run(remove)

    async def ban_relay(self, record: RelayRecord | None, ban: Ban, audit: AuditEntry) -> None:
        """See `MasterStore`."""

        def save(db: sqlite_utils.Database) -> None:
            _put_relay(db, record)
            put_ban(db, ban)
            append_audit(db, audit)

        await self._database.run(save)

    async def unban_relay(
        self, record: RelayRecord | None, relay_id: str, audit: AuditEntry
    ) -> None:
        """See `MasterStore`."""

        def save(db: sqlite_utils.Database) -> None:
            _put_relay(db, record)
            remove_ban(db, BanKind.RELAY, relay_id)
            append_audit(db, audit)

        await self._database.run(save)

    async def save_heartbeats(self, at_s: Mapping[str, int]) -> None:
        """See `MasterStore`."""
        rows = [(instant_s, relay_id) for relay_id, instant_s in at_s.items()]
        await self._database.run(
            lambda db: db.conn.executemany(
                "UPDATE relays SET last_heartbeat_at_s = ? WHERE relay_id = ?", rows
            )
        )


_RELAY_COLUMNS: Final = tuple(field.name for field in fields(RelayRecord))
_PUT_RELAY: Final = (
    f"INSERT INTO relays ({', '.join(_RELAY_COLUMNS)}) "  # noqa: S608  # constants
    f"VALUES ({', '.join(f':{name}' for name in _RELAY_COLUMNS)}) ON CONFLICT (relay_id) DO "
    f"UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _RELAY_COLUMNS)}"
)


def _put_relay(db: sqlite_utils.Database, record: RelayRecord | None) -> None:
    if record is not None:
        # No REPLACE: a name that another relay has must fail here, not delete that relay.
        db.execute(_PUT_RELAY, _row_from_relay(record))


def _row_from_relay(record: RelayRecord) -> dict[str, Any]:
    return {
        "relay_id": record.relay_id,
        "name": record.name,
        "enrolment": record.enrolment.value,
        "public_key": record.public_key,
        "endpoints": msgspec.json.encode(record.endpoints).decode(),
        "region": record.region,
        "asn": record.asn,
        "max_sessions": record.max_sessions,
        "max_bitrate_kbps": record.max_bitrate_kbps,
        "features": msgspec.json.encode(record.features).decode(),
        "version": record.version,
        "state": record.state.value,
        "undrain_pending": int(record.undrain_pending),
        "token_hash": record.token_hash,
        "registered_at_s": record.registered_at_s,
        "last_heartbeat_at_s": record.last_heartbeat_at_s,
    }


def _relay_from_row(row: dict[str, Any]) -> RelayRecord:
    return RelayRecord(
        **{
            **row,
            "endpoints": msgspec.json.decode(row["endpoints"], type=tuple[str, ...]),
            "features": msgspec.json.decode(row["features"], type=tuple[str, ...]),
            "state": RelayState(row["state"]),
            "enrolment": Enrolment(row["enrolment"]),
            "undrain_pending": bool(row["undrain_pending"]),
        }
    )
