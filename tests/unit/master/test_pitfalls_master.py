"""Mistakes seen in the field that the master must not make (one test for each)."""

import hashlib
import re
import sqlite3

import pytest
from support.control.lease_parts import parties
from support.control.master import (
    FakeClock,
    FakeRelay,
    MasterFiles,
    MasterProcess,
    client_for,
    running_master,
)

from wavry_cp.master.app import make_app
from wavry_cp.master.enrolment.endpoints import check_endpoint
from wavry_cp.master.master import open_master

CLIENT = "198.51.100.77"
PARTIES = parties()


async def test_pitfall_limiter_key_has_nothing_that_a_client_can_vary(tmp_path):
    clock = FakeClock()
    async with running_master(tmp_path, clock.clock(), register_per_minute=2) as master:
        path, verify = "/v1/relays/register", "/v1/relays/register/verify"
        body = FakeRelay(master, enrolment_token=master.files.service_token).registration()
        assert (await master.post(path, body)).status == 200
        assert (await master.post(path, body)).status == 200
        answer = {"challenge_id": "0" * 36, "signature": "A" * 86}
        for variant in (path, f"{path}?a=1", f"{path}?b=2", path.replace("relays", "rel%61ys")):
            other = FakeRelay(master, endpoints=("203.0.113.7:4500",)).registration()
            headers = {"User-Agent": variant, "X-Real-IP": "192.0.2.9"}
            assert (await master.post(variant, other, headers=headers)).status == 429, variant
        # Both halves of a registration draw on one allowance: the path is not in the key.
        assert (await master.post(verify, answer)).status == 429
        assert (await master.post(f"{verify}?c=3", answer)).status == 429


async def test_pitfall_open_calls_are_limited_by_address_alone(tmp_path):
    clock = FakeClock()
    path = "/.well-known/wavry-keys.json"
    async with running_master(tmp_path, clock.clock()) as master:
        statuses = [(await master.get(f"{path}?n={n}")).status for n in range(202)]
        assert statuses == [200] * 200 + [429] * 2
        assert (await master.get(path, headers={"X-Forwarded-For": CLIENT})).status == 429


async def test_pitfall_nothing_unauthenticated_steers_selection(master):
    relay, other = await FakeRelay(master).join(), await FakeRelay(master).join()
    lie = {"load_pct": 100.0, "active_sessions": 1000, "packet_loss_pct": 100.0}
    before = (await master.get("/v1/relays", token="service")).body
    for token in ("", other.token, "x" * 43, "service", "admin"):
        assert (await relay.heartbeat(token=token, **lie)).status == 401
        assert (await relay.heartbeat(token=token, state="draining")).status == 401
    assert (await master.get("/v1/relays", token="service")).body == before


async def test_pitfall_no_call_that_changes_something_is_open(tmp_path):
    """A new route without a credential (feedback, revocation, orders) fails here."""
    async with (
        running_master(tmp_path) as master,
        open_master(MasterFiles.make(tmp_path / "twin").config()) as twin,
    ):
        app = make_app(twin)
        routes = {
            (route.method, route.resource.canonical)
            for route in app.router.routes()
            if route.resource is not None and route.method not in {"GET", "HEAD"}
        }
        assert ("POST", "/v1/leases") in routes
        # Registration is open on purpose: the relay's own key authenticates it.
        routes -= {("POST", "/v1/relays/register"), ("POST", "/v1/relays/register/verify")}
        relay = await FakeRelay(master).join()
        beat = {"relay_id": relay.relay_id, "load_pct": 1.0, "active_sessions": 0, "state": "ready"}
        beat |= {"bandwidth_in_kbps": 0, "bandwidth_out_kbps": 0, "packet_loss_pct": 0.0}
        bodies = {"/v1/relays/heartbeat": {**beat, "held_kids": [], "keyset_serial": 0}}
        for method, template in sorted(routes):
            path = template.replace("{relay_id}", relay.relay_id)
            path = re.sub(r"\{[a-z_]+\}", "somebody", path)
            for token in (None, "x" * 43):
                answer = await master.call(method, path, bodies.get(path, {}), token=token)
                assert answer.status == 401, (method, path, answer)


@pytest.mark.parametrize(
    "endpoint",
    [
        "0.0.0.1:4500",  # not the text of the wildcard, and yet it stands for this host
        "[::ffff:0.0.0.0]:4500",
        "[0:0:0:0:0:0:0:0]:4500",
        "[::ffff:224.0.0.1]:4500",
        "[::ffff:169.254.1.1]:4500",
        "[::ffff:255.255.255.255]:4500",
    ],
)
async def test_pitfall_addresses_are_judged_as_numbers_and_not_by_prefix(master, endpoint):
    answer = await FakeRelay(master, endpoints=(endpoint,)).challenge()
    assert (answer.status, answer.body["error"]) == (400, "invalid_endpoint")


@pytest.mark.parametrize("endpoint", ["22.4.0.1:4500", "[fe8::1]:4500", "169.25.4.1:4500"])
def test_pitfall_good_address_that_only_looks_like_a_bad_one(endpoint):
    assert check_endpoint(endpoint, private=True) == endpoint


async def test_pitfall_relay_without_the_signing_key_gets_no_session(master):
    """A key change must not need all relays at the same second: who lacks the key waits."""
    behind = await FakeRelay(master).join(held_kids=["another"])
    answer = await master.post("/v1/leases", PARTIES, token="service")
    assert (answer.status, answer.body["error"]) == (503, "no_relay_available")
    ahead = await FakeRelay(master).join()
    answer = await master.post("/v1/leases", PARTIES, token="service")
    assert (answer.status, answer.body["relay"]["relay_id"]) == (201, ahead.relay_id)
    assert (await behind.heartbeat()).status == 200


async def test_pitfall_no_address_of_a_client_at_rest_neither_raw_nor_hashed(tmp_path):
    hashes = {
        hashlib.new(name, form).hexdigest()
        for name in ("md5", "sha1", "sha256", "blake2b", "blake2s")
        for form in (CLIENT.encode(), bytes(map(int, CLIENT.split("."))))
    }
    environ = {"WAVRY_MASTER_TRUSTED_PROXIES": "127.0.0.0/8", "WAVRY_LOG_LEVEL": "debug"}
    headers = {"X-Forwarded-For": CLIENT}
    with MasterProcess(tmp_path, **environ) as process:
        async with client_for(process.url, process.files) as client:
            relay = FakeRelay(client, enrolment_token=client.files.service_token)
            challenge = await client.post(
                "/v1/relays/register", relay.registration(), headers=headers
            )
            assert challenge.status == 200
            assert (await relay.verify(challenge.body)).status == 201
            assert (await relay.heartbeat()).status == 200
            issued = await client.post("/v1/leases", PARTIES, token="service", headers=headers)
            assert issued.status == 201
            await client.post("/v1/leases", PARTIES, headers=headers)
        files = [path for path in process.files.data_dir.iterdir() if path.is_file()]
        kept = b"".join(path.read_bytes() for path in files)
        assert process.stop() == 0
        with sqlite3.connect(process.files.data_dir / "master.db") as database:
            kept += "\n".join(database.iterdump()).encode()
        kept += process.log.read_bytes()
    assert relay.relay_id.encode() in kept
    assert CLIENT.encode() not in kept
    assert bytes(map(int, CLIENT.split("."))) not in kept
    assert not [text for text in hashes if text.encode() in kept or bytes.fromhex(text) in kept]
