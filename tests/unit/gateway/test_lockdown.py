"""Lockdown at the gateway: only admin calls pass, live connections end."""

import re

import pytest
from support.control.gateway import ADMIN_TOKEN, connected, make_config, running_gateway

from wavry_cp.gateway.app import make_app

LOCKDOWN = "/v1/admin/switches/lockdown"
ON = {"on": True, "reason": "drill"}
OFF = {"on": False, "reason": "over"}


async def test_lockdown_lets_only_admin_calls_pass(gateway):
    """Every route of the gateway is walked: a new one is closed."""
    ann = await gateway.user("ann")
    assert (await gateway.call("POST", LOCKDOWN, ON, token=ADMIN_TOKEN))[0] == 200
    routes = {
        (route.method, route.resource.canonical)
        for route in make_app(gateway.gateway).router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    walked = 0
    for method, template in sorted(routes):
        path = re.sub(r"\{[a-z_]+\}", "00000000-0000-4000-8000-000000000000", template)
        for token in (None, ann.token):
            status, body, headers = await gateway.call(method, path, {}, token=token)
            closed = isinstance(body, dict) and body.get("error") == "lockdown"
            if template in ("/health", "/ready", "/metrics") or template.startswith("/v1/admin/"):
                assert not closed, (method, path)
            else:
                assert (status, closed) == (503, True), (method, path)
                assert "Retry-After" in headers
                walked += 1
    assert walked >= 11 * 2
    status, body, _ = await gateway.call("GET", "/v1/admin/users", token=ADMIN_TOKEN)
    assert status == 200
    status, body, _ = await gateway.call("GET", "/health")
    assert (status, body["lockdown"]) == (200, True)
    assert (await gateway.call("GET", "/ready"))[0] == 200, "admin calls must still reach it"
    text = (await gateway.call("GET", "/metrics"))[1].decode()
    assert "wavry_gateway_lockdown 1.0" in text
    assert f"wavry_gateway_lockdown_refused_total {walked}.0" in text
    assert (await gateway.call("POST", LOCKDOWN, OFF, token=ADMIN_TOKEN))[0] == 200
    assert (await ann.call("GET", "/v1/sessions"))[0] == 200


async def test_lockdown_ends_live_connections_with_the_cause(gateway):
    ann = await gateway.user("ann")
    async with ann.online() as bound, connected(gateway.http, gateway.url) as unbound:
        await gateway.call("POST", LOCKDOWN, ON, token=ADMIN_TOKEN)
        for socket in (bound, unbound):
            await socket.error("lockdown")
            assert await socket.close_code() == 1001
    await gateway.call("POST", LOCKDOWN, OFF, token=ADMIN_TOKEN)
    async with ann.online() as again:
        await again.silent()


async def test_lockdown_outlives_a_restart_and_is_audited(tmp_path, master):
    config = make_config(tmp_path, master.url)
    async with running_gateway(config) as gateway:
        await gateway.call("POST", LOCKDOWN, ON, token=ADMIN_TOKEN)
    async with running_gateway(config) as gateway:
        status, body, _ = await gateway.call("POST", "/auth/login", {})
        assert (status, body["error"]) == (503, "lockdown")
        _, body, _ = await gateway.call("GET", "/v1/admin/audit?after=0", token=ADMIN_TOKEN)
    (row,) = body["entries"]
    assert (row["who"], row["action"], row["reason"]) == ("admin", "lockdown_on", "drill")


@pytest.mark.parametrize("switch", ["relay-mode", "gravity"])
async def test_the_gateway_has_no_other_switch(gateway, switch):
    path = f"/v1/admin/switches/{switch}"
    status, body, _ = await gateway.call("POST", path, ON, token=ADMIN_TOKEN)
    assert (status, body["error"]) == (404, "unknown_switch")
    assert (await gateway.call("POST", path, ON))[0] == 401
