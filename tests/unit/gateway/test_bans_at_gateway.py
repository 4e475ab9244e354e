"""Banned users at the gateway: no login, no call, and what they had ends at once."""

import asyncio

import pytest
from support.control.gateway import (
    ADMIN_TOKEN,
    PASSWORD,
    accepted_call,
    connected,
    make_config,
    running_gateway,
)
from support.control.master import FakeRelay, MasterFiles
from support.control.master import running_master as running_real_master

from wavry_peer.protocol.http import signaling as wire

BANS = "/v1/admin/bans"
LIFT = "/v1/admin/bans/lift"


async def ban(gateway, name, **fields):
    body = {"kind": "user", "value": name, "reason": "spam", **fields}
    status, answer, _ = await gateway.call("POST", BANS, body, token=ADMIN_TOKEN)
    assert status == 200, answer
    return answer


async def test_banned_user_cannot_log_in_connect_or_call(gateway):
    ann = await gateway.user("ann")
    await ban(gateway, "ann")
    right = {"username": "ann", "password": PASSWORD}
    status, body, _ = await gateway.call("POST", "/auth/login", right)
    assert (status, body["error"]) == (403, "banned")
    wrong = {"username": "ann", "password": "wrong password"}
    status, body, _ = await gateway.call("POST", "/auth/login", wrong)
    assert (status, body["error"]) == (401, "invalid_credentials"), "no news for who guesses"
    one = "/v1/sessions/00000000-0000-4000-8000-000000000000"
    for method, path in (
        ("GET", "/v1/sessions"),
        ("POST", "/v1/sessions"),
        ("GET", one),
        ("DELETE", one),
        ("POST", f"{one}/accept"),
        ("POST", f"{one}/relay"),
        ("POST", f"{one}/renew"),
    ):
        status, body = await ann.call(method, path, {})
        assert (status, body["error"]) == (403, "banned"), path
    async with connected(gateway.http, gateway.url) as socket:
        await socket.send(wire.Bind(token=ann.token))
        await socket.error("banned")
        assert await socket.close_code() == 4401
    text = (await gateway.call("GET", "/metrics"))[1].decode()
    assert "wavry_gateway_bans 1.0" in text
    assert "wavry_gateway_banned_refused_total 9.0" in text
    status, _, _ = await gateway.call(
        "POST", LIFT, {"kind": "user", "value": "ann"}, token=ADMIN_TOKEN
    )
    assert status == 200
    async with ann.online() as socket:
        await socket.silent()


async def test_ban_closes_the_live_connection_and_the_sessions(gateway, master):
    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    async with ann.online() as a, bob.online() as b:
        session_id = await accepted_call(ann, a, bob, b)
        await a.send(wire.RequestRelay(target_username="bob"))
        await a.next(wire.RelayCredentials)
        await b.next(wire.RelayCredentials)
        await ban(gateway, "ann")
        await a.error("banned")
        assert await a.close_code() == 4401
        bye = await b.next(wire.Bye)
        assert (bye.from_username, bye.session_id) == (None, session_id), "ann did not end it"
        assert (await bob.session(session_id)).state == "closed"
        issued = len(master.requests)
        status, body = await bob.call("POST", f"/v1/sessions/{session_id}/relay", {})
        assert (status, body["error"]) == (403, "banned")
        assert len(master.requests) == issued
        await b.silent()


async def test_ban_with_expiry_lifts_by_itself_and_is_audited(gateway):
    ann = await gateway.user("ann")
    await ban(gateway, "ann", life_s=1)
    for _ in range(200):
        status, _ = await ann.call("GET", "/v1/sessions")
        if status == 200:
            break
        await asyncio.sleep(0.05)
    assert status == 200
    for _ in range(200):
        _, body, _ = await gateway.call(
            "GET", "/v1/admin/audit?only=acts&after=0", token=ADMIN_TOKEN
        )
        acts = [e for e in body["entries"] if not e["who"].startswith("address:")]
        if len(acts) == 2:
            break
        await asyncio.sleep(0.05)
    assert [(e["who"], e["action"], e["target"]) for e in acts] == [
        ("admin", "ban_user", "ann"),
        ("system", "unban_user", "ann"),
    ]
    assert acts[0]["reason"] == "spam (for 1 s)"


async def test_ban_outlives_a_restart(tmp_path, master):
    config = make_config(tmp_path, master.url)
    async with running_gateway(config) as gateway:
        ann = await gateway.user("ann")
        await ban(gateway, "ann")
    async with running_gateway(config) as gateway:
        ann.http, ann.url = gateway.http, gateway.url
        assert (await ann.call("GET", "/v1/sessions"))[0] == 403
        _, body, _ = await gateway.call("GET", BANS, token=ADMIN_TOKEN)
        assert [row["value"] for row in body["bans"]] == ["ann"]


async def test_ban_tells_when_nobody_has_the_name(gateway):
    await gateway.user("ann")
    assert (await ban(gateway, "ann")).get("known", True) is True
    assert (await ban(gateway, "anne"))["known"] is False


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"kind": "relay", "value": "rly-1", "reason": "x"}, 400, "not_banned_here"),
        ({"kind": "user", "value": "ann"}, 400, "invalid_body"),
        ({"kind": "user", "value": "Ann", "reason": "x"}, 400, "invalid_body"),
    ],
)
async def test_ban_orders_that_do_not_fit(gateway, body, status, code):
    got, answer, _ = await gateway.call("POST", BANS, body, token=ADMIN_TOKEN)
    assert (got, answer["error"]) == (status, code)
    assert (await gateway.call("POST", BANS, body))[0] == 401


async def test_a_ban_of_the_master_alone_reaches_the_user_as_what_it_is(tmp_path):
    files = MasterFiles.make(tmp_path / "master")
    async with running_real_master(tmp_path / "master", files=files) as real:
        config = make_config(
            tmp_path / "gateway", real.url, service_token_file=files.service_token_file
        )
        async with running_gateway(config) as gateway:
            await FakeRelay(real).join()
            ann, bob = await gateway.user("ann"), await gateway.user("bob")
            order = {"kind": "user", "value": "ann", "reason": "spam"}
            async with ann.online() as a, bob.online() as b:
                await accepted_call(ann, a, bob, b)
                assert (await real.post(BANS, order, token="admin")).status == 200
                await b.send(wire.RequestRelay(target_username="ann"))
                await b.error("banned")
                path = "/v1/admin/switches/lockdown"
                await real.post(path, {"on": True, "reason": "x"}, token="admin")
                await b.send(wire.RequestRelay(target_username="ann"))
                await b.error("lockdown")
