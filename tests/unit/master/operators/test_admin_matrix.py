"""Who may do what at the master, and what is written down of it: one row for every admin route.

A route that is not in the table fails here, so a new one cannot come without a role, and one that
changes something not without its row in the audit log.
"""

import re
import time
from dataclasses import dataclass, field

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.control.master import FakeRelay, MasterFiles, running_master

from wavry_cp.master.app import make_app
from wavry_cp.master.master import open_master

UUID = "0b7c2c5e-6f3b-4a43-9f0e-2f6d3a9b1c11"
ROLES = ("viewer", "operator", "admin")


@dataclass(frozen=True)
class Call:
    """What an operator calls; `{relay}` is a live relay, `action` what the audit log names it."""

    role: str
    method: str
    path: str
    body: dict = field(default_factory=dict)
    action: str | None = None
    target: str = ""
    template: str = ""
    also_service: bool = False

    @property
    def route(self):
        return self.method, self.template or self.path.replace("{relay}", "{relay_id}")


WHY = {"reason": "drill 7"}
CALLS = (
    Call("viewer", "GET", "/v1/relays", also_service=True),
    Call("viewer", "GET", "/v1/relays/{relay}", also_service=True),
    Call("viewer", "GET", "/v1/relays/{relay}/history", also_service=True),
    Call("viewer", "GET", "/v1/admin/leases"),
    Call("viewer", "GET", "/v1/admin/relay-news"),
    Call("viewer", "GET", "/v1/admin/revocations"),
    Call("viewer", "GET", "/v1/admin/keys"),
    Call("viewer", "GET", "/v1/admin/keys/status"),
    Call("viewer", "GET", "/v1/admin/status"),
    Call("viewer", "GET", "/v1/admin/audit"),
    Call("viewer", "GET", "/v1/admin/tokens"),
    Call("viewer", "GET", "/v1/admin/switches"),
    Call("viewer", "GET", "/v1/admin/bans"),
    Call("viewer", "GET", "/v1/admin/blocks"),
    Call("viewer", "GET", "/v1/admin/enrolments"),
    Call("operator", "POST", "/v1/admin/enrolments", {"name": "fra-1", "region": "eu", **WHY},
         "enrol", "fra-1 in eu"),
    Call("operator", "DELETE", "/v1/admin/enrolments/fra-1", WHY, "reject", "token for fra-1",
         "/v1/admin/enrolments/{name}"),
    Call("operator", "POST", "/v1/admin/relays/{relay}/approve", WHY, "approve", "{relay}"),
    Call("operator", "POST", "/v1/admin/relays/{relay}/reject", WHY, "reject", "{relay}"),
    Call("operator", "POST", "/v1/admin/relays/{relay}/rename", {"name": "fra-2", **WHY},
         "rename", "{relay} to fra-2"),
    Call("operator", "POST", "/v1/leases/revoke", {"session_id": UUID, **WHY}, "revoke_session",
         UUID),
    Call("operator", "POST", "/v1/admin/relays/{relay}/drain", WHY, "drain", "{relay}"),
    Call("operator", "POST", "/v1/admin/relays/{relay}/undrain", WHY, "undrain", "{relay}"),
    Call("operator", "POST", "/v1/admin/relays/{relay}/blocks/clear", WHY, "clear_blocks",
         "{relay} all"),
    Call("operator", "POST", "/v1/admin/switches/relay-mode", {"on": False, **WHY},
         "relay_mode_off", "relay-mode", "/v1/admin/switches/{switch}"),
    Call("admin", "POST", "/v1/admin/switches/lockdown", {"on": False, **WHY}, "lockdown_off",
         "lockdown", "/v1/admin/switches/{switch}"),
    Call("operator", "POST", "/v1/admin/bans", {"kind": "user", "value": "eve", **WHY},
         "ban_user", "eve"),
    Call("operator", "POST", "/v1/admin/bans/lift", {"kind": "user", "value": "eve", **WHY},
         "unban_user", "eve"),
    Call("admin", "POST", "/v1/admin/tokens", {"name": "fay", "role": "viewer", **WHY},
         "token_create", "fay (viewer)"),
    Call("admin", "POST", "/v1/admin/tokens/fay/rotate", WHY, "token_rotate", "fay",
         "/v1/admin/tokens/{name}/rotate"),
    Call("admin", "POST", "/v1/admin/tokens/fay/revoke", WHY, "token_revoke", "fay",
         "/v1/admin/tokens/{name}/revoke"),
    Call("admin", "POST", "/v1/admin/keys/create", WHY, "keys create"),
    Call("admin", "POST", "/v1/admin/keys/activate", {"kid": "{pending}", "force": True, **WHY},
         "keys activate", "{pending} (forced)"),
    Call("admin", "POST", "/v1/admin/keys/rollback", {"force": True, **WHY}, "keys rollback"),
    Call("admin", "POST", "/v1/admin/keys/revoke", {"kid": "{pending}", **WHY}, "keys revoke",
         "{pending}"),
    Call("admin", "POST", "/v1/admin/keys/remove", {"kid": "{pending}", **WHY}, "keys remove",
         "{pending}"),
    Call("admin", "POST", "/v1/admin/keys/root", {"expected_root": "{root}", **WHY}, "keys root"),
    Call("operator", "DELETE", "/v1/relays/{relay}", WHY, "remove", "{relay}"),
)  # fmt: skip
OF_OTHERS = {
    ("POST", "/v1/relays/register"),  # the relay's own key
    ("POST", "/v1/relays/register/verify"),
    ("POST", "/v1/relays/heartbeat"),  # its token
    ("GET", "/v1/relays/events"),
    ("POST", "/v1/leases"),  # service token
    ("POST", "/v1/leases/renew"),
    ("POST", "/v1/admin/tokens/check"),
    ("GET", "/health"),  # open
    ("GET", "/ready"),
    ("GET", "/metrics"),  # by network, or a viewer
    ("GET", "/.well-known/wavry-keys.json"),
    ("GET", "/openapi.json"),
}


@pytest.fixture
async def master(tmp_path):
    async with running_master(tmp_path, admin_failures_per_minute=10_000) as client:
        yield client


@pytest.fixture
async def tokens(master):
    made = {}
    for role in ROLES:
        body = {"name": f"the-{role}", "role": role}
        answer = await master.post("/v1/admin/tokens", body, token="admin")
        made[role] = answer.body["token"]
    return made


async def test_every_route_of_the_master_is_in_the_table(tmp_path, master):
    async with open_master(MasterFiles.make(tmp_path / "twin").config()) as twin:
        app = make_app(twin)
        routes = {
            (route.method, route.resource.canonical)
            for route in app.router.routes()
            if route.resource is not None and route.method != "HEAD"
        }
    assert routes == {call.route for call in CALLS} | OF_OTHERS


async def entries(master):
    return (await master.get("/v1/admin/audit?only=acts&limit=1000", token="admin")).body["entries"]


def filled(value, names):
    if isinstance(value, dict):
        return {key: filled(one, names) for key, one in value.items()}
    return re.sub(r"\{(\w+)\}", lambda m: names[m[1]], value) if isinstance(value, str) else value


async def test_every_admin_route_has_its_role_and_every_act_its_audit_row(master, tokens):
    relay = await FakeRelay(master).join()
    names = {"relay": relay.relay_id, "root": master.files.root_public_key, "pending": "x"}
    others = {
        "nobody": None, "a wrong token": "x" * 43, "the service": "service", "a relay": relay.token,
    }  # fmt: skip
    for call in CALLS:
        path, body = filled(call.path, names), filled(call.body, names)
        before = await entries(master)
        for who, token in others.items():
            if who == "the service" and call.also_service:
                continue
            if who == "a relay" and call.method == "DELETE":
                continue  # a relay may take itself out
            answer = await master.call(call.method, path, body, token=token)
            wanted = 403 if who == "the service" else 401
            assert answer.status == wanted, (call, who)
        for role in ROLES[: ROLES.index(call.role)]:
            answer = await master.call(call.method, path, body, token=tokens[role])
            assert (answer.status, answer.body["error"]) == (403, "forbidden"), (call, role)
            assert call.role in answer.body["message"]
        assert await entries(master) == before, "what is not allowed leaves no act"
        began_s = int(time.time())
        answer = await master.call(call.method, path, body, token=tokens[call.role])
        assert answer.status in (200, 201, 204, 409), (call, answer)
        rows = (await entries(master))[len(before) :]
        if call.action is None:
            assert rows == [], "who only looks leaves none"
            continue
        row = rows[0]
        assert (row["who"], row["action"], row["reason"]) == (
            f"the-{call.role}", call.action, "drill 7",
        ), call  # fmt: skip
        assert began_s <= row["at"] <= time.time()
        refused = answer.body["error"] if answer.status == 409 else "done"
        assert row["outcome"] == refused
        if call.target:
            assert row["target"] == filled(call.target, names)
        if call.action == "keys create":
            names["pending"] = answer.body["kid"]
            relay.held_kids += (names["pending"],)
            await relay.heartbeat()


async def test_higher_roles_may_do_what_lower_ones_may(master, tokens):
    await FakeRelay(master).join()
    for call in CALLS:
        if call.method != "GET" or "{relay}" in call.path:
            continue
        for role in ROLES:
            assert (await master.get(call.path, token=tokens[role])).status == 200, (call, role)
    order = {"kind": "user", "value": "eve", "reason": "x"}
    for role in ("operator", "admin"):
        assert (await master.post("/v1/admin/bans", order, token=tokens[role])).status == 200


@pytest.mark.parametrize(
    ("step", "code"),
    [
        ("activate", "unknown_key"),
        ("remove", "unknown_key"),
        ("revoke", "unknown_key"),
        ("rollback", "nothing_to_roll_back"),
    ],
)
async def test_a_key_step_that_a_rule_refuses_is_audited_with_its_outcome(
    master, tokens, step, code
):
    body = {"reason": "typo"} if step == "rollback" else {"kid": "no-such", "reason": "typo"}
    answer = await master.post(f"/v1/admin/keys/{step}", body, token=tokens["admin"])
    assert answer.body["error"] == code
    row = (await entries(master))[-1]
    assert (row["who"], row["action"], row["outcome"]) == ("the-admin", f"keys {step}", code)
    assert row["reason"] == "typo"


async def test_pitfall_no_caller_can_mint_a_label_value(master, tokens):
    """Paths, names and reasons of strangers and of operators are in no metric."""
    for number in range(5):
        mark = f"minted{number}"
        for path in (
            f"/{mark}", f"/v1/relays/{mark}", f"/v1/admin/switches/{mark}",
            f"/v1/admin/tokens/{mark}/rotate", f"/v1/admin/relays/{mark}/drain",
        ):  # fmt: skip
            for token in (None, mark * 8, tokens["admin"]):
                await master.post(path, {"on": True, "reason": mark}, token=token)
        order = {"kind": "user", "value": mark, "reason": mark}
        await master.post("/v1/admin/bans", order, token="admin")
        await master.post("/v1/leases/revoke", {"kid": mark, "force": True}, token="admin")
        await master.call("WEIRD" + str(number), "/v1/admin/status")
    text = (await master.get("/metrics")).body
    assert "minted" not in text
    values = {
        value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for value in sample.labels.values()
    }
    assert not [value for value in values if value.startswith("WEIRD")]
