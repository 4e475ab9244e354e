import contextlib
import shutil
import sqlite3
import time

import msgspec
import pytest
from support.control.gateway import (
    ADMIN_TOKEN,
    SERVICE_TOKEN,
    accepted_call,
    make_config,
    running_gateway,
)

from wavry_cp.app.store_errors import StoreUnavailableError
from wavry_peer.protocol.http.api import UserList


async def test_health_and_ready(gateway):
    status, body, headers = await gateway.call("GET", "/health")
    assert (status, body["status"], body["role"]) == (200, "ok", "gateway")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert abs(body["now"] - time.time()) < 60, "a doctor compares clocks"
    status, body, _ = await gateway.call("GET", "/ready")
    assert (status, body["ready"], body["store"], body["master"]) == (200, True, "ok", "ok")


async def test_ready_without_a_master_says_so(tmp_path, unused_tcp_port):
    config = make_config(tmp_path, f"http://127.0.0.1:{unused_tcp_port}")
    async with running_gateway(config) as running:
        status, body, _ = await running.call("GET", "/ready")
        assert (status, body["ready"], body["master"]) == (200, True, "unreachable")
        assert "master" in body["reason"]
        status, body, _ = await running.call("GET", "/v1/admin/status", token=ADMIN_TOKEN)
        assert body["master_error"] == "/health: connection refused"
        assert body["master_url"] == config.master_url


async def test_operators_are_told_why_the_last_call_of_the_master_failed(gateway, master):
    async def error() -> str:
        _, body, _ = await gateway.call("GET", "/v1/admin/status", token=ADMIN_TOKEN)
        return body["master_error"]

    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    assert await error() == ""
    async with ann.online() as a, bob.online() as b:
        sid = await accepted_call(ann, a, bob, b)
        master.mode = "reject_token"
        await ann.call("POST", f"/v1/sessions/{sid}/relay", {})
        assert await error() == "/v1/leases: status 401, code unauthorized"
        _, public, _ = await gateway.call("GET", "/ready")
        assert "401" not in str(public), "strangers are not told"
        master.mode = "ok"
        assert (await ann.call("POST", f"/v1/sessions/{sid}/relay", {}))[0] == 200
        assert await error() == ""


async def test_a_store_that_fails_is_503_everywhere(gateway, monkeypatch):
    ann = await gateway.user("ann")

    async def broken(_work):
        raise StoreUnavailableError("disk full")

    async with ann.online() as socket:
        monkeypatch.setattr(gateway.gateway.store._database, "run", broken)
        for method, path, body in (
            ("GET", "/v1/sessions", None),
            ("POST", "/auth/login", {"username": "ann", "password": "x" * 12}),
            ("POST", "/auth/register", {"username": "bob", "password": "x" * 12}),
        ):
            status, answer, headers = await gateway.call(method, path, body, token=ann.token)
            assert (status, answer["error"]) == (503, "store_unavailable")
            assert "Retry-After" in headers
        status, body, _ = await gateway.call("GET", "/ready")
        assert (status, body["ready"], body["store"]) == (503, False, "unavailable")
        assert body["reason"] == "disk full"
        assert (await gateway.call("GET", "/health"))[0] == 200
        await socket.ws.send_str('{"type":"CANDIDATE","target_username":"bob","candidate":""}')
        await socket.error("store_unavailable")
        await socket.silent()


async def test_metrics_have_no_label_that_a_client_can_mint(gateway):
    await gateway.call("GET", "/no/such/path/4711")
    async with gateway.http.request("PROPFIND", f"{gateway.url}/v1/sessions/evil-4711"):
        pass
    ann = await gateway.user("ann")
    async with ann.online() as socket:
        await socket.ws.send_str('{"type":"EVIL4711"}')
        await socket.error("invalid_message")
        await gateway.call("GET", "/v1/sessions/4711", token=ann.token)
        status, text, headers = await gateway.call("GET", "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    assert b"4711" not in text
    assert b"EVIL" not in text
    assert b"PROPFIND" not in text
    assert b"ann" not in text.replace(b"banned", b"")
    assert b'route="unmatched",status="404"' in text
    assert b'method="other"' in text
    assert b"wavry_gateway_users_online 1.0" in text
    assert b'wavry_gateway_logins_total{result="ok"} 1.0' in text


async def test_metrics_are_not_open_to_the_world(tmp_path, master):
    config = make_config(tmp_path, master.url, trusted_proxies=("127.0.0.0/8",))
    async with running_gateway(config) as running:
        outside = {"X-Forwarded-For": "198.51.100.7"}
        status, body, _ = await running.call("GET", "/metrics", headers=outside)
        assert (status, body["error"]) == (403, "forbidden")
        status, _, _ = await running.call("GET", "/metrics", headers=outside, token=ADMIN_TOKEN)
        assert status == 200


async def test_admin_lists(gateway):
    bob, _ = await gateway.user("bob"), await gateway.user("ann")
    async with bob.online():
        status, body, _ = await gateway.call("GET", "/v1/admin/users", token=ADMIN_TOKEN)
        assert status == 200
        users = msgspec.convert(body, UserList).users
        assert [(user.username, user.online) for user in users] == [("ann", False), ("bob", True)]
        assert users[0].last_login_at is not None
        _, body, _ = await gateway.call(
            "GET", "/v1/admin/users?after=ann&limit=1", token=ADMIN_TOKEN
        )
        assert [user["username"] for user in body["users"]] == ["bob"]
        status, body, _ = await gateway.call("GET", "/v1/admin/status", token=ADMIN_TOKEN)
        assert (status, body["users"], body["online"], body["websockets"]) == (200, 2, 1, 1)
    for query in ("limit=0", "limit=x", "limit=99999", "after=%00", "after=%ff", "after=A"):
        status, body, _ = await gateway.call("GET", f"/v1/admin/users?{query}", token=ADMIN_TOKEN)
        assert (status, body["error"]) == (400, "invalid_query")


@pytest.mark.parametrize("path", ["/v1/admin/users", "/v1/admin/status"])
async def test_admin_calls_need_the_admin_token(gateway, path):
    ann = await gateway.user("ann")
    for token in (None, ann.token, SERVICE_TOKEN, ADMIN_TOKEN[:-1], "é" * 40):
        status, body, _ = await gateway.call("GET", path, token=token)
        assert (status, body["error"]) == (401, "invalid_token")


async def test_admin_calls_are_off_without_a_token_file(tmp_path, master):
    async with running_gateway(make_config(tmp_path, master.url, admin_token_file=None)) as running:
        status, body, _ = await running.call("GET", "/v1/admin/users", token=ADMIN_TOKEN)
        assert (status, body["error"]) == (403, "admin_disabled")


async def test_cors_is_off_unless_an_origin_is_listed(tmp_path, master):
    origin = "https://app.example"
    async with running_gateway(make_config(tmp_path / "a", master.url)) as running:
        _, _, headers = await running.call("GET", "/health", headers={"Origin": origin})
        assert "Access-Control-Allow-Origin" not in headers
    config = make_config(tmp_path / "b", master.url, cors_origins=(origin,))
    async with running_gateway(config) as running:
        ask = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        status, _, headers = await running.call("OPTIONS", "/auth/login", headers=ask)
        assert status == 204
        assert headers["Access-Control-Allow-Origin"] == origin
        assert "authorization" in headers["Access-Control-Allow-Headers"]
        # A page can read an error too.
        status, _, headers = await running.call("GET", "/v1/sessions", headers={"Origin": origin})
        assert (status, headers["Access-Control-Allow-Origin"]) == (401, origin)
        evil = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        status, _, headers = await running.call("OPTIONS", "/auth/login", headers=evil)
        assert status == 405
        assert "Access-Control-Allow-Origin" not in headers


async def test_requests_of_one_user_are_limited(tmp_path, master):
    config = make_config(tmp_path, master.url, requests_burst=3, requests_per_s=0.1)
    async with running_gateway(config) as running:
        ann, bob = await running.user("ann"), await running.user("bob")
        assert [(await ann.call("GET", "/v1/sessions"))[0] for _ in range(4)] == [200] * 3 + [429]
        assert (await bob.call("GET", "/v1/sessions"))[0] == 200


async def test_each_minute_the_main_file_gets_what_was_written(gateway, tmp_path):
    await gateway.user("ann")
    await gateway.gateway._clean()
    shutil.copy(gateway.gateway.config.data_dir / "gateway.db", tmp_path / "copy.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "copy.db")) as db:
        assert db.execute("SELECT username FROM users").fetchall() == [("ann",)]
