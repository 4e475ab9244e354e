"""Leases over real HTTP: issued, opened as a relay would, moved, renewed."""

import asyncio
import uuid

import msgspec
import pytest
from support.control.master import FakeRelay

from wavry_peer.protocol import base64url, keyset, lease
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.packets import SessionId

CNF = base64url.encode(bytes(range(32)))
OTHER_CNF = base64url.encode(bytes(range(1, 33)))
ROLES = {"client": c.Role.CLIENT, "server": c.Role.SERVER}


def parties(**fields):
    return {"client": {"sub": "ann", "cnf": CNF}, "server": {"sub": "bob", "cnf": CNF}, **fields}


async def ask(master, **fields):
    return await master.post("/v1/leases", parties(**fields), token="service")


async def renew(master, session_id, role, jti):
    return await master.post(
        "/v1/leases/renew",
        {"session_id": session_id, "role": role, "jti": jti},
        token="service",
    )


async def opened(master, token):
    """The claims as a relay reads them, with the published keys and the pinned root."""
    document = await master.get("/.well-known/wavry-keys.json")
    keys = keyset.decode_keyset(
        msgspec.json.encode(document.body),
        root_public_key=base64url.decode(master.files.root_public_key),
    )
    return lease.open_lease(token.encode(), keyset.trusted_keys(keys))


async def test_each_role_gets_its_own_lease_that_the_relay_accepts(master, relay, clock):
    answer = await ask(master)
    assert answer.status == 201
    assert answer.body["relay"] == {"relay_id": relay.relay_id, "endpoints": list(relay.endpoints)}
    assert answer.body["expires_at"] == int(clock.now_s) + 300
    assert "standby" not in answer.body
    seen = {}
    for name, role in ROLES.items():
        claims = await opened(master, answer.body["leases"][name])
        lease.check_claims(
            claims,
            relay_id=relay.relay_id,
            session_id=SessionId(uuid.UUID(answer.body["session_id"]).bytes),
            role=role,
            now_ms=int(clock.now_s * 1000),
        )
        assert claims.expires_ms == answer.body["expires_at"] * 1000
        assert 0 < claims.slimit <= claims.hlimit
        seen[name] = claims
    assert (seen["client"].sub, seen["client"].cnf) == ("ann", CNF)
    assert (seen["server"].sub, seen["server"].cnf) == ("bob", CNF)
    assert seen["client"].jti != seen["server"].jti


async def test_a_relay_that_lacks_workers_gets_nothing_new_and_its_sessions_renew(master, relay):
    first = (await ask(master)).body
    jti = (await opened(master, first["leases"]["client"])).jti
    await relay.heartbeat(workers_wanted=2, workers_missing=1)
    (row,) = (await master.get("/v1/relays", token="service")).body["relays"]
    assert (row["state"], row["workers_wanted"], row["workers_missing"]) == ("DEGRADED", 2, 1)
    refused = await ask(master)
    assert (refused.status, refused.body["error"]) == (503, "no_relay_available")
    assert (await renew(master, first["session_id"], "client", str(jti))).status == 200
    await relay.heartbeat(workers_wanted=2)
    assert (await ask(master)).status == 201


async def test_only_the_service_token_asks_for_leases(master, relay):
    for token, status in ((None, 401), ("x" * 43, 401), ("admin", 403), (relay.token, 401)):
        answer = await master.post("/v1/leases", parties(), token=token)
        assert answer.status == status
        answer = await master.post("/v1/leases/renew", {}, token=token)
        assert answer.status == status


async def test_no_healthy_relay_is_an_answer_and_not_silence(master, clock):
    answer = await ask(master)
    assert (answer.status, answer.body["error"]) == (503, "no_relay_available")
    assert "Retry-After" in answer.headers
    relay = FakeRelay(master)
    await relay.register()
    assert (await ask(master)).status == 503  # NEW: it has not reported yet
    await relay.heartbeat(state="starting")
    assert (await ask(master)).status == 503
    await relay.heartbeat(held_kids=[])
    assert (await ask(master)).status == 503  # it would answer UNKNOWN_KEY
    await relay.heartbeat(active_sessions=1000)
    assert (await ask(master)).status == 503  # full
    await relay.heartbeat()
    assert (await ask(master)).status == 201
    clock.advance(17)
    assert (await ask(master)).status == 503  # silent


async def test_draining_relay_gets_no_new_session_but_keeps_the_old(master, relay):
    body = (await ask(master)).body
    await master.post(f"/v1/admin/relays/{relay.relay_id}/drain", token="admin")
    assert (await ask(master)).status == 503
    jti = (await opened(master, body["leases"]["client"])).jti
    assert (await renew(master, body["session_id"], "client", jti)).status == 200
    # Nowhere else to go: better the draining relay than none.
    again = await ask(master, session_id=body["session_id"])
    assert again.body["relay"]["relay_id"] == relay.relay_id
    other = await FakeRelay(master).join()
    moved = await ask(master, session_id=body["session_id"])
    assert moved.body["relay"]["relay_id"] == other.relay_id


async def test_relay_that_drains_by_itself_gets_no_new_session(master, relay):
    await relay.heartbeat(state="draining")
    assert (await ask(master)).status == 503


async def test_region_is_preferred_and_another_serves_where_it_has_no_room(master):
    near = await FakeRelay(master, region="eu").join()
    far = await FakeRelay(master, region="us").join()
    for _ in range(8):
        assert (await ask(master, region="eu")).body["relay"]["relay_id"] == near.relay_id
    assert (await ask(master, region="eu")).body["standby"]["relay_id"] == far.relay_id
    await near.heartbeat(active_sessions=1000)
    assert (await ask(master, region="eu")).body["relay"]["relay_id"] == far.relay_id
    assert (await ask(master, region="mars")).status == 201


async def test_live_session_stays_and_moves_only_when_its_relay_is_excluded(master, relay):
    first = (await ask(master, session_id=str(uuid.uuid4()))).body
    other = await FakeRelay(master).join()
    for _ in range(10):
        again = (await ask(master, session_id=first["session_id"])).body
        assert again["relay"]["relay_id"] == relay.relay_id
        assert again["standby"]["relay_id"] == other.relay_id
    moved = await ask(master, session_id=first["session_id"], exclude_relays=[relay.relay_id])
    assert moved.status == 201
    assert moved.body["session_id"] == first["session_id"]
    assert moved.body["relay"]["relay_id"] == other.relay_id
    claims = await opened(master, moved.body["leases"]["server"])
    assert (claims.rid, claims.sub) == (other.relay_id, "bob")
    nowhere = await ask(
        master,
        session_id=first["session_id"],
        exclude_relays=[relay.relay_id, other.relay_id],
    )
    assert nowhere.status == 503


@pytest.mark.parametrize(
    "change",
    [
        {"client": {"sub": "eve", "cnf": CNF}},
        {"server": {"sub": "eve", "cnf": CNF}},
        {"client": {"sub": "bob", "cnf": CNF}, "server": {"sub": "ann", "cnf": CNF}},
        {"client": {"sub": "ann", "cnf": OTHER_CNF}},
    ],
)
async def test_live_session_never_passes_to_others_or_other_keys(master, relay, clock, change):
    first = (await ask(master)).body
    answer = await ask(master, session_id=first["session_id"], **change)
    assert (answer.status, answer.body["error"]) == (409, "session_conflict")
    clock.advance(301)
    await relay.heartbeat()
    assert (await ask(master, session_id=first["session_id"], **change)).status == 201


async def test_two_users_are_required(master, relay):
    answer = await ask(master, server={"sub": "ann", "cnf": CNF})
    assert (answer.status, answer.body["error"]) == (400, "same_party")


async def test_key_binding_must_be_a_key(master, relay):
    answer = await ask(master, server={"sub": "bob", "cnf": "_" * 43})
    assert (answer.status, answer.body["error"]) == (400, "invalid_cnf")


@pytest.mark.parametrize("role", ROLES)
async def test_lease_without_a_key_is_never_issued(master, relay, role):
    for server in ({"sub": "eve"}, {"sub": "eve", "cnf": None}):
        answer = await ask(master, **{role: server})
        assert (answer.status, answer.body["error"]) == (400, "invalid_body")
        assert "cnf" in answer.body["message"]


@pytest.mark.parametrize(("ttl_s", "status"), [(59, 400), (60, 201), (900, 201), (901, 400)])
async def test_life_of_a_lease_is_bounded(master, relay, clock, ttl_s, status):
    answer = await ask(master, ttl_s=ttl_s)
    assert answer.status == status
    if status == 201:
        assert answer.body["expires_at"] == int(clock.now_s) + ttl_s


async def test_limits_never_exceed_what_the_relay_offers(master):
    await FakeRelay(master, max_bitrate_kbps=700).join()
    claims = await opened(master, (await ask(master)).body["leases"]["client"])
    assert (claims.slimit, claims.hlimit) == (700, 700)


async def test_longest_names_still_fit_a_lease(master, relay):
    names = {
        "client": {"sub": "\U0001f511" * 64, "cnf": CNF},
        "server": {"sub": "b" * 64, "cnf": CNF},
    }
    answer = await ask(master, **names)
    if answer.status == 201:
        assert len(answer.body["leases"]["client"]) <= c.MAX_TOKEN_BYTES
    else:
        assert (answer.status, answer.body["error"]) == (400, "lease_too_large")


async def test_renewal_changes_jti_and_expiry_and_nothing_else(master, relay, clock):
    body = (await ask(master, ttl_s=120)).body
    old = await opened(master, body["leases"]["client"])
    clock.advance(96)
    await relay.heartbeat()
    answer = await renew(master, body["session_id"], "client", old.jti)
    assert answer.status == 200
    new = await opened(master, answer.body["lease"])
    assert new.jti != old.jti
    assert new.expires_ms == answer.body["expires_at"] * 1000 == (int(clock.now_s) + 120) * 1000
    for name in ("sid", "sub", "role", "rid", "cnf", "kid", "slimit", "hlimit"):
        assert getattr(new, name) == getattr(old, name)


async def test_lost_answer_gets_the_same_lease_again_and_only_for_a_minute(master, relay, clock):
    body = (await ask(master)).body
    jti = (await opened(master, body["leases"]["server"])).jti
    first = await renew(master, body["session_id"], "server", jti)
    clock.advance(60)
    await relay.heartbeat()
    again = await renew(master, body["session_id"], "server", jti)
    assert (again.status, again.body) == (200, first.body)
    clock.advance(1)
    await relay.heartbeat()
    late = await renew(master, body["session_id"], "server", jti)
    assert (late.status, late.body["error"]) == (409, "stale_jti")
    current = (await opened(master, first.body["lease"])).jti
    assert (await renew(master, body["session_id"], "server", current)).status == 200


async def test_renewals_at_once_agree_on_one_lease(master, relay):
    body = (await ask(master)).body
    jti = (await opened(master, body["leases"]["client"])).jti
    answers = await asyncio.gather(
        *(renew(master, body["session_id"], "client", jti) for _ in range(8))
    )
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body["lease"] for answer in answers}) == 1


async def test_renewal_of_one_role_does_not_touch_the_other(master, relay):
    body = (await ask(master)).body
    jti = {name: (await opened(master, body["leases"][name])).jti for name in ROLES}
    assert (await renew(master, body["session_id"], "server", jti["client"])).status == 409
    assert (await renew(master, body["session_id"], "client", jti["client"])).status == 200
    assert (await renew(master, body["session_id"], "server", jti["server"])).status == 200


async def test_renewal_that_cannot_be_says_why(master, relay, clock):
    nobody = str(uuid.uuid4())
    answer = await renew(master, nobody, "client", nobody)
    assert (answer.status, answer.body["error"]) == (404, "unknown_session")
    body = (await ask(master, ttl_s=60)).body
    answer = await renew(master, body["session_id"], "client", nobody)
    assert (answer.status, answer.body["error"]) == (409, "stale_jti")
    jti = (await opened(master, body["leases"]["client"])).jti
    clock.advance(17)
    answer = await renew(master, body["session_id"], "client", jti)
    assert (answer.status, answer.body["error"]) == (409, "relay_unavailable")
    await relay.heartbeat()
    clock.advance(43)
    await relay.heartbeat()
    answer = await renew(master, body["session_id"], "client", jti)
    assert (answer.status, answer.body["error"]) == (409, "lease_expired")


async def test_moving_makes_the_old_leases_stale(master, relay):
    body = (await ask(master)).body
    jti = (await opened(master, body["leases"]["client"])).jti
    await FakeRelay(master).join()
    await ask(master, session_id=body["session_id"], exclude_relays=[relay.relay_id])
    assert (await renew(master, body["session_id"], "client", jti)).status == 409


async def test_sessions_spread_between_heartbeats(master):
    relays = [await FakeRelay(master).join() for _ in range(4)]
    picked = [(await ask(master)).body["relay"]["relay_id"] for _ in range(80)]
    assert all(picked.count(relay.relay_id) >= 8 for relay in relays)


async def test_no_session_is_given_beyond_the_capacity_between_heartbeats(master):
    await FakeRelay(master, max_sessions=3).join()
    assert [(await ask(master)).status for _ in range(5)] == [201, 201, 201, 503, 503]


async def test_nil_session_id_is_refused(master, relay):
    answer = await ask(master, session_id=str(uuid.UUID(int=0)))
    assert (answer.status, answer.body["error"]) == (400, "invalid_session")
