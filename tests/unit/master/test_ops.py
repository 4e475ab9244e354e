"""Health, readiness, metrics, keys, errors and headers."""

import asyncio
import json
import time

import aiohttp
import pytest
from support.control.lease_parts import parties
from support.control.master import (
    FakeClock,
    FakeRelay,
    MasterClient,
    MasterFiles,
    running_master,
)

from wavry_cp.app.http import listening
from wavry_cp.app.store_errors import StoreUnavailableError
from wavry_cp.master.app import make_app
from wavry_cp.master.master import open_master
from wavry_cp.store.sqlite.master import MasterSqlite


@pytest.fixture
def clock():
    """The true time: a health answer is compared with this process's."""
    return FakeClock(now_s=time.time())


async def test_health_and_ready(master):
    await FakeRelay(master).join()
    health = (await master.get("/health")).body
    assert (health["status"], health["role"], health["keyset_serial"]) == ("ok", "master", 1)
    assert health["relays"] == {"ACTIVE": 1}
    assert abs(health["now"] - time.time()) < 60, "a doctor compares clocks"
    assert (await master.get("/ready")).body["ready"] is True


async def test_broken_store_is_503_and_never_a_traceback(tmp_path, monkeypatch):
    async def broken(self, *args):
        raise StoreUnavailableError("database or disk is full")

    async with running_master(tmp_path) as master:
        await FakeRelay(master).join()
        for name in ("check", "session", "save_relay"):
            monkeypatch.setattr(MasterSqlite, name, broken)
        ready = await master.get("/ready")
        assert (ready.status, ready.body["ready"]) == (503, False)
        body = parties("a", "b")
        answer = await master.post("/v1/leases", body, token="service")
        assert (answer.status, answer.body["error"]) == (503, "store_unavailable")
        assert "disk" not in answer.body["message"]
        assert "Retry-After" in answer.headers
        relay = FakeRelay(master)
        assert (await relay.register()).status == 503
        assert (await master.get(f"/v1/relays/{relay.relay_id}", token="admin")).status == 404
        assert (await master.get("/health")).status == 200


async def test_metrics_have_the_catalogue_and_no_label_of_an_outsider(master):
    relay = await FakeRelay(master).join()
    body = parties("a", "b")
    await master.post("/v1/leases", body, token="service")
    await master.post("/v1/leases", body)
    await master.get("/minted-path-label")
    await master.call("MINTED", "/health")
    await master.get(f"/v1/relays/{relay.relay_id}", token="service")
    text = (await master.get("/metrics")).body
    for line in (
        "wavry_master_leases_issued_total 2.0",
        'wavry_master_leases_rejected_total{reason="unauthorized"} 1.0',
        'wavry_master_registrations_total{result="challenged"} 1.0',
        'wavry_master_registrations_total{result="registered"} 1.0',
        'wavry_master_heartbeats_total{result="accepted"} 1.0',
        'wavry_master_relays{state="ACTIVE"} 1.0',
        'wavry_master_relays{state="BANNED"} 0.0',
        'wavry_master_http_requests_total{method="POST",route="/v1/leases",status="201"} 1.0',
        'wavry_master_http_requests_total{method="GET",route="unmatched",status="404"} 1.0',
        'route="/v1/relays/{relay_id}"',
        "wavry_master_keyset_serial 1.0",
    ):
        assert line in text
    assert "minted" not in text.lower()
    assert relay.relay_id not in text


async def test_metrics_are_closed_to_the_world(tmp_path):
    async with running_master(tmp_path, metrics_networks=("192.0.2.0/24",)) as master:
        assert (await master.get("/metrics")).status == 401
        assert (await master.get("/metrics", token="service")).status == 403
        assert (await master.get("/metrics", token="admin")).status == 200


async def test_metrics_do_not_leak_through_a_proxy_on_the_same_host(master):
    assert (await master.get("/metrics")).status == 200
    answer = await master.get("/metrics", headers={"X-Forwarded-For": "198.51.100.7"})
    assert answer.status == 401
    answer = await master.get("/metrics", headers={"X-Forwarded-For": "127.0.0.1"})
    assert answer.status == 401


async def test_keys_are_public_and_admin_calls_are_not(master):
    document = await master.get("/.well-known/wavry-keys.json")
    assert document.status == 200
    assert document.body["root_public_key"] == master.files.root_public_key
    assert "max-age" in document.headers["Cache-Control"]
    assert (await master.get("/v1/admin/keys", token="admin")).body == document.body
    for path in ("/v1/admin/keys", "/v1/admin/status", "/v1/admin/audit", "/v1/relays"):
        assert (await master.get(path)).status == 401
    for path in ("/v1/admin/keys", "/v1/admin/status", "/v1/admin/audit"):
        assert (await master.get(path, token="service")).status == 403
    status = (await master.get("/v1/admin/status", token="admin")).body
    assert (status["role"], status["live_sessions"]) == ("master", 0)
    assert status["active_kid"] == document.body["keys"][0]["kid"]


async def test_no_secret_of_the_keys_leaves(master):
    seeds = [path.read_text().strip() for path in master.files.keys_dir.glob("*.key")]
    assert len(seeds) == 2
    for path in ("/.well-known/wavry-keys.json", "/v1/admin/keys", "/v1/admin/status"):
        text = json.dumps((await master.get(path, token="admin")).body)
        assert not any(seed in text for seed in seeds)
    database = b"".join(path.read_bytes() for path in master.files.data_dir.iterdir())
    assert not any(seed.encode() in database for seed in seeds)


async def test_relay_tokens_are_stored_hashed(master):
    relay = await FakeRelay(master).join()
    database = b"".join(path.read_bytes() for path in master.files.data_dir.iterdir())
    assert relay.relay_id.encode() in database
    assert relay.token.encode() not in database


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/leases", 405, "method_not_allowed"),
        ("PATCH", "/health", 405, "method_not_allowed"),
    ],
)
async def test_unknown_paths_and_methods_answer_in_the_error_form(
    master, method, path, status, code
):
    answer = await master.call(method, path)
    assert (answer.status, answer.body["error"]) == (status, code)
    assert answer.body["message"]


async def test_oversized_and_packed_bodies_are_refused(master):
    big = b'{"a":"' + b"x" * 70_000 + b'"}'
    answer = await master.post("/v1/relays/register", big)
    assert (answer.status, answer.body["error"]) == (413, "body_too_large")

    async def chunks():
        for _ in range(70):
            yield b" " * 1000

    async with master.http.post(f"{master.url}/v1/relays/register", data=chunks()) as response:
        assert response.status == 413
        assert (await response.json())["error"] == "body_too_large"
    answer = await master.post(
        "/v1/relays/register", b"\x1f\x8b\x08", headers={"Content-Encoding": "gzip"}
    )
    assert (answer.status, answer.body["error"]) == (415, "unsupported_encoding")


async def test_answers_carry_secure_headers(master):
    for path in ("/health", "/nothing"):
        headers = (await master.get(path)).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["Server"] == "wavry"


async def test_relay_and_session_state_survive_a_restart(tmp_path):
    files = MasterFiles.make(tmp_path)
    async with running_master(tmp_path, files=files) as master:
        relay = await FakeRelay(master).join()
        drained = await FakeRelay(master).join()
        await master.post(f"/v1/admin/relays/{drained.relay_id}/drain", token="admin")
    async with running_master(tmp_path, files=files) as master:
        relay.client = drained.client = master
        rows = (await master.get("/v1/relays", token="admin")).body["relays"]
        assert {row["state"] for row in rows} == {"OFFLINE"}  # not heard by this process yet
        # Presumed alive: a user who asks in these seconds is served.
        body = parties("a", "b")
        answer = await master.post("/v1/leases", body, token="service")
        assert answer.status == 201
        assert answer.body["relay"]["relay_id"] == relay.relay_id
        assert (await relay.heartbeat()).status == 200
        assert (await drained.heartbeat()).body == {"commands": [{"type": "drain"}]}


async def test_requests_under_way_end_before_the_store_closes(tmp_path, monkeypatch):
    files = MasterFiles.make(tmp_path)
    entered = asyncio.Event()
    real = MasterSqlite.save_relay

    async def slow(self, *args):
        entered.set()
        await asyncio.sleep(0.2)
        await real(self, *args)

    monkeypatch.setattr(MasterSqlite, "save_relay", slow)
    async with aiohttp.ClientSession() as http:
        async with (
            open_master(files.config()) as twin,
            listening(make_app(twin), "127.0.0.1", 0) as url,
        ):
            relay = FakeRelay(MasterClient(url, files, http))
            call = asyncio.create_task(relay.register())
            await entered.wait()
        assert (await call).status == 201
    async with running_master(tmp_path, files=files) as master:
        assert len((await master.get("/v1/relays", token="admin")).body["relays"]) == 1
