"""An open door: strangers get a small share, steer nothing, stop nothing, read no names."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.control.lease_parts import parties
from support.control.master import FakeClock, FakeRelay, MasterFiles, client_for, running_master

from wavry_cp.app.refusal import RefusedError
from wavry_cp.master.leases.selection import ProbationShare
from wavry_cp.master.relays.strangers import (
    KEEP_SILENT_S,
    MAX_PER_NETWORK,
    MAX_STRANGERS,
    PICK_SHARE,
    network_of,
    to_evict,
)

PAIRS = 300
PROXY = {"trusted_proxies": ("127.0.0.0/8",)}


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
async def master(tmp_path, clock):
    async with running_master(tmp_path, clock.clock(), open_enrolment=True, **PROXY) as client:
        yield client


class Stranger(FakeRelay):
    """A relay that nobody enrolled, which calls from a network of its own behind a proxy."""

    def __init__(self, client, number, **fields):
        endpoints = (f"203.0.113.{number % 250 + 1}:{4500 + number}",)
        host = f"198.18.{number // 4 % 256}.{number % 4 + 1}"
        super().__init__(client, **{"endpoints": endpoints, "host": host, **fields})

    async def challenge(self, token=None):
        return await super().challenge(token)

    async def register(self, token=None):
        challenge = await self.challenge(token)
        return challenge if challenge.status != 200 else await self.verify(challenge.body)

    async def join(self, token=None, **fields):
        return await super().join(token, **fields)


def refusal(answer):
    return answer.status, answer.body["error"]


async def row(master, relay):
    return (await master.get(f"/v1/relays/{relay.relay_id}", token="admin")).body


async def asked_for(master, pairs, prefix="u"):
    """The relays of so many lease pairs, and every address that was named."""
    chosen, addresses = [], set()
    for at in range(pairs):
        body = parties(f"{prefix}{at}a", f"{prefix}{at}b")
        answer = await master.post("/v1/leases", body, token="service")
        assert answer.status == 201, answer
        chosen.append(answer.body["relay"]["relay_id"])
        for named in (answer.body["relay"], answer.body.get("standby") or {"endpoints": []}):
            addresses |= set(named["endpoints"])
    return chosen, addresses


# -- Their share -----------------------------------------------------------------------------


async def test_25_strangers_get_a_small_share_whatever_they_say(master):
    honest = await FakeRelay(master).join(load_pct=99, active_sessions=500)
    strangers = [
        await Stranger(master, n, max_sessions=10_000_000).join(load_pct=0) for n in range(25)
    ]
    assert {(await row(master, one))["state"] for one in strangers} == {"PROBATION"}
    chosen, addresses = await asked_for(master, PAIRS)
    given = sum(relay_id != honest.relay_id for relay_id in chosen)
    assert 0 < given <= PAIRS * PICK_SHARE
    assert honest.endpoints[0] in addresses
    assert not any(
        a.startswith(("127.", "10.", "[::1]")) for a in addresses - set(honest.endpoints)
    )


async def test_strangers_are_no_way_out_of_a_shortage(master):
    await Stranger(master, 1).join()
    for at in range(60):
        body = parties(f"{at}a", f"{at}b")
        answer = await master.post("/v1/leases", body, token="service")
        assert refusal(answer) == (503, "no_relay_available")


@given(st.lists(st.booleans(), max_size=500), st.floats(0.001, 0.5))
def test_share_is_never_more(wishes, share):
    quota = ProbationShare(share)
    given_to = 0
    for total, wish in enumerate(wishes, 1):
        to_stranger = wish and quota.is_due
        given_to += to_stranger
        quota.note_given(to_stranger=to_stranger)
        assert given_to <= total * share + 1e-6


async def test_approved_relay_is_a_full_one_and_a_rejected_one_is_gone(master):
    relay, other = await Stranger(master, 1).join(), await Stranger(master, 2).join()
    path = f"/v1/admin/relays/{relay.relay_id}"
    answer = await master.post(f"{path}/approve", {"name": "fra-1"}, token="admin")
    assert (answer.body["state"], answer.body["name"]) == ("ACTIVE", "fra-1")
    assert set((await asked_for(master, 3))[0]) == {relay.relay_id}
    assert refusal(await master.post(f"{path}/approve", {}, token="admin")) == (409, "wrong_state")
    path = f"/v1/admin/relays/{other.relay_id}/reject"
    assert (await master.post(path, {"reason": "unknown"}, token="admin")).body["state"] == "BANNED"
    assert refusal(await other.register()) == (403, "banned")
    assert refusal(await other.heartbeat()) == (403, "banned")
    path = f"/v1/admin/relays/{relay.relay_id}/reject"
    assert refusal(await master.post(path, {}, token="admin")) == (409, "wrong_state")


async def test_closed_door_sends_the_strangers_of_before_away(tmp_path):
    files = MasterFiles.make(tmp_path)
    async with running_master(tmp_path, files=files, open_enrolment=True, **PROXY) as master:
        relay = await Stranger(master, 1).join()
    async with running_master(tmp_path, files=files, **PROXY) as master:
        assert (await master.get("/v1/relays", token="admin")).body["relays"] == []
        relay.client = master
        assert (await relay.heartbeat()).status == 404
        assert refusal(await relay.register()) == (403, "relay_not_enrolled")


async def test_stranger_becomes_enrolled_by_a_token(master):
    relay = await Stranger(master, 1).join()
    body = {"name": "fra-1", "region": "eu"}
    made = (await master.post("/v1/admin/enrolments", body, token="admin")).body
    relay.enrolment_token = made["token"]
    await relay.join()
    assert ((await row(master, relay))["state"], (await row(master, relay))["name"]) == (
        "ACTIVE", "fra-1",
    )  # fmt: skip


# -- Addresses and names ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "endpoints",
    [("127.0.0.1:1",), ("10.0.0.1:1",), ("[fd00::1]:1",), ("203.0.113.9:1", "192.168.0.1:1")],
)
async def test_stranger_never_advertises_an_inner_address(master, endpoints):
    answer = await Stranger(master, 1, endpoints=endpoints).challenge()
    assert refusal(answer) == (400, "invalid_endpoint"), "even where enrolled relays may"


async def test_stranger_has_one_address_for_each_family_and_chooses_no_name(master):
    endpoints = tuple(f"203.0.113.{n}:1" for n in range(3))
    assert refusal(await Stranger(master, 1, endpoints=endpoints).challenge()) == (
        400, "invalid_endpoint",
    )  # fmt: skip
    relay = await Stranger(master, 1, name="operator-fra-1").join()
    assert (await row(master, relay))["name"].startswith("relay-")


async def test_address_thief_gets_nothing_and_an_enrolled_relay_takes_its_own_back(master, clock):
    owner = await FakeRelay(master, endpoints=("203.0.113.9:4500",)).join()
    thief = Stranger(master, 1, endpoints=owner.endpoints)
    answer = await thief.register()
    assert refusal(answer) == (409, "endpoint_taken")
    assert owner.relay_id[:12] not in answer.body["message"]
    squatter = await Stranger(master, 2, endpoints=("203.0.113.10:4500",)).join()
    assert refusal(await Stranger(master, 3, endpoints=squatter.endpoints).register()) == (
        409, "endpoint_taken",
    )  # fmt: skip
    await FakeRelay(master, endpoints=squatter.endpoints).join()
    assert (await squatter.heartbeat()).status == 404


# -- How many are kept -----------------------------------------------------------------------


async def test_network_has_few_places_and_silent_ones_give_theirs(master, clock):
    relays = [await Stranger(master, n).join() for n in range(MAX_PER_NETWORK)]
    more = Stranger(master, 100)
    more.host = relays[0].host
    assert refusal(await more.register()) == (403, "too_many_strangers")
    await Stranger(master, 200).join()  # Another network is not hurt.
    clock.advance(60)
    for relay in relays[1:]:
        await relay.heartbeat()
    assert (await more.register()).status == 201
    assert (await master.get(f"/v1/relays/{relays[0].relay_id}", token="admin")).status == 404


def known(number, network, *, alive=True):
    return SimpleNamespace(
        record=SimpleNamespace(relay_id=f"rly-{number}"), source=network, seen_s=number, alive=alive
    )


def evicted(strangers, network):
    return to_evict(strangers, network, lambda relay: relay.alive)


def test_full_table_is_paid_for_by_who_filled_it():
    crowd = [known(n, f"n{n // 4}") for n in range(MAX_STRANGERS - 1)]
    lone = known(-1, "lone")
    table = [lone, *crowd]
    assert evicted(table[:-1], "new") is None
    gone = evicted(table, "new")
    assert gone != "rly--1", "the network that holds the most pays"
    with pytest.raises(RefusedError) as caught:
        evicted(table, "n0")
    assert caught.value.code == "too_many_strangers"
    alike = [known(n, f"n{n}") for n in range(MAX_STRANGERS)]
    with pytest.raises(RefusedError):
        evicted(alike, "new")
    alike[7].alive = False
    assert evicted(alike, "new") == "rly-7"


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("198.51.100.77", "198.51.100.0/24"),
        ("::ffff:198.51.100.77", "198.51.100.0/24"),
        ("2001:db8:1:2::3", "2001:db8:1::/48"),
        ("nonsense", "unknown"),
    ],
)
def test_source_of_strangers(host, network):
    assert network_of(host) == network


async def test_stranger_is_forgotten_when_silent_for_a_day(tmp_path, clock, monkeypatch):
    from wavry_cp.master import master as module

    monkeypatch.setattr(module, "PRUNE_INTERVAL_S", 0.01)
    async with running_master(tmp_path, clock.clock(), open_enrolment=True, **PROXY) as master:
        stranger, honest = await Stranger(master, 1).join(), await FakeRelay(master).join()
        clock.advance(KEEP_SILENT_S + 1)
        for _ in range(500):
            left = (await master.get("/v1/relays", token="admin")).body["relays"]
            if len(left) == 1:
                break
        assert [one["relay_id"] for one in left] == [honest.relay_id]
        assert (await stranger.heartbeat()).status == 404


# -- What they cannot stop or read -------------------------------------------------------------


async def test_strangers_do_not_stall_a_key_rotation(master):
    relay = await FakeRelay(master).join()
    stranger = await Stranger(master, 1).join()
    created = await master.post("/v1/admin/keys/create", {"reason": "x"}, token="admin")
    kid = created.body["kid"]
    await relay.heartbeat(held_kids=[*relay.held_kids, kid])
    await stranger.heartbeat()  # It never fetches the new key.
    status = (await master.get("/v1/admin/keys/status", token="admin")).body
    assert [one["relay_id"] for one in status["relays"]] == [relay.relay_id]
    body = {"kid": kid, "reason": "x"}
    answer = await master.post("/v1/admin/keys/activate", body, token="admin")
    assert answer.status == 200, answer
    listed = (await master.get("/v1/admin/revocations", token="admin")).body["relays"]
    assert [one["relay_id"] for one in listed] == [relay.relay_id], "nobody waits for its word"


async def test_stranger_reads_no_name_and_still_ends_the_sessions_of_a_banned_user(master):
    await FakeRelay(master, max_sessions=10_000).join()
    stranger = await Stranger(master, 1).join()
    session_id = None
    for at in range(200):
        body = parties("mallory", f"friend{at}")
        answer = (await master.post("/v1/leases", body, token="service")).body
        if answer["relay"]["relay_id"] == stranger.relay_id:
            session_id = answer["session_id"]
            break
    assert session_id is not None
    order = {"kind": "user", "value": "mallory", "reason": "x"}
    assert (await master.post("/v1/admin/bans", order, token="admin")).status == 200
    lift = {"kind": "user", "value": "mallory", "reason": "x"}
    assert (await master.post("/v1/admin/bans/lift", lift, token="admin")).status == 200
    page = (await stranger.events()).body
    assert [(one["kind"], one["value"]) for one in page["revocations"]] == [("session", session_id)]
    assert "mallory" not in json.dumps(page)
    async with stranger.stream() as ws:
        frames = [json.loads((await ws.receive()).data) for _ in range(2)]
    assert [frame["type"] for frame in frames] == ["hello", "revocation"]
    assert "mallory" not in json.dumps(frames)


async def test_what_strangers_say_counts_in_no_figure_of_the_pool(master):
    await Stranger(master, 1, max_sessions=10_000_000).join(active_sessions=9_000_000)
    async with client_for(master.url, master.files) as client:
        text = (await client.get("/metrics", token="admin")).body
    assert "wavry_master_pool_sessions_max 0.0" in text
    assert "wavry_master_pool_sessions 0.0" in text
    assert 'wavry_master_relays_enrolled{enrolment="open"} 1.0' in text
    assert 'wavry_master_relays{state="PROBATION"} 1.0' in text


async def test_who_comes_and_goes_leaves_no_row_in_the_audit_log(master):
    relay = Stranger(master, 1)
    for _ in range(5):
        await relay.join()
        path = f"/v1/relays/{relay.relay_id}"
        assert (await master.call("DELETE", path, token=relay.token)).status == 200
    assert (await master.get("/v1/admin/audit", token="admin")).body["entries"] == []
