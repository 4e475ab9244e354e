"""Relays register, report, are listed, drained and removed — over real HTTP."""

import asyncio
from dataclasses import replace

import pytest
from support.control.lease_parts import parties
from support.control.master import FakeClock, FakeRelay, MasterFiles, running_master

from wavry_cp.master.master import DATABASE_FILE
from wavry_cp.master.relays import rules as registry
from wavry_cp.store.sqlite.master import MasterSqlite
from wavry_peer.protocol import ed25519
from wavry_peer.protocol.relay_terms import RelayState


async def state_of(master, relay):
    answer = await master.get(f"/v1/relays/{relay.relay_id}", token="service")
    assert answer.status == 200
    return answer.body["state"]


async def test_relay_registers_by_signing_the_challenge(master):
    relay = FakeRelay(master, region="eu")
    answer = await relay.register()
    assert answer.status == 201
    assert len(answer.body["relay_token"]) >= 43
    assert answer.body["heartbeat_interval_ms"] == 5000
    keys = (await master.get("/.well-known/wavry-keys.json")).body
    assert answer.body["keyset"] == keys
    assert answer.body["master_key_id"] == keys["keys"][0]["kid"]
    assert answer.body["master_public_key"] == keys["keys"][0]["public_key"]
    assert await state_of(master, relay) == "NEW"
    assert (await relay.heartbeat(load_pct=12.5, active_sessions=3)).body == {}
    row = (await master.get("/v1/relays", token="admin")).body["relays"][0]
    assert row["state"] == "ACTIVE"
    assert (row["load_pct"], row["active_sessions"], row["region"]) == (12.5, 3, "eu")


async def test_challenge_works_once_and_only_for_its_key(master):
    relay = FakeRelay(master)
    challenge = (await relay.challenge()).body
    wrong = ed25519.SigningKey.from_seed(bytes(32))
    answer = await relay.verify(challenge, wrong)
    assert (answer.status, answer.body["error"]) == (401, "invalid_signature")
    # The failed attempt used it up: no guessing against one challenge.
    answer = await relay.verify(challenge)
    assert (answer.status, answer.body["error"]) == (404, "unknown_challenge")
    challenge = (await relay.challenge()).body
    assert (await relay.verify(challenge)).status == 201
    assert (await relay.verify(challenge)).status == 404


async def test_challenge_expires_after_a_minute(master, clock):
    relay = FakeRelay(master)
    challenge = (await relay.challenge()).body
    clock.advance(60)
    assert (await relay.verify(challenge)).status == 404


async def test_relay_id_must_be_derived_from_the_key(master):
    mine, other = FakeRelay(master), FakeRelay(master)
    body = mine.registration() | {"relay_id": other.relay_id}
    answer = await master.post("/v1/relays/register", body)
    assert (answer.status, answer.body["error"]) == (400, "invalid_relay_id")


@pytest.mark.parametrize(
    "endpoint",
    [
        "0.0.0.0:4500",
        "[::]:4500",
        "[::ffff:0.0.0.0]:4500",
        "0.1.2.3:4500",
        "224.0.0.1:4500",
        "[ff02::1]:4500",
        "255.255.255.255:4500",
        "169.254.1.1:4500",
        "[fe80::1%eth0]:4500",
        "203.0.113.7:0",
        "203.0.113.7",
        "relay.example:4500",
        "203.0.113.7:99999",
    ],
)
async def test_endpoint_that_peers_cannot_use_is_refused(master, endpoint):
    relay = FakeRelay(master, endpoints=("127.0.0.1:4500", endpoint))
    answer = await relay.challenge()
    assert (answer.status, answer.body["error"]) == (400, "invalid_endpoint")


async def test_endpoints_are_kept_in_canonical_form(master):
    relay = FakeRelay(master, endpoints=("[2001:DB8:0::7]:4500", "[::ffff:192.0.2.1]:1"))
    await relay.register()
    info = (await master.get(f"/v1/relays/{relay.relay_id}", token="admin")).body
    assert info["endpoints"] == ["[2001:db8::7]:4500", "192.0.2.1:1"]


async def test_heartbeat_needs_the_relays_own_token(master):
    relay, other = await FakeRelay(master).join(), await FakeRelay(master).join()
    answer = await relay.heartbeat(token=other.token)
    assert (answer.status, answer.body["error"]) == (401, "invalid_relay_token")
    assert "WWW-Authenticate" in answer.headers
    answer = await relay.heartbeat(token="service")
    assert answer.status == 401
    answer = await relay.heartbeat(relay_id="rly-" + "0" * 24)
    assert (answer.status, answer.body["error"]) == (404, "unknown_relay")


async def test_registering_again_makes_the_old_token_worthless(master):
    relay = await FakeRelay(master).join()
    old = relay.token
    await relay.register()
    assert relay.token != old
    assert (await relay.heartbeat(token=old)).status == 401
    assert (await relay.heartbeat()).status == 200


async def test_silent_relay_is_offline_without_any_further_message(master, clock):
    relay = await FakeRelay(master).join()
    clock.advance(15.5)
    assert await state_of(master, relay) == "ACTIVE"
    clock.advance(1)
    assert await state_of(master, relay) == "OFFLINE"
    await relay.heartbeat()
    assert await state_of(master, relay) == "ACTIVE"


async def test_drain_survives_registration_and_is_ordered_in_each_heartbeat(master):
    relay = await FakeRelay(master).join()
    answer = await master.post(f"/v1/admin/relays/{relay.relay_id}/drain", token="admin")
    assert (answer.status, answer.body["state"]) == (200, "DRAINING")
    for _ in range(2):
        assert (await relay.heartbeat()).body == {"commands": [{"type": "drain"}]}
    assert (await relay.heartbeat(state="draining")).body == {}
    await relay.register()
    assert await state_of(master, relay) == "DRAINING"
    await relay.heartbeat()
    assert await state_of(master, relay) == "DRAINING"


async def test_undrain_is_ordered_until_the_relay_is_ready(master):
    relay = await FakeRelay(master).join()
    path = f"/v1/admin/relays/{relay.relay_id}"
    await master.post(f"{path}/drain", token="admin")
    await relay.heartbeat(state="draining")
    await master.post(f"{path}/undrain", token="admin")
    for _ in range(2):
        assert (await relay.heartbeat(state="draining")).body == {"commands": [{"type": "undrain"}]}
    assert (await relay.heartbeat()).body == {}
    # A relay that now drains by itself (its own SIGTERM) is not told otherwise.
    assert (await relay.heartbeat(state="draining")).body == {}
    assert await state_of(master, relay) == "DRAINING"


async def test_deregistering_does_not_shake_off_a_drain(master):
    relay = await FakeRelay(master).join()
    path = f"/v1/relays/{relay.relay_id}"
    await master.post(f"/v1/admin{path[3:]}/drain", token="admin")
    assert (await master.call("DELETE", path, token=relay.token)).status == 200
    assert (await relay.heartbeat()).status == 404
    await relay.join()
    assert await state_of(master, relay) == "DRAINING"


async def test_relay_and_operator_can_deregister_nobody_else(master):
    relay, other = await FakeRelay(master).join(), await FakeRelay(master).join()
    path = f"/v1/relays/{relay.relay_id}"
    assert (await master.call("DELETE", path)).status == 401
    assert (await master.call("DELETE", path, token=other.token)).status == 401
    assert (await master.call("DELETE", path, token="service")).status == 403
    assert (await master.call("DELETE", path, token=relay.token)).status == 200
    assert (await master.get(path, token="admin")).status == 404
    path = f"/v1/relays/{other.relay_id}"
    assert (await master.call("DELETE", path, token="admin")).status == 200
    assert (await other.heartbeat()).status == 404


async def test_admin_acts_are_in_the_audit_log(master, clock):
    relay = await FakeRelay(master).join()
    path = f"/v1/admin/relays/{relay.relay_id}"
    await master.post(f"{path}/drain", token="admin")
    clock.advance(5)
    await master.post(f"{path}/undrain", token="admin")
    await master.call("DELETE", f"/v1/relays/{relay.relay_id}", token="admin")
    entries = (await master.get("/v1/admin/audit?only=acts", token="admin")).body["entries"]
    assert [entry["action"] for entry in entries] == ["drain", "undrain", "remove"]
    assert {entry["who"] for entry in entries} == {"admin"}
    assert {entry["target"] for entry in entries} == {relay.relay_id}
    assert entries[1]["at"] - entries[0]["at"] == 5


async def test_service_token_never_replaces_a_relay_without_its_key(master, clock):
    relay = await FakeRelay(master).join()
    thief = FakeRelay(master)
    for silent_s in (0, 60):
        clock.advance(silent_s)  # Alive or OFFLINE: the key is asked for.
        challenge = await relay.challenge(token="service")
        assert (challenge.status, challenge.body.get("relay_token")) == (200, None)
        answer = await relay.verify(challenge.body, key=thief.key)
        assert (answer.status, answer.body["error"]) == (401, "invalid_signature")
    assert (await relay.heartbeat()).status == 200
    body = thief.registration() | {"relay_id": relay.relay_id}
    answer = await master.post("/v1/relays/register", body, token="service")
    assert (answer.status, answer.body["error"]) == (400, "invalid_relay_id")


@pytest.mark.parametrize("token", ["admin", "x" * 43])
async def test_registration_with_a_wrong_bearer_is_refused(master, token):
    assert (await FakeRelay(master).challenge(token=token)).status in (401, 403)


async def test_relay_with_old_keys_is_told_to_refresh(master):
    relay = FakeRelay(master)
    await relay.register()
    want = {"commands": [{"type": "refresh_keys"}]}
    assert (await relay.heartbeat(held_kids=[])).body == want
    assert (await relay.heartbeat(keyset_serial=0)).body == want
    assert (await relay.heartbeat()).body == {}


async def test_registration_is_limited_by_address_and_says_when_to_retry(tmp_path):
    clock = FakeClock()
    async with running_master(tmp_path, clock.clock(), register_per_minute=3) as client:
        relay = await FakeRelay(client).join()  # It is known from here on.
        clock.advance(60)
        for _ in range(3):
            assert (await relay.challenge(None)).status == 200
        # A made-up header changes nothing, as no proxy is trusted.
        answer = await client.post(
            "/v1/relays/register", relay.registration(), headers={"X-Forwarded-For": "192.0.2.9"}
        )
        assert (answer.status, answer.body["error"]) == (429, "rate_limited")
        assert int(answer.headers["Retry-After"]) >= 20
        assert (await relay.challenge(token="service")).status == 200
        clock.advance(int(answer.headers["Retry-After"]))
        assert (await relay.challenge(None)).status == 200


async def test_trusted_proxy_names_the_client(tmp_path):
    async with running_master(
        tmp_path, register_per_minute=1, trusted_proxies=("127.0.0.0/8",)
    ) as client:
        relay = FakeRelay(client)

        async def register(forwarded):
            return (
                await client.post(
                    "/v1/relays/register",
                    relay.registration(),
                    headers={"X-Forwarded-For": forwarded},
                )
            ).status

        assert await register("198.51.100.1") == 403
        assert await register("198.51.100.1") == 429
        # The leftmost address is what the client wrote; only the rightmost is the proxy's word.
        assert await register("203.0.113.50, 198.51.100.1") == 429
        assert await register("198.51.100.2") == 403


async def test_registrations_of_one_relay_at_once_leave_one_valid_token(master):
    relay = FakeRelay(master)
    challenges = [(await relay.challenge()).body for _ in range(5)]
    answers = await asyncio.gather(*(relay.verify(challenge) for challenge in challenges))
    tokens = [answer.body["relay_token"] for answer in answers]
    statuses = [(await relay.heartbeat(token=token)).status for token in tokens]
    assert sorted(statuses) == [200, 401, 401, 401, 401]


async def test_ban_is_not_shaken_off_by_anything_that_a_relay_can_do(tmp_path):
    files = MasterFiles.make(tmp_path)
    async with running_master(tmp_path, files=files) as master:
        relay = await FakeRelay(master).join()
    store = await MasterSqlite.open(files.data_dir / DATABASE_FILE)
    (record,) = await store.relays()
    await store.save_relay(replace(record, state=RelayState.BANNED))
    await store.close()
    async with running_master(tmp_path, files=files) as master:
        relay.client = master
        path = f"/v1/relays/{relay.relay_id}"
        for answer in (
            await relay.heartbeat(),
            await relay.challenge(),
            await relay.challenge(token="service"),
        ):
            assert (answer.status, answer.body["error"]) == (403, "banned")
        body = parties("a", "b")
        assert (await master.post("/v1/leases", body, token="service")).status == 503
        assert (await master.call("DELETE", path, token=relay.token)).status == 200
        assert (await relay.challenge()).body["error"] == "banned"
        assert (await master.call("DELETE", path, token="admin")).body["state"] == "BANNED"
        assert (await relay.challenge()).body["error"] == "banned"
        assert await state_of(master, relay) == "BANNED"


async def test_challenge_given_before_a_ban_is_worth_nothing_after_it(master, monkeypatch):
    relay = await FakeRelay(master).join()
    challenge = (await relay.challenge()).body
    banned = registry.transition

    def ban(state, event):
        return banned(RelayState.BANNED, event)

    monkeypatch.setattr(registry, "transition", ban)
    answer = await relay.verify(challenge)
    assert (answer.status, answer.body["error"]) == (403, "banned")
