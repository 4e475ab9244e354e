"""Who may do what at the gateway's admin API, and what is written down: one row for every route."""

import time

import pytest
from support.control.gateway import make_config, running_gateway
from support.control.master import MasterFiles
from support.control.master import running_master as running_real_master

from wavry_cp.gateway.app import make_app

ROLES = ("viewer", "operator", "admin")
WHY = {"reason": "drill 7"}
BANS = "/v1/admin/bans"
USER = "/v1/admin/users/{username}"
SESSION = "/v1/admin/sessions/{session_id}"
CALLS = (
    ("viewer", "GET", "/v1/admin/users", None, None),
    ("viewer", "GET", USER, None, None),
    ("operator", "POST", f"{USER}/reset", WHY, "user_reset"),
    ("operator", "POST", f"{USER}/logout", WHY, "user_logout"),
    ("viewer", "GET", "/v1/admin/status", None, None),
    ("viewer", "GET", "/v1/admin/audit", None, None),
    ("viewer", "GET", "/v1/admin/switches", None, None),
    ("viewer", "GET", "/v1/admin/sessions", None, None),
    ("viewer", "GET", "/v1/admin/session-news", None, None),
    ("viewer", "GET", SESSION, None, None),
    ("operator", "POST", f"{SESSION}/end", WHY, "end_session"),
    ("viewer", "GET", BANS, None, None),
    ("operator", "POST", BANS, {"kind": "user", "value": "eve", **WHY}, "ban_user"),
    ("operator", "POST", f"{BANS}/lift", {"kind": "user", "value": "eve", **WHY}, "unban_user"),
    ("operator", "POST", f"{USER}/delete", WHY, "user_delete"),
    ("admin", "POST", "/v1/admin/switches/lockdown", {"on": False, **WHY}, "lockdown_off"),
)


@pytest.fixture
async def both(tmp_path):
    files = MasterFiles.make(tmp_path / "master")
    async with running_real_master(tmp_path / "master", files=files) as master:
        tokens = {}
        for role in ROLES:
            body = {"name": f"the-{role}", "role": role}
            answer = await master.post("/v1/admin/tokens", body, token="admin")
            tokens[role] = answer.body["token"]
        config = make_config(
            tmp_path / "gateway", master.url, service_token_file=files.service_token_file
        )
        async with running_gateway(config) as gateway:
            yield gateway, tokens


async def test_every_admin_route_has_its_role_and_every_act_its_audit_row(both):
    gateway, tokens = both
    routes = {
        (route.method, route.resource.canonical)
        for route in make_app(gateway.gateway).router.routes()
        if route.resource is not None
        and route.resource.canonical.startswith("/v1/admin")
        and route.method != "HEAD"
    }
    listed = {(method, path.replace("lockdown", "{switch}")) for _, method, path, _, _ in CALLS}
    assert routes == listed

    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    async with bob.online():
        body = {"target_username": "bob"}
        session_id = (await ann.call("POST", "/v1/sessions", body))[1]["session_id"]

    async def entries():
        path = "/v1/admin/audit?only=acts&limit=1000"
        return (await gateway.call("GET", path, token=tokens["admin"]))[1]["entries"]

    for needed, method, template, body, action in CALLS:
        path = template.replace("{session_id}", session_id).replace("{username}", "ann")
        before = await entries()
        for token in (None, "x" * 43):
            status, answer, _ = await gateway.call(method, path, body, token=token)
            assert (status, answer["error"]) == (401, "invalid_token"), (method, path)
        for role in ROLES[: ROLES.index(needed)]:
            status, answer, _ = await gateway.call(method, path, body, token=tokens[role])
            assert (status, answer["error"]) == (403, "forbidden"), (role, path)
        assert await entries() == before
        began_s = int(time.time())
        status, answer, _ = await gateway.call(method, path, body, token=tokens[needed])
        assert status in (200, 201, 204), (path, answer)
        rows = (await entries())[len(before) :]
        if action is None:
            assert rows == []
            continue
        row = rows[0]
        assert (row["who"], row["action"]) == (f"the-{needed}", action)
        assert (row["reason"], row["outcome"]) == ("drill 7", "done")
        assert began_s <= row["at"] <= time.time()
