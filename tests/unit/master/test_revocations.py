"""Revocations at the master: ordered, durable, obeyed by the lease service, pruned."""

import asyncio
import contextlib
import sqlite3
import time
import uuid

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.control.lease_parts import parties
from support.control.master import (
    FakeRelay,
    MasterFiles,
    MasterProcess,
    client_for,
    running_master,
)

from wavry_cp.master.revocations.service import RevocationIndex
from wavry_cp.master.revocations.store import RevocationLog, RevocationRow
from wavry_cp.store.sqlite.master import MasterSqlite
from wavry_peer.protocol import base64url, keyset, lease
from wavry_peer.protocol.http.relay_events import FOREVER_S, MAX_REVOCATIONS

LOG = "0" * 32


async def issue(master, client="ann", server="bob", **fields):
    return await master.post("/v1/leases", parties(client, server, **fields), token="service")


async def renew(master, session_id, role, jti):
    body = {"session_id": session_id, "role": role, "jti": jti}
    return await master.post("/v1/leases/renew", body, token="service")


async def revoke(master, **body):
    return await master.post("/v1/leases/revoke", body, token="admin")


async def claims_of(master, token):
    document = await master.get("/.well-known/wavry-keys.json")
    keys = keyset.decode_keyset(
        msgspec.json.encode(document.body),
        root_public_key=base64url.decode(master.files.root_public_key),
    )
    return lease.open_lease(token.encode(), keyset.trusted_keys(keys))


def refused(answer):
    return (answer.status, answer.body["error"]) == (409, "revoked")


@pytest.mark.parametrize("kind", ["jti", "session_id", "sub", "kid"])
async def test_revoked_session_is_neither_renewed_nor_given_new_leases(master, relay, clock, kind):
    hit = (await issue(master)).body
    other = (await issue(master, "cat", "dog")).body
    theirs = await claims_of(master, other["leases"]["client"])
    ours = {role: await claims_of(master, hit["leases"][role]) for role in ("client", "server")}
    value = {
        "jti": ours["server"].jti,
        "session_id": hit["session_id"],
        "sub": "ann",
        "kid": ours["client"].kid,
    }[kind]
    answer = await revoke(master, **{kind: value}, reason="a test")
    assert answer.status == 200
    assert answer.body["live_sessions"] == (2 if kind == "kid" else 1)
    clock.advance(2)
    await relay.heartbeat()
    for role, claims in ours.items():
        assert refused(await renew(master, hit["session_id"], role, claims.jti))
    assert refused(await issue(master, session_id=hit["session_id"]))
    # Only a new session helps, and others never noticed.
    assert (await issue(master)).status == 201
    answer = await renew(master, other["session_id"], "client", theirs.jti)
    assert refused(answer) if kind == "kid" else answer.status == 200


@pytest.mark.parametrize("call", ["issue", "renew"])
async def test_a_revocation_that_comes_while_a_lease_is_made_hits_it(
    master, relay, monkeypatch, call
):
    """Between the look at the revocations and the row of the session: nobody gets the lease."""
    issued = (await issue(master)).body
    jti = (await claims_of(master, issued["leases"]["client"])).jti
    swap = MasterSqlite.swap_session

    async def revoked_meanwhile(store, revision, session):
        assert (await revoke(master, sub="ann")).status == 200
        return await swap(store, revision, session)

    monkeypatch.setattr(MasterSqlite, "swap_session", revoked_meanwhile)
    if call == "issue":
        assert refused(await issue(master, "ann", "cat"))
    else:
        assert refused(await renew(master, issued["session_id"], "client", jti))


async def test_exactly_one_of_jti_session_user_and_kid(master):
    jti = str(uuid.uuid4())
    for body in ({}, {"sub": "a", "kid": "b"}, {"jti": jti, "sub": "a"}, {"sub": None}):
        answer = await revoke(master, **body)
        assert (answer.status, answer.body["error"]) == (400, "invalid_body")
    for body in ({"jti": "x"}, {"sub": ""}, {"sub": "a" * 65}, {"kid": 7}, {"user": "a"}):
        assert (await revoke(master, **body)).status == 400
    assert (await revoke(master, jti=jti, reason="x" * 257)).status == 400


async def test_only_the_admin_token_revokes_and_lists(master, relay):
    for token, status in ((None, 401), ("x" * 43, 401), ("service", 403), (relay.token, 401)):
        answer = await master.post("/v1/leases/revoke", {"sub": "ann"}, token=token)
        assert answer.status == status
        assert (await master.get("/v1/admin/revocations", token=token)).status == status
    assert (await master.get("/v1/admin/revocations", token="admin")).body["revocations"] == []


async def test_a_lease_that_was_just_renewed_is_revoked_with_its_successor(master, relay):
    body = (await issue(master)).body
    old = (await claims_of(master, body["leases"]["client"])).jti
    renewed = await renew(master, body["session_id"], "client", old)
    new = (await claims_of(master, renewed.body["lease"])).jti
    answer = await revoke(master, jti=old)
    assert answer.body["live_sessions"] == 1
    listed = (await master.get("/v1/admin/revocations", token="admin")).body["revocations"]
    assert [row["value"] for row in listed] == [old, new]
    assert refused(await renew(master, body["session_id"], "client", new))


async def test_revoking_an_unknown_key_is_refused_unless_forced(master, relay):
    answer = await revoke(master, kid="no-such-key", reason="typo")
    assert (answer.status, answer.body["error"]) == (404, "unknown_key")
    assert "keys list" in answer.body["message"]
    assert (await master.get("/v1/admin/revocations", token="admin")).body["revocations"] == []
    refusal = (await master.get("/v1/admin/audit?only=acts", token="admin")).body["entries"][-1]
    assert (refusal["action"], refusal["target"]) == ("revoke_kid", "no-such-key")
    assert (refusal["outcome"], refusal["reason"]) == ("unknown_key", "typo")
    forced = (await revoke(master, kid="no-such-key", force=True)).body
    assert (forced["known"], forced["revocation"]["value"]) == (False, "no-such-key")


async def test_revoking_a_key_that_is_gone_but_signed_once_needs_no_force(tmp_path, clock):
    files = MasterFiles.make(tmp_path)
    async with running_master(tmp_path, clock.clock(), files) as master:
        pass
    with sqlite3.connect(tmp_path / "data" / "master.db") as db:
        db.execute("INSERT INTO key_uses VALUES ('removed-key', 5, 0)")
    db.close()
    async with running_master(tmp_path, clock.clock(), files) as master:
        answer = await revoke(master, kid="removed-key")
        assert answer.status == 200
        assert "known" not in answer.body


async def test_revoking_what_the_master_has_no_session_of_says_so(master, relay):
    issued = (await issue(master)).body
    jti = (await claims_of(master, issued["leases"]["client"])).jti
    unknown = str(uuid.uuid4())
    for body, known in (
        ({"jti": unknown}, False),
        ({"session_id": unknown}, False),
        ({"sub": "anne"}, False),
        ({"jti": jti}, True),
        ({"session_id": issued["session_id"]}, True),
        ({"sub": "ann"}, True),
    ):
        answer = await revoke(master, **body)
        assert answer.status == 200, "it is in force all the same"
        assert answer.body.get("known", True) is known, body


async def test_revocations_are_audited_listed_and_counted(master, relay, clock):
    await revoke(master, sub="ann", reason="abuse case 7")
    listed = (await master.get("/v1/admin/revocations", token="admin")).body
    now_s = int(clock.now_s)
    assert listed["revocations"] == [
        {
            "number": 1, "kind": "sub", "value": "ann", "issued_until": now_s,
            "expires_at": now_s + 3600, "at": now_s, "who": "admin", "reason": "abuse case 7",
        }
    ]  # fmt: skip
    assert listed["relays"] == [{"relay_id": relay.relay_id, "connected": False, "acked": 0}]
    audit = (await master.get("/v1/admin/audit?only=acts", token="admin")).body["entries"][0]
    assert (audit["action"], audit["target"]) == ("revoke_sub", "ann")
    metrics = (await master.get("/metrics")).body
    assert 'wavry_master_revocations_total{kind="sub"} 1.0' in metrics
    assert "wavry_master_revocations_in_force 1.0" in metrics


async def test_revocation_survives_kill_9_of_the_master_right_after_the_answer(tmp_path):
    with MasterProcess(tmp_path / "master") as process:
        async with client_for(process.url, process.files) as master:
            relay = await FakeRelay(master).join()
            body = (await issue(master)).body
            jti = (await claims_of(master, body["leases"]["client"])).jti
            assert (await revoke(master, session_id=body["session_id"])).status == 200
        process.kill()
        process.start()
        async with client_for(process.url, process.files) as master:
            relay.client = master
            assert (await relay.heartbeat()).status == 200
            assert refused(await renew(master, body["session_id"], "client", jti))
            listed = (await master.get("/v1/admin/revocations", token="admin")).body
            assert [row["value"] for row in listed["revocations"]] == [body["session_id"]]
            assert (await revoke(master, sub="ann")).body["revocation"]["number"] == 2


async def test_numbers_are_never_used_again(tmp_path, clock):
    files = MasterFiles.make(tmp_path)
    async with running_master(tmp_path, clock.clock(), files) as master:
        for _ in range(3):
            await revoke(master, sub="ann")
    clock.advance(3600 + 120)
    async with running_master(tmp_path, clock.clock(), files) as master:
        await revoke(master, sub="bob")
        deadline = time.monotonic() + 15
        numbers = None
        while numbers != [4]:  # until the upkeep has pruned the expired rows
            assert time.monotonic() < deadline, numbers
            await asyncio.sleep(0.02)
            listed = (await master.get("/v1/admin/revocations", token="admin")).body
            numbers = [row["number"] for row in listed["revocations"]]
        with contextlib.closing(sqlite3.connect(tmp_path / "data" / "master.db")) as db:
            rows = db.execute("SELECT number, value FROM revocations").fetchall()
        assert rows == [(4, "bob")]


async def test_table_full_is_a_clear_answer(tmp_path, clock):
    files = MasterFiles.make(tmp_path)
    async with running_master(tmp_path, clock.clock(), files) as master:
        await revoke(master, sub="ann")
    now_s = int(clock.now_s)
    with sqlite3.connect(tmp_path / "data" / "master.db") as db:
        db.executemany(
            "INSERT INTO revocations (kind, value, issued_until_s, expires_at_s, at_s, who, reason)"
            " VALUES ('sub', ?, ?, ?, ?, 'test', '')",
            [(f"user-{n}", now_s, now_s + 3600, now_s) for n in range(MAX_REVOCATIONS - 1)],
        )
    db.close()
    async with running_master(tmp_path, clock.clock(), files) as master:
        answer = await revoke(master, sub="one-more")
        assert (answer.status, answer.body["error"]) == (503, "too_many_revocations")
        listed = await master.get("/v1/admin/revocations", token="admin")
        assert len(listed.body["revocations"]) == MAX_REVOCATIONS


# -- The index against a model ----------------------------------------------------------------

VALUES = st.sampled_from([str(uuid.UUID(int=1)), str(uuid.UUID(int=2))])
ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("sub"), VALUES, st.integers(0, 20), st.integers(21, 40)),
        st.tuples(st.just("kid"), VALUES, st.integers(0, 20), st.integers(21, 40)),
        st.tuples(st.just("jti"), VALUES, st.just(FOREVER_S), st.integers(21, 40)),
        st.tuples(st.just("unban"), VALUES, st.integers(0, 20), st.integers(21, 40)),
    ),
    max_size=12,
)


@given(ACTS, st.integers(0, 45))
def test_book_is_what_its_rows_say_in_order(acts, prune_at):
    index = RevocationIndex(RevocationLog(LOG, 0, ()))
    for number, (kind, value, until, expires) in enumerate(acts, 1):
        index.add(RevocationRow(kind, value, until, expires, 0, "t", "", number))
    assert index.head == len(acts)
    until_of = {}
    for kind, value, until, _ in acts:
        if kind == "unban":
            if ("sub", value) in until_of:
                until_of["sub", value] = min(until_of["sub", value], until)
        else:
            until_of[kind, value] = max(until_of.get((kind, value), -1), until)
    assert index._until_s == until_of
    # A relay that reads page by page sees every row once, in order.
    seen, after = [], 0
    while rows := index.after(after, 3):
        seen += [row.number for row in rows]
        after = rows[-1].number
    assert seen == list(range(1, len(acts) + 1))
    # A relay that starts from the rows as they are now comes to the same as one that saw all.
    again = RevocationIndex(RevocationLog(LOG, index.head, tuple(index.rows)))
    assert again._until_s == until_of
    index.prune(prune_at)
    assert all(row.expires_at_s >= prune_at for row in index.rows)
