"""Kill switches of the master: relay mode and lockdown, durable and seen at once."""

import re

import pytest
from support.control.lease_parts import parties, renewal
from support.control.master import FakeClock, FakeRelay, MasterFiles, running_master

from wavry_cp.master.app import make_app
from wavry_cp.master.master import open_master

PARTIES = parties()
OPEN_IN_LOCKDOWN = {
    "/.well-known/wavry-keys.json",
    "/v1/relays/register",
    "/v1/relays/register/verify",
    "/v1/relays/heartbeat",
    "/v1/relays/events",
}
"""What keeps the relays themselves alive: the pool must be there when the lockdown ends."""

RELAY_MODE = "/v1/admin/switches/relay-mode"
LOCKDOWN = "/v1/admin/switches/lockdown"
ON = {"on": True, "reason": "drill"}
OFF = {"on": False, "reason": "over"}


async def test_relay_mode_off_gives_no_new_lease_and_renews_live_ones(master):
    await FakeRelay(master).join()
    issued = (await master.post("/v1/leases", PARTIES, token="service")).body
    assert (await master.post(RELAY_MODE, OFF, token="admin")).status == 200
    moving = {**PARTIES, "session_id": issued["session_id"]}
    for body in (PARTIES, moving):
        answer = await master.post("/v1/leases", body, token="service")
        assert (answer.status, answer.body["error"]) == (503, "relay_mode_off")
    assert (await master.post("/v1/leases/renew", renewal(issued), token="service")).status == 200
    assert (await master.get("/health")).body["relay_mode"] == "off"
    assert "wavry_master_relay_mode 0.0" in (await master.get("/metrics")).body
    text = (await master.get("/metrics")).body
    assert 'wavry_master_leases_rejected_total{reason="relay_mode_off"} 2.0' in text
    assert (await master.post(RELAY_MODE, ON, token="admin")).status == 200
    assert (await master.post("/v1/leases", PARTIES, token="service")).status == 201
    assert "wavry_master_relay_mode 1.0" in (await master.get("/metrics")).body


async def test_lockdown_lets_only_admin_calls_pass(tmp_path):
    """Every route of the master is walked: a new one is closed, or named here as open."""
    async with running_master(tmp_path) as master:
        relay = await FakeRelay(master).join()
        assert (await master.post(LOCKDOWN, ON, token="admin")).status == 200
        async with open_master(MasterFiles.make(tmp_path / "twin").config()) as twin:
            app = make_app(twin)
            routes = {
                (route.method, route.resource.canonical)
                for route in app.router.routes()
                if route.resource is not None and route.method != "HEAD"
            }
        assert {path for _, path in routes} >= OPEN_IN_LOCKDOWN - {"/v1/relays/events"}
        is_open = OPEN_IN_LOCKDOWN | {"/health", "/ready", "/metrics"}
        walked = 0
        for method, template in sorted(routes):
            path = re.sub(r"\{[a-z_]+\}", "somebody", template)
            for token in (None, "service", relay.token):
                answer = await master.call(method, path, {}, token=token)
                closed = isinstance(answer.body, dict) and answer.body.get("error") == "lockdown"
                if template in is_open or template.startswith("/v1/admin/"):
                    assert not closed, (method, path)
                else:
                    assert (answer.status, closed) == (503, True), (method, path)
                    assert "Retry-After" in answer.headers
                    walked += 1
        assert walked >= 4 * 3
        # Relays live on, operators see and act.
        assert (await relay.heartbeat()).status == 200
        assert (await FakeRelay(master).register()).status == 201
        assert (await master.get("/v1/relays", token="admin")).status == 200
        path = f"/v1/admin/relays/{relay.relay_id}/drain"
        assert (await master.post(path, token="admin")).status == 200
        health = (await master.get("/health")).body
        assert (health["status"], health["lockdown"]) == ("ok", True)
        text = (await master.get("/metrics")).body
        assert "wavry_master_lockdown 1.0" in text
        assert f"wavry_master_lockdown_refused_total {walked}.0" in text
        assert (await master.post(LOCKDOWN, OFF, token="admin")).status == 200
        assert (await master.get("/v1/relays", token="service")).status == 200


async def test_lockdown_stops_renewals_too(master):
    await FakeRelay(master).join()
    issued = (await master.post("/v1/leases", PARTIES, token="service")).body
    body = renewal(issued, "server")
    await master.post(LOCKDOWN, ON, token="admin")
    answer = await master.post("/v1/leases/renew", body, token="service")
    assert (answer.status, answer.body["error"]) == (503, "lockdown")
    await master.post(LOCKDOWN, OFF, token="admin")
    assert (await master.post("/v1/leases/renew", body, token="service")).status == 200


async def test_lockdown_is_the_admins_and_relay_mode_the_operators(master):
    operator = (
        await master.post("/v1/admin/tokens", {"name": "op", "role": "operator"}, token="admin")
    ).body["token"]
    assert (await master.post(RELAY_MODE, OFF, token=operator)).status == 200
    assert (await master.post(LOCKDOWN, ON, token=operator)).status == 403
    assert (await master.post(LOCKDOWN, ON, token="service")).status == 403
    assert (await master.get("/health")).body["lockdown"] is False
    listed = (await master.get("/v1/admin/switches", token=operator)).body["switches"]
    assert [(row["switch"], row["on"]) for row in listed] == [
        ("relay-mode", False),
        ("lockdown", False),
    ]
    assert (listed[0]["who"], listed[0]["reason"]) == ("op", "over")


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (LOCKDOWN, {"on": "yes", "reason": "x"}, 400, "invalid_body"),
        (LOCKDOWN, {}, 400, "invalid_body"),
        ("/v1/admin/switches/gravity", ON, 404, "unknown_switch"),
    ],
)
async def test_switch_orders_that_do_not_fit(master, path, body, status, code):
    answer = await master.post(path, body, token="admin")
    assert (answer.status, answer.body["error"]) == (status, code)
    assert (await master.get("/health")).body["lockdown"] is False


async def test_switches_outlive_a_restart_and_are_audited(tmp_path):
    files = MasterFiles.make(tmp_path)
    clock = FakeClock()
    async with running_master(tmp_path, clock.clock(), files) as master:
        await master.post(RELAY_MODE, OFF, token="admin")
        await master.post(LOCKDOWN, ON, token="admin")
    async with running_master(tmp_path, clock.clock(), files) as master:
        health = (await master.get("/health")).body
        assert (health["relay_mode"], health["lockdown"]) == ("off", True)
        assert (await master.post("/v1/leases", PARTIES, token="service")).status == 503
        entries = (await master.get("/v1/admin/audit?only=acts&after=0", token="admin")).body[
            "entries"
        ]
    assert [(e["who"], e["action"], e["reason"]) for e in entries] == [
        ("admin", "relay_mode_off", "over"),
        ("admin", "lockdown_on", "drill"),
    ]


async def test_lockdown_on_needs_no_reason_and_the_audit_tells_that_none_was_given(master):
    assert (await master.post(LOCKDOWN, {"on": True}, token="admin")).status == 200
    assert (await master.get("/health")).body["lockdown"] is True
    entries = (await master.get("/v1/admin/audit?only=acts&after=0", token="admin")).body["entries"]
    assert (entries[-1]["action"], entries[-1]["reason"]) == ("lockdown_on", "")
