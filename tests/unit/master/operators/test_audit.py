"""The audit log: who, what, when, why, what came of it; append-only, in both services."""

import sqlite3

import pytest
from support.control.gateway import ADMIN_TOKEN, make_config, running_gateway
from support.control.master import FakeClock, FakeRelay, MasterFiles, running_master

from wavry_cp.app.store_errors import StoreUnavailableError
from wavry_cp.operators.audit import AuditEntry
from wavry_cp.store.sqlite.gateway import SqliteGatewayStore
from wavry_cp.store.sqlite.master import MasterSqlite


async def acts(master, query=""):
    answer = await master.get(f"/v1/admin/audit{query}", token="admin")
    assert answer.status == 200, answer
    return answer.body["entries"]


async def test_audit_says_who_what_when_why_and_what_came_of_it(tmp_path):
    clock = FakeClock()
    async with running_master(tmp_path, clock.clock()) as master:
        relay = await FakeRelay(master).join()
        path = f"/v1/admin/relays/{relay.relay_id}"
        await master.post(f"{path}/drain", {"reason": "new kernel"}, token="admin")
        (entry,) = await acts(master)
        assert entry == {
            "id": 1,
            "at": clock.clock().now_s(),
            "who": "admin",
            "action": "drain",
            "target": relay.relay_id,
            "reason": "new kernel",
            "outcome": "done",
        }


async def test_audit_has_what_a_rule_refused(master):
    answer = await master.post("/v1/admin/relays/rly-none/drain", {"reason": "typo"}, token="admin")
    assert answer.status == 404
    (entry,) = await acts(master)
    assert (entry["action"], entry["target"]) == ("drain", "rly-none")
    assert (entry["outcome"], entry["reason"]) == ("unknown_relay", "typo")


async def test_audit_row_and_its_act_are_one_transaction(master, monkeypatch):
    relay = await FakeRelay(master).join()

    async def broken(*args):
        raise StoreUnavailableError("disk full")

    path = f"/v1/admin/relays/{relay.relay_id}/drain"
    with monkeypatch.context() as patch:
        patch.setattr(MasterSqlite, "save_relay", broken)
        assert (await master.post(path, token="admin")).status == 503
    assert await acts(master) == []
    assert (await master.get(f"/v1/relays/{relay.relay_id}", token="admin")).body[
        "state"
    ] == "ACTIVE"


async def test_audit_pages_go_on_where_the_last_one_ended(tmp_path):
    clock = FakeClock()
    async with running_master(tmp_path, clock.clock()) as master:
        relay = await FakeRelay(master).join()
        for _ in range(4):
            for order in ("drain", "undrain"):
                await master.post(f"/v1/admin/relays/{relay.relay_id}/{order}", token="admin")
            clock.advance(10)
        everything = await acts(master)
        assert [entry["id"] for entry in everything] == list(range(1, 9))
        assert [e["id"] for e in await acts(master, "?limit=3")] == [6, 7, 8], "the last ones"
        seen, after = [], 0
        while page := await acts(master, f"?after={after}&limit=3"):
            seen += page
            after = page[-1]["id"]
        assert seen == everything
        since = everything[5]["at"]
        assert [e["id"] for e in await acts(master, f"?since={since}")] == [5, 6, 7, 8]


@pytest.mark.parametrize("query", ["after=x", "after=-1", "limit=0", "limit=1001", "since=1e9"])
async def test_audit_query_that_does_not_fit_is_refused(master, query):
    answer = await master.get(f"/v1/admin/audit?{query}", token="admin")
    assert (answer.status, answer.body["error"]) == (400, "invalid_query")


@pytest.mark.parametrize("reason", ["x" * 501, "a\nb", "\x1b[2J", "a\u202eb", 7])
async def test_audit_reason_cannot_be_a_terminal_escape_or_a_book(master, reason):
    relay = await FakeRelay(master).join()
    answer = await master.post(
        f"/v1/admin/relays/{relay.relay_id}/drain", {"reason": reason}, token="admin"
    )
    assert (answer.status, answer.body["error"]) == (400, "invalid_body")
    assert await acts(master) == []


async def test_audit_target_of_a_refused_act_is_bounded_and_printable(master):
    await master.post(f"/v1/admin/relays/{'r' * 3000}/drain", token="admin")
    await master.post("/v1/admin/relays/%1b%5b2J/drain", token="admin")
    long, odd = await acts(master)
    assert len(long["target"]) == 200
    assert odd["target"] == "?[2J"


@pytest.mark.parametrize("kind", [MasterSqlite, SqliteGatewayStore])
async def test_audit_is_append_only_for_everybody_with_the_file(tmp_path, kind):
    path = tmp_path / "some.db"
    store = await kind.open(path)
    await store.record_act(AuditEntry(1, "ann", "drain", "rly-1", "why"))
    await store.close()
    with sqlite3.connect(path) as other:
        for sql in (
            "UPDATE audit SET who = ''",
            "UPDATE audit SET reason = ''",
            "DELETE FROM audit",
            "DELETE FROM audit WHERE id = 1",
            "REPLACE INTO audit (id, at_s, who, action, target) VALUES (1, 1, 'x', 'x', 'x')",
            "INSERT INTO audit SELECT * FROM audit WHERE 1 ON CONFLICT (id) DO UPDATE SET who = ''",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                other.execute(sql)
        rows = other.execute("SELECT id, who, reason, outcome FROM audit").fetchall()
    other.close()
    assert rows == [(1, "ann", "why", "done")]


async def test_audit_of_an_older_master_is_kept(tmp_path):
    files = MasterFiles.make(tmp_path)
    files.data_dir.mkdir()
    from wavry_cp.store.sqlite.database import Database
    from wavry_cp.store.sqlite.master import MIGRATIONS

    database = await Database.open(files.data_dir / "master.db", MIGRATIONS[:1])
    await database.run(
        lambda db: db.execute(
            "INSERT INTO audit (at_s, who, action, target) VALUES (7, 'admin', 'drain', 'rly-1')"
        )
    )
    await database.close()
    async with running_master(tmp_path, files=files) as master:
        (entry,) = await acts(master)
        assert (entry["at"], entry["who"], entry["target"]) == (7, "admin", "rly-1")


async def test_audit_of_the_gateway_is_read_the_same_way(tmp_path):
    async with running_gateway(make_config(tmp_path, "http://127.0.0.1:9")) as gateway:
        await gateway.gateway.store.record_act(AuditEntry(5, "ann", "ban", "bob", "spam"))
        status, body, _ = await gateway.call("GET", "/v1/admin/audit?after=0", token=ADMIN_TOKEN)
        (row,) = body["entries"]
        assert (status, row["who"], row["reason"]) == (200, "ann", "spam")
        assert (await gateway.call("GET", "/v1/admin/audit"))[0] == 401
