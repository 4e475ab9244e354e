"""Who becomes a relay: tokens, key list, pools, addresses, names; over real HTTP."""

import asyncio
import sqlite3

import pytest
from support.control.master import (
    FakeClock,
    FakeRelay,
    MasterFiles,
    MasterProcess,
    client_for,
    running_master,
)

from wavry_cp.master.enrolment.endpoints import check_endpoint
from wavry_cp.master.master import DATABASE_FILE
from wavry_cp.store.sqlite.database import Database
from wavry_cp.store.sqlite.master import MIGRATIONS, MasterSqlite
from wavry_peer.protocol.relay_terms import Enrolment


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
async def master(tmp_path, clock):
    async with running_master(tmp_path / "master", clock.clock()) as client:
        yield client


async def enrol(master, name="fra-1", region="eu", **fields):
    body = {"name": name, "region": region, **fields}
    answer = await master.post("/v1/admin/enrolments", body, token="admin")
    assert answer.status == 201, answer
    return answer.body["token"]


async def info(master, named):
    return (await master.get(f"/v1/relays/{named}", token="admin")).body


async def audit(master):
    entries = (await master.get("/v1/admin/audit?limit=1000", token="admin")).body["entries"]
    return [(e["who"], e["action"], e["target"], e["outcome"]) for e in entries]


def refusal(answer):
    return answer.status, answer.body["error"]


# -- Tokens --------------------------------------------------------------------------------


async def test_stranger_without_credential_is_refused_and_gets_no_challenge(master):
    answer = await FakeRelay(master).challenge(None)
    assert refusal(answer) == (403, "relay_not_enrolled")
    assert "wavryctl relays enrol" in answer.body["message"]
    assert (await master.get("/v1/relays", token="admin")).body["relays"] == []


async def test_token_lets_one_relay_in_under_its_name_and_region(master):
    token = await enrol(master)
    relay = await FakeRelay(master, enrolment_token=token).join()
    known = await info(master, "fra-1")
    assert (known["relay_id"], known["region"]) == (relay.relay_id, "eu")
    assert (known["state"], known["enrolment"]) == ("ACTIVE", "token")
    second = FakeRelay(master, enrolment_token=token)
    answer = await second.challenge()
    assert refusal(answer) == (403, "enrolment_token_invalid")
    assert "used" in answer.body["message"]
    assert ("relay", "enrolled", f"{relay.relay_id} as fra-1", "done") in await audit(master)


async def test_token_of_two_relays_at_once_is_spent_by_one(master):
    token = await enrol(master)
    relays = [FakeRelay(master, enrolment_token=token) for _ in range(6)]
    challenges = [(await relay.challenge()).body for relay in relays]
    answers = await asyncio.gather(
        *(relay.verify(body) for relay, body in zip(relays, challenges, strict=True))
    )
    assert sorted(answer.status for answer in answers) == [201, 403, 403, 403, 403, 403]
    assert len((await master.get("/v1/relays", token="admin")).body["relays"]) == 1


async def test_token_is_for_its_region_and_its_time(master, clock):
    token = await enrol(master, life_s=3600)
    astray = FakeRelay(master, enrolment_token=token, region="us")
    assert refusal(await astray.challenge()) == (409, "wrong_region")
    clock.advance(3599)
    assert (await FakeRelay(master, enrolment_token=token).challenge()).status == 200
    clock.advance(1)
    late = FakeRelay(master, enrolment_token=token)
    answer = await late.challenge()
    assert refusal(answer) == (403, "enrolment_token_invalid")
    assert "has ended" in answer.body["message"]


async def test_refused_attempts_do_not_use_a_token_up(master):
    token = await enrol(master)
    astray = FakeRelay(master, enrolment_token=token, region="us")
    assert refusal(await astray.challenge()) == (409, "wrong_region")
    impostor = FakeRelay(master, enrolment_token=token)
    challenge = (await impostor.challenge()).body
    assert (await impostor.verify(challenge, key=astray.key)).status == 401
    await FakeRelay(master, enrolment_token=token).join()


async def test_token_that_ends_between_challenge_and_answer_is_refused(master, clock):
    token = await enrol(master, life_s=60)
    relay = FakeRelay(master, enrolment_token=token)
    clock.advance(30)
    challenge = (await relay.challenge()).body
    clock.advance(30)
    assert refusal(await relay.verify(challenge)) == (403, "enrolment_token_invalid")


async def test_enrolled_relay_keeps_its_region_and_needs_no_token_again(master):
    relay = await FakeRelay(master, enrolment_token=await enrol(master)).join()
    relay.enrolment_token = None
    relay.region = "us"
    assert refusal(await relay.challenge(None)) == (409, "wrong_region")
    relay.region = None
    await relay.join(None)
    assert (await info(master, "fra-1"))["region"] == "eu"


async def test_farewell_of_an_enrolled_relay_leaves_it_enrolled(master):
    relay = await FakeRelay(master, enrolment_token=await enrol(master)).join()
    path = f"/v1/relays/{relay.relay_id}"
    assert (await master.call("DELETE", path, token=relay.token)).status == 200
    assert (await info(master, "fra-1"))["state"] == "OFFLINE"
    relay.enrolment_token = None
    await relay.join(None)
    assert (await info(master, "fra-1"))["state"] == "ACTIVE"


@pytest.mark.parametrize("text", ["wve_0000000000_" + "A" * 43, "x", "wve_", "é"])
async def test_text_that_is_no_token_of_ours_is_refused(master, text):
    await enrol(master)
    answer = await FakeRelay(master, enrolment_token=text).challenge()
    assert refusal(answer) == (403, "enrolment_token_invalid")


async def test_half_a_token_is_no_token(master):
    token = await enrol(master)
    other = await enrol(master, "fra-2")
    mixed = token[:15] + other[15:]
    answer = await FakeRelay(master, enrolment_token=mixed).challenge()
    assert refusal(answer) == (403, "enrolment_token_invalid")


async def test_second_token_for_a_name_ends_the_first(master):
    first = await enrol(master)
    again = {"name": "fra-1", "region": "eu"}
    made = (await master.post("/v1/admin/enrolments", again, token="admin")).body
    assert made["replaces"]
    assert refusal(await FakeRelay(master, enrolment_token=first).challenge()) == (
        403, "enrolment_token_invalid",
    )  # fmt: skip
    await FakeRelay(master, enrolment_token=made["token"]).join()
    answer = await master.post("/v1/admin/enrolments", again, token="admin")
    assert refusal(answer) == (409, "name_taken")


async def test_rejected_token_lets_nobody_in(master):
    token = await enrol(master)
    path = "/v1/admin/enrolments/fra-1"
    listed = (await master.get("/v1/admin/enrolments", token="admin")).body["enrolments"]
    assert [one["name"] for one in listed] == ["fra-1"]
    assert (await master.call("DELETE", path, token="admin")).status == 200
    assert refusal(await FakeRelay(master, enrolment_token=token).challenge()) == (
        403, "enrolment_token_invalid",
    )  # fmt: skip
    assert refusal(await master.call("DELETE", path, token="admin")) == (404, "unknown_relay")


async def test_token_is_stored_as_a_hash(tmp_path):
    files = MasterFiles.make(tmp_path)
    async with running_master(tmp_path, files=files) as master:
        token = await enrol(master)
    raw = (files.data_dir / DATABASE_FILE).read_bytes()
    assert b"fra-1" in raw
    assert token.split("_", 2)[2].encode() not in raw


async def test_lost_answer_and_kill_9_cost_nothing(tmp_path):
    """The record and the use of the token are one transaction: both are there, or neither."""
    with MasterProcess(tmp_path / "m") as process:
        async with client_for(process.url, process.files) as master:
            token = await enrol(master)
            relay = FakeRelay(master, enrolment_token=token)
            challenge = (await relay.challenge()).body
        process.kill()  # Before the answer: the token is as good as before.
        process.start()
        async with client_for(process.url, process.files) as master:
            relay.client = master
            assert refusal(await relay.verify(challenge)) == (404, "unknown_challenge")
            assert (await relay.register()).status == 201
        process.kill()  # Right after the commit: the relay may not have heard of it.
        process.start()
        async with client_for(process.url, process.files) as master:
            relay.client = master
            relay.token = None
            await relay.join()
            assert (await info(master, "fra-1"))["state"] == "ACTIVE"
            other = FakeRelay(master, enrolment_token=token)
            assert refusal(await other.challenge()) == (403, "enrolment_token_invalid")


async def test_record_that_cannot_be_written_leaves_the_token_unused(tmp_path):
    from dataclasses import replace

    from wavry_cp.master.enrolment.tokens import EnrolmentToken
    from wavry_cp.operators.audit import AuditEntry

    files = MasterFiles.make(tmp_path)
    async with running_master(tmp_path, files=files) as master:
        await FakeRelay(master, name="fra-1").join()
    store = await MasterSqlite.open(files.data_dir / DATABASE_FILE)
    act = AuditEntry(1, "relay", "enrolled", "x")
    try:
        (record,) = await store.relays()
        await store.save_enrolment(EnrolmentToken("b", "t", None, "h", 1, 99), act)
        twin = replace(record, relay_id="rly-other")  # The name is another relay's.
        with pytest.raises(sqlite3.IntegrityError):
            await store.enrol_relay(twin, "t", 2, act)
        assert [token.used_by for token in await store.enrolments()] == [None]
        assert [one.relay_id for one in await store.relays()] == [record.relay_id]
        assert not await store.enrol_relay(replace(twin, name="b"), "t", 99, act), "it has ended"
        assert await store.enrol_relay(replace(twin, name="b"), "t", 98, act)
        assert not await store.enrol_relay(replace(twin, name="b"), "t", 2, act), "it is used"
    finally:
        await store.close()


# -- Lists and pools -------------------------------------------------------------------------


async def test_relay_of_the_key_list_needs_no_token(tmp_path):
    listed = FakeRelay(None)
    root = tmp_path / "m"
    files = MasterFiles.make(root)
    async with running_master(root, files=files, allowed_relays=(listed.relay_id,)) as master:
        listed.client = master
        await listed.join(None)
        assert (await info(master, listed.relay_id))["enrolment"] == "listed"
        assert refusal(await FakeRelay(master).challenge(None)) == (403, "relay_not_enrolled")
    async with running_master(root, files=files) as master:  # Taken off the list.
        listed.client = master
        assert refusal(await listed.challenge(None)) == (403, "relay_not_enrolled")


async def test_service_token_stands_for_an_enrolment_token_and_not_for_the_key(master):
    relay = FakeRelay(master, enrolment_token=master.files.service_token, name="pool-1")
    await relay.join()
    assert (await info(master, "pool-1"))["enrolment"] == "pool"
    victim = await FakeRelay(master, enrolment_token=await enrol(master)).join()
    body = victim.registration() | {"enrolment_token": master.files.service_token}
    challenge = (await master.post("/v1/relays/register", body)).body
    assert refusal(await victim.verify(challenge, key=relay.key)) == (401, "invalid_signature")
    assert (await victim.heartbeat()).status == 200


# -- What is signed ----------------------------------------------------------------------------


async def test_altered_endpoints_another_master_and_a_replay_are_refused(master):
    relay = FakeRelay(master)
    challenge = (await relay.challenge()).body
    answer = await relay.verify(challenge, endpoints=["127.0.0.1:1"])
    assert refusal(answer) == (401, "invalid_signature")
    challenge = (await relay.challenge()).body
    answer = await relay.verify(challenge, master_id=b"o" * 32)
    assert refusal(answer) == (401, "invalid_signature")
    challenge = (await relay.challenge()).body
    assert (await relay.verify(challenge)).status == 201
    assert refusal(await relay.verify(challenge)) == (404, "unknown_challenge")


async def test_signature_got_by_one_master_is_worthless_at_another(master, tmp_path):
    async with running_master(tmp_path / "rogue") as rogue:
        relay = FakeRelay(rogue)
        challenge = (await FakeRelay(master, key=relay.key).challenge()).body
        pinned = (await relay.challenge()).body["master_id"]
        assert pinned != challenge["master_id"]
        # The relay signs for the root that it has pinned: the rogue's, whom it was sent to.
        relay.client = master
        from wavry_peer.protocol import base64url

        answer = await relay.verify(challenge, master_id=base64url.decode(pinned))
        assert refusal(answer) == (401, "invalid_signature")


# -- Addresses -------------------------------------------------------------------------------

INSIDE = (
    "127.0.0.1:4500", "10.1.2.3:4500", "172.16.0.1:1", "192.168.1.1:1", "100.64.0.1:4500",
    "198.18.0.1:1", "192.0.0.8:1", "[::1]:1", "[fd00::1]:4500", "[fc00::1]:1", "[fec0::1]:1",
    "[::ffff:10.0.0.1]:1", "[::ffff:127.0.0.1]:1", "[::7f00:1]:1", "[64:ff9b::a00:1]:1",
    "[64:ff9b:1::1]:1", "[2002:a00:1::1]:1", "[2002:7f00:1::]:1", "[2002:c0a8:101::1]:1",
    "[2001::1]:1", "[100::1]:1", "192.88.99.1:1",
)  # fmt: skip
EXAMPLES = ("192.0.2.1:1", "198.51.100.1:1", "203.0.113.1:1", "[2001:db8::1]:1")
OUTSIDE = ("9.9.9.9:4500", "[2a00:1450::1]:4500", "[2002:909:909::1]:1")


@pytest.mark.parametrize("endpoint", [*INSIDE, *EXAMPLES])
async def test_address_that_the_internet_does_not_reach_is_refused(tmp_path, endpoint):
    async with running_master(tmp_path, private_endpoints=False) as master:
        token = await enrol(master)
        relay = FakeRelay(master, enrolment_token=token, endpoints=("9.9.9.9:1", endpoint))
        answer = await relay.challenge()
        assert refusal(answer) == (400, "invalid_endpoint")
        assert "WAVRY_MASTER_PRIVATE_ENDPOINTS" in answer.body["message"]


@pytest.mark.parametrize("endpoint", OUTSIDE)
def test_public_address_is_good_anywhere(endpoint):
    assert check_endpoint(endpoint) == endpoint
    assert check_endpoint(endpoint, private=True, stranger=True) == endpoint


@pytest.mark.parametrize("endpoint", ["[2002:a9fe:1::1]:1", "[2002:e000:1::]:1", "[2002::1]:1"])
def test_what_is_never_good_is_not_good_inside_6to4_either(endpoint):
    with pytest.raises(Exception, match="an endpoint must not"):
        check_endpoint(endpoint, private=True)


async def test_address_of_another_enrolled_relay_is_refused(master, clock):
    owner = await FakeRelay(master, enrolment_token=await enrol(master)).join()
    thief = FakeRelay(master, endpoints=owner.endpoints)
    answer = await thief.register()
    assert refusal(answer) == (409, "endpoint_taken")
    assert "fra-1" in answer.body["message"]
    # Also where it comes in honestly, and then moves; and while the owner is silent.
    thief.endpoints = ("127.0.0.1:1",)
    await thief.join()
    thief.endpoints = ("127.0.0.1:1", *owner.endpoints)
    clock.advance(3600)
    assert refusal(await thief.register()) == (409, "endpoint_taken")
    await owner.join()
    assert (await info(master, "fra-1"))["state"] == "ACTIVE"
    assert (await master.call("DELETE", "/v1/relays/fra-1", token="admin")).status == 200
    assert (await thief.register()).status == 201


# -- Names -----------------------------------------------------------------------------------


async def test_relay_is_found_by_name_id_and_the_start_of_its_id(master):
    relay = await FakeRelay(master, enrolment_token=await enrol(master)).join()
    other = await FakeRelay(master).join()
    for text in ("fra-1", relay.relay_id, relay.relay_id[:14], relay.relay_id[4:14]):
        assert (await info(master, text))["relay_id"] == relay.relay_id
    answer = await master.get("/v1/relays/rly-", token="admin")
    assert refusal(answer) == (404, "unknown_relay"), "that begins every id"
    for text in ("FRA-1", "fra", relay.relay_id[4:7], "rly-zz", relay.relay_id + "0"):
        assert (await master.get(f"/v1/relays/{text}", token="admin")).status == 404
    path = f"/v1/admin/relays/{other.relay_id[:14]}/drain"
    assert (await master.post(path, token="admin")).body["relay_id"] == other.relay_id


async def test_start_of_two_ids_names_both(master):
    relays = [await FakeRelay(master).join() for _ in range(17)]  # 16 first digits.
    starts = [relay.relay_id[:5] for relay in relays]
    twice = next(start for start in starts if starts.count(start) > 1)
    answer = await master.post(f"/v1/admin/relays/{twice}/drain", token="admin")
    assert refusal(answer) == (409, "ambiguous_relay")
    named = [relay.relay_id for relay in relays if relay.relay_id.startswith(twice)]
    assert all(relay_id in answer.body["message"] for relay_id in named[:5])
    states = {
        row["state"] for row in (await master.get("/v1/relays", token="admin")).body["relays"]
    }
    assert states == {"ACTIVE"}, "nothing was done"


async def test_names_are_unique_and_never_like_ids(master):
    await FakeRelay(master, enrolment_token=await enrol(master)).join()
    other = await FakeRelay(master).join()
    path = f"/v1/admin/relays/{other.relay_id}/rename"
    answer = await master.post(path, {"name": "fra-1"}, token="admin")
    assert refusal(answer) == (409, "name_taken")
    await enrol(master, "fra-3")
    assert refusal(await master.post(path, {"name": "fra-3"}, token="admin")) == (409, "name_taken")
    for bad in ("rly-0123", "Fra", "", "a" * 33, "-a", "a b", "a/b"):
        assert (await master.post(path, {"name": bad}, token="admin")).status == 400
    assert (await master.post(path, {"name": "fra-2"}, token="admin")).body["name"] == "fra-2"
    wish = FakeRelay(master, name="fra-2")
    assert refusal(await wish.register()) == (409, "name_taken")


async def test_name_is_kept_over_registrations_and_restarts(tmp_path):
    files = MasterFiles.make(tmp_path)
    async with running_master(tmp_path, files=files) as master:
        relay = await FakeRelay(master).join()
        path = f"/v1/admin/relays/{relay.relay_id}/rename"
        assert (await master.post(path, {"name": "fra-9"}, token="admin")).status == 200
        await relay.join()
    async with running_master(tmp_path, files=files) as master:
        assert (await info(master, "fra-9"))["relay_id"] == relay.relay_id


async def test_removed_relay_needs_a_new_token(master):
    relay = await FakeRelay(master, enrolment_token=await enrol(master)).join()
    gone = (await master.call("DELETE", "/v1/relays/fra-1", token="admin")).body
    assert gone == {"relay_id": relay.relay_id, "name": "fra-1", "enrolment": "token"}
    assert (await relay.heartbeat()).status == 404
    assert refusal(await relay.challenge()) == (403, "enrolment_token_invalid")
    relay.enrolment_token = await enrol(master)
    await relay.join()


# -- What the operator reads, and old databases --------------------------------------------------


async def test_refused_registrations_are_told_once_a_minute_and_network(master, clock):
    for _ in range(20):
        await FakeRelay(master).challenge(None)
    rows = []
    async with asyncio.timeout(10):
        while not rows:
            rows = [row for row in await audit(master) if row[1] == "relay_refused"]
            await asyncio.sleep(0.05)
    assert [row[3] for row in rows] == ["relay_not_enrolled"]
    assert rows[0][0].startswith("address:")
    assert rows[0][2].startswith("rly-")


async def test_relays_of_an_old_database_count_as_enrolled(tmp_path):
    files = MasterFiles.make(tmp_path)
    files.data_dir.mkdir()
    path = files.data_dir / DATABASE_FILE
    old = await Database.open(path, MIGRATIONS[:6])
    relays = [FakeRelay(None), FakeRelay(None)]
    for at, relay in enumerate(relays):
        row = {
            "relay_id": relay.relay_id, "public_key": relay.registration()["public_key"],
            "endpoints": f'["127.0.0.1:{at + 1}"]', "region": None, "asn": None,
            "max_sessions": 5, "max_bitrate_kbps": 0, "features": "[]", "version": "1",
            "state": "ACTIVE", "undrain_pending": 0, "token_hash": "h", "registered_at_s": 1,
            "last_heartbeat_at_s": 1,
        }  # fmt: skip
        await old.run(lambda db, row=row: db.table("relays").insert(row))
    # Two ids that begin alike get two names.
    await old.run(
        lambda db: db.table("relays").insert(
            {**row, "relay_id": relays[0].relay_id[:14] + "0" * 14}
        )
    )
    await old.close()
    async with running_master(tmp_path, files=files) as master:
        known = (await master.get("/v1/relays", token="admin")).body["relays"]
        assert {row["enrolment"] for row in known} == {Enrolment.APPROVED}
        assert len({row["name"] for row in known}) == 3
        for relay in relays:
            relay.client = master
            await relay.join(None)
        assert (await info(master, relays[0].relay_id))["state"] == "ACTIVE"
