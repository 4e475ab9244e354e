"""The database: migrations, transactions, failures; and the master's store over it."""

import asyncio
import os
import sqlite3
import stat
import threading
from dataclasses import replace

import pytest

from wavry_cp.master.leases.rules import LeasedSession, LeaseSlot
from wavry_cp.master.relays.rules import RelayRecord
from wavry_cp.operators.audit import AuditEntry
from wavry_cp.store.sqlite.database import (
    Database,
    Migration,
    StoreUnavailableError,
    StoreVersionError,
)
from wavry_cp.store.sqlite.master import MIGRATIONS, MasterSqlite
from wavry_peer.protocol.errors import LocalError
from wavry_peer.protocol.relay_terms import Enrolment, RelayState

ONE = Migration(1, "one", lambda db: db.execute("CREATE TABLE t (x INTEGER UNIQUE) STRICT"))
TWO = Migration(2, "two", lambda db: db.execute("ALTER TABLE t ADD COLUMN y TEXT"))


def rows(db):
    return [row[0] for row in db.execute("SELECT x FROM t ORDER BY x")]


def insert(value):
    return lambda db: db.table("t").insert({"x": value})


@pytest.fixture
async def database(tmp_path):
    database = await Database.open(tmp_path / "a.db", [ONE])
    yield database
    await database.close()


async def test_file_is_private_and_durable(tmp_path):
    old = os.umask(0)
    try:
        database = await Database.open(tmp_path / "a.db", [ONE])
        await database.run(insert(1))
        modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        pragmas = await database.run(
            lambda db: [
                db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous", "foreign_keys")
            ]
        )
        await database.close()
    finally:
        os.umask(old)
    assert modes == {0o600}
    assert pragmas == ["wal", 2, 1]


async def test_migrations_run_once_in_order(tmp_path):
    path = tmp_path / "a.db"
    for migrations in ([ONE], [ONE, TWO], [ONE, TWO]):
        database = await Database.open(path, migrations)
        applied = await database.run(
            lambda db: [
                tuple(row) for row in db.execute("SELECT number, name FROM wavry_migrations")
            ]
        )
        await database.close()
        assert applied == [(item.number, item.name) for item in migrations]


@pytest.mark.parametrize("known", [[ONE], [ONE, replace(TWO, name="other")]])
async def test_database_of_another_version_is_refused_and_left_alone(tmp_path, known):
    path = tmp_path / "a.db"
    database = await Database.open(path, [ONE, TWO])
    await database.run(insert(7))
    await database.close()
    with pytest.raises(StoreVersionError, match=r"migration 2 \(two\)"):
        await Database.open(path, known)
    database = await Database.open(path, [ONE, TWO])
    assert await database.run(rows) == [7]
    await database.close()


async def test_failed_migration_leaves_nothing(tmp_path):
    def half(db):
        db.execute("CREATE TABLE half (x)")
        raise RuntimeError("power cut")

    path = tmp_path / "a.db"
    with pytest.raises(RuntimeError):
        await Database.open(path, [ONE, Migration(2, "half", half)])
    database = await Database.open(path, [ONE])
    assert await database.run(lambda db: "half" not in db.table_names())
    await database.close()


@pytest.mark.parametrize("numbers", [[2], [1, 1], [1, 3], [2, 1]])
async def test_misnumbered_migrations_are_a_mistake_of_ours(tmp_path, numbers):
    with pytest.raises(LocalError):
        await Database.open(tmp_path / "a.db", [replace(ONE, number=n) for n in numbers])


async def test_failure_inside_rolls_everything_back(database):
    def two_then_fail(db):
        db.table("t").insert({"x": 1})
        db.table("t").insert({"x": 2})
        raise KeyError("no")

    with pytest.raises(KeyError):
        await database.run(two_then_fail)
    assert await database.run(rows) == []
    await database.run(insert(3))
    with pytest.raises(sqlite3.IntegrityError):
        await database.run(insert(3))
    assert await database.run(rows) == [3]


async def test_all_work_is_on_one_other_thread(database):
    threads = await asyncio.gather(
        *(database.run(lambda db: threading.get_ident()) for _ in range(20))
    )
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


async def test_calls_at_once_do_not_lose_updates(database):
    await database.run(insert(0))

    def add_one(db):
        value = db.execute("SELECT x FROM t").fetchone()[0]
        db.execute("UPDATE t SET x = ?", (value + 1,))

    await asyncio.gather(*(database.run(add_one) for _ in range(100)))
    assert await database.run(rows) == [100]


async def test_locked_database_is_unavailable_and_recovers(database, tmp_path):
    await database.run(lambda db: None)
    await database._call(lambda: database._db.conn.execute("PRAGMA busy_timeout=10"))
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match="BUSY"):
        await database.run(insert(1))
    other.execute("ROLLBACK")
    other.close()
    await database.run(insert(1))
    assert await database.run(rows) == [1]


async def test_full_disk_is_unavailable_keeps_what_was_and_recovers(database):
    await database.run(insert(1))

    def limit(pages):
        return lambda: database._db.conn.execute(f"PRAGMA max_page_count={pages}").fetchone()

    def fill(db):
        db.execute("CREATE TABLE big (x)")
        for _ in range(100):
            db.execute("INSERT INTO big VALUES (zeroblob(4096))")

    await database._call(limit(10))
    with pytest.raises(StoreUnavailableError, match="FULL"):
        await database.run(fill)
    await database._call(limit(100_000))
    assert await database.run(rows) == [1]
    await database.run(fill)


async def test_overload_is_refused_at_once(database, monkeypatch):
    monkeypatch.setattr("wavry_cp.store.sqlite.database.MAX_PENDING_CALLS", 3)
    release = threading.Event()
    calls = [asyncio.create_task(database.run(lambda db: release.wait(10))) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailableError, match="overloaded"):
        await database.run(rows)
    release.set()
    await asyncio.gather(*calls)
    assert await database.run(rows) == []


async def test_closed_database_is_unavailable(tmp_path):
    database = await Database.open(tmp_path / "a.db", [ONE])
    await database.close()
    await database.close()
    with pytest.raises(StoreUnavailableError):
        await database.run(rows)


async def test_what_is_no_database_or_no_place_is_unavailable(tmp_path):
    (tmp_path / "text.db").write_bytes(b"not a database" * 100)
    for path in (tmp_path / "text.db", tmp_path / "missing" / "a.db", tmp_path):
        with pytest.raises(StoreUnavailableError):
            await Database.open(path, [ONE])


# -- The master's tables -----------------------------------------------------------------------

RELAY = RelayRecord(
    relay_id="rly-1",
    name="fra-1",
    enrolment=Enrolment.TOKEN,
    public_key="k",
    endpoints=("127.0.0.1:1", "[::1]:2"),
    region="eu",
    asn=64500,
    max_sessions=5,
    max_bitrate_kbps=6,
    features=("a", "b"),
    version="1",
    state=RelayState.DRAINING,
    undrain_pending=True,
    token_hash="h",
    registered_at_s=7,
    last_heartbeat_at_s=8,
)
SESSION = LeasedSession(
    session_id="s",
    relay_id="rly-1",
    soft_kbps=1,
    hard_kbps=2,
    client=LeaseSlot("ann", "cnf", "j1", "j0", "kid", 100, 60),
    server=LeaseSlot("bob", "cnf", "j2", None, "kid", 100, 90),
    created_at_s=99,
)


@pytest.fixture
async def store(tmp_path):
    store = await MasterSqlite.open(tmp_path / "master.db")
    yield store
    await store.close()


async def test_relays_come_back_as_they_were(store):
    await store.save_relay(replace(RELAY, state=RelayState.NEW, region=None, asn=None))
    await store.save_relay(RELAY)
    assert await store.relays() == [RELAY]
    await store.save_heartbeats({"rly-1": 50, "rly-unknown": 60})
    assert await store.relays() == [replace(RELAY, last_heartbeat_at_s=50)]
    await store.remove_relay("rly-1")
    assert await store.relays() == []


async def test_session_is_written_only_if_it_is_as_it_was_read(store):
    assert await store.session("s") is None
    assert not await store.swap_session(0, SESSION)
    assert await store.swap_session(None, SESSION)
    assert not await store.swap_session(None, SESSION)
    assert await store.session("s") == SESSION
    changed = replace(SESSION, relay_id="rly-2", revision=1)
    assert await store.swap_session(0, changed)
    assert not await store.swap_session(0, changed)
    assert await store.session("s") == changed


async def test_expired_sessions_are_pruned_in_batches(store):
    for number in range(5):
        await store.swap_session(None, replace(SESSION, session_id=str(number)))
    assert await store.live_sessions(189) == 5
    assert await store.live_sessions(190) == 0
    assert await store.prune_sessions(190, 100) == 0
    assert await store.prune_sessions(191, 3) == 3
    assert await store.prune_sessions(191, 3) == 2


async def test_audit_log_is_append_only_and_written_with_the_act(store):
    act = AuditEntry(1, "admin", "drain", "rly-1")
    await store.save_relay(RELAY, act)
    await store.remove_relay("rly-1", replace(act, action="deregister"))

    async def written():
        records = await store.audit_page(after=0, since_s=None, limit=10)
        return [record.entry.action for record in records]

    assert await written() == ["drain", "deregister"]
    for sql in (
        "UPDATE audit SET who = 'x'",
        "DELETE FROM audit",
        "REPLACE INTO audit (id, at_s, who, action, target) VALUES (1, 1, 'x', 'x', 'x')",
        "INSERT OR IGNORE INTO audit (id, at_s, who, action, target) VALUES (1, 1, '', '', '')",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            await store._database.run(lambda db, sql=sql: db.execute(sql))
    bad = replace(RELAY, state=RelayState.OFFLINE)  # never stored: the table refuses it
    with pytest.raises(sqlite3.IntegrityError):
        await store.save_relay(bad, replace(act, action="lost"))
    assert await written() == ["drain", "deregister"]


def test_migrations_of_the_master_are_numbered():
    assert [item.number for item in MIGRATIONS] == list(range(1, len(MIGRATIONS) + 1))


async def test_sessions_without_keys_are_forgotten(tmp_path):
    """Leases of an older master: a renewal would issue one that no relay takes."""
    path = tmp_path / "m.db"
    old = await Database.open(path, MIGRATIONS[:4])
    for number, keys in enumerate((("cnf", "cnf"), ("cnf", None), (None, "cnf"), (None, None))):
        row = {"session_id": f"s{number}", "relay_id": "r", "soft_kbps": 1, "hard_kbps": 1}
        row |= {"created_at_s": 1000, "expires_at_s": 1300, "revision": 0}
        for role, cnf in zip(("client", "server"), keys, strict=True):
            row |= {f"{role}_sub": role, f"{role}_cnf": cnf, f"{role}_jti": role}
            row |= {f"{role}_previous_jti": None, f"{role}_kid": "k"}
            row |= {f"{role}_issued_at_s": 1000, f"{role}_ttl_s": 300}
        await old.run(lambda db, row=row: db.table("sessions").insert(row))
    await old.close()
    store = await MasterSqlite.open(path)
    try:
        left = [await store.session(f"s{number}") for number in range(4)]
        assert [session is not None for session in left] == [True, False, False, False]
    finally:
        await store.close()


async def test_the_last_expiry_of_a_key_outlives_its_renewed_leases(tmp_path):
    """The peer may still hold the lease that a renewal replaced: the row of it is gone."""
    path = tmp_path / "m.db"
    old = await Database.open(path, MIGRATIONS[:1])
    slot = LeaseSlot("a", "cnf", "j1", None, "old-key", 1000, 300)
    session = LeasedSession("s", "r", 1, 1, slot, replace(slot, sub="b", jti="j2"), 1000)
    row = {"session_id": "s", "relay_id": "r", "soft_kbps": 1, "hard_kbps": 1}
    row |= {"created_at_s": 1000, "expires_at_s": 1300, "revision": 0}
    for role in ("client", "server"):
        row |= {f"{role}_sub": role, f"{role}_cnf": "cnf", f"{role}_jti": role}
        row |= {f"{role}_previous_jti": None, f"{role}_kid": "old-key"}
        row |= {f"{role}_issued_at_s": 1000, f"{role}_ttl_s": 300}
    await old.run(lambda db: db.table("sessions").insert(row))
    await old.close()
    store = await MasterSqlite.open(path)
    try:
        uses = await store.key_uses()
        assert uses["old-key"].last_expiry_s == 1900, "the longest life, as nobody wrote it down"
        renewed = replace(slot, jti="j3", kid="new-key", issued_at_s=1200, ttl_s=60)
        assert await store.swap_session(0, replace(session, client=renewed, revision=1))
        uses = await store.key_uses()
        assert uses["old-key"].last_expiry_s == 1900
        assert uses["new-key"].last_expiry_s == 1260
        audit = AuditEntry(1, "admin", "keys activate", "new-key")
        await store.record_key_step(audit, "new-key", forced=True)
        assert (await store.key_uses())["new-key"].forced
        assert (await store.key_uses())["new-key"].last_expiry_s == 1260
        assert (await store.audit_page(after=None, since_s=None, limit=1))[0].entry == audit
    finally:
        await store.close()
