"""Named admin tokens of the master: roles, storage, rotation, expiry, and how they are checked."""

import hashlib
import hmac
import re

import pytest
from support.control.lease_parts import parties
from support.control.master import FakeRelay, MasterFiles, running_master

from wavry_cp.master.app import make_app
from wavry_cp.master.master import open_master
from wavry_cp.operators import admin_tokens
from wavry_cp.operators.admin_tokens import ShownToken

DAY_S = 86_400


async def create(master, name, role, **fields):
    body = {"name": name, "role": role, **fields}
    answer = await master.post("/v1/admin/tokens", body, token="admin")
    assert answer.status == 201, answer
    return answer.body["token"]


async def status_of(master, token, path="/v1/admin/status"):
    return (await master.get(path, token=token)).status


async def test_named_admin_tokens_with_roles(master):
    relay = await FakeRelay(master).join()
    tokens = {role: await create(master, f"the-{role}", role) for role in ("viewer", "operator")}
    tokens["admin"] = await create(master, "the-admin", "admin")
    drain = f"/v1/admin/relays/{relay.relay_id}/drain"
    made = {"name": "x", "role": "viewer"}
    calls = (
        ("viewer", "GET", "/v1/admin/status", None),
        ("viewer", "GET", "/v1/relays", None),
        ("viewer", "GET", "/v1/admin/audit", None),
        ("viewer", "GET", "/v1/admin/tokens", None),
        ("operator", "POST", drain, {}),
        ("admin", "POST", "/v1/admin/tokens", made),
        ("admin", "POST", "/v1/admin/tokens/x/rotate", {}),
        ("admin", "POST", "/v1/admin/tokens/x/revoke", {"reason": "test"}),
    )
    rank = ["viewer", "operator", "admin"]
    for needed, method, path, body in calls:
        for role in rank:
            answer = await master.call(method, path, body, token=tokens[role])
            if rank.index(role) < rank.index(needed):
                assert (answer.status, answer.body["error"]) == (403, "forbidden"), (role, path)
                assert needed in answer.body["message"]
            else:
                assert answer.status < 300, (role, path, answer)
    # None of them is the service token, and the service token is none of them.
    assert (await master.post("/v1/leases", parties(), token=tokens["admin"])).status == 403
    assert (await master.get("/v1/admin/tokens", token="service")).status == 403
    entries = (await master.get("/v1/admin/audit?only=acts&after=0", token="admin")).body["entries"]
    assert {e["who"] for e in entries if e["action"] == "drain"} == {"the-operator", "the-admin"}


async def test_every_admin_route_refuses_a_viewer_who_changes_something(tmp_path, clock):
    """A new admin route that forgets its role fails here."""
    async with running_master(tmp_path, clock.clock()) as master:
        viewer = await create(master, "looker", "viewer")
        async with open_master(MasterFiles.make(tmp_path / "twin").config()) as twin:
            app = make_app(twin)
            routes = {
                (route.method, route.resource.canonical)
                for route in app.router.routes()
                if route.resource is not None
                and route.resource.canonical.startswith("/v1/admin")
                and route.method not in {"GET", "HEAD"}
            }
        assert len(routes) >= 5
        for method, template in routes:
            path = re.sub(r"\{[a-z_]+\}", "somebody", template)
            answer = await master.call(method, path, {}, token=viewer)
            assert (answer.status, answer.body["error"]) == (403, "forbidden"), (method, path)


async def test_tokens_are_stored_hashed(tmp_path, clock):
    async with running_master(tmp_path, clock.clock()) as master:
        tokens = [await create(master, "ann", "admin")]
        answer = await master.post("/v1/admin/tokens/ann/rotate", token="admin")
        tokens.append(answer.body["token"])
        files = [path for path in master.files.data_dir.iterdir() if path.is_file()]
        kept = b"".join(path.read_bytes() for path in files)
        listed = (await master.get("/v1/admin/tokens", token="admin")).body
    for token in tokens:
        secret = token.split("_", 2)[2]
        assert hashlib.sha256(secret.encode()).hexdigest().encode() in kept
        assert token.encode() not in kept
        assert secret.encode() not in kept
        assert secret not in str(listed)


async def test_rotation_leaves_two_valid_until_the_overlap_ends(master, clock):
    first = await create(master, "ann", "operator")
    answer = await master.post("/v1/admin/tokens/ann/rotate", {"overlap_s": 3600}, token="admin")
    second = answer.body["token"]
    assert answer.body["previous"]["expires_at"] == clock.clock().now_s() + 3600
    assert answer.body["info"]["role"] == "operator"
    assert [await status_of(master, token) for token in (first, second)] == [200, 200]
    clock.advance(3599)
    assert await status_of(master, first) == 200
    clock.advance(1)
    assert [await status_of(master, token) for token in (first, second)] == [401, 200]


async def test_rotation_leaves_never_more_than_two_valid(master, clock):
    tokens = [await create(master, "ann", "viewer")]
    for _ in range(3):
        answer = await master.post("/v1/admin/tokens/ann/rotate", token="admin")
        tokens.append(answer.body["token"])
        statuses = [await status_of(master, token) for token in tokens]
        assert statuses == [401] * (len(tokens) - 2) + [200, 200]
    last = await master.post("/v1/admin/tokens/ann/rotate", {"overlap_s": 0}, token="admin")
    assert await status_of(master, tokens[-1]) == 401, "an overlap of 0 ends the old one now"
    assert await status_of(master, last.body["token"]) == 200


async def test_rotation_keeps_the_life_of_the_token_and_never_prolongs_the_old_one(master, clock):
    await create(master, "ann", "viewer", life_s=7200)
    clock.advance(7000)
    answer = await master.post("/v1/admin/tokens/ann/rotate", {"overlap_s": 3600}, token="admin")
    now_s = clock.clock().now_s()
    assert answer.body["info"]["expires_at"] == now_s + 7200
    assert answer.body["previous"]["expires_at"] == now_s + 200


async def test_a_token_ends_at_its_expiry_and_is_forgotten_later(tmp_path, clock):
    files = MasterFiles.make(tmp_path)
    async with running_master(tmp_path, clock.clock(), files) as master:
        token = await create(master, "ann", "viewer", life_s=90 * DAY_S)
        clock.advance(90 * DAY_S - 1)
        assert await status_of(master, token) == 200
        clock.advance(1)
        assert await status_of(master, token) == 401
        (row,) = (await master.get("/v1/admin/tokens", token="admin")).body["tokens"]
        assert row["valid"] is False
        clock.advance(8 * DAY_S)
    async with running_master(tmp_path, clock.clock(), files) as master:
        for _ in range(100):
            answer = await master.get("/v1/admin/tokens", token="admin")
            if not answer.body["tokens"]:
                break
        entries = (await master.get("/v1/admin/audit?only=acts", token="admin")).body["entries"]
    assert (entries[-1]["who"], entries[-1]["action"]) == ("system", "token_forget")


async def test_revoked_token_is_dead_at_once_and_its_name_free(master):
    first = await create(master, "ann", "admin")
    second = (await master.post("/v1/admin/tokens/ann/rotate", token=first)).body["token"]
    revoke = "/v1/admin/tokens/ann/revoke"
    assert (await master.post(revoke, {}, token="admin")).status == 400, "why?"
    assert (await master.post(revoke, {"reason": ""}, token="admin")).status == 400
    assert (await master.post(revoke, {"reason": "laptop lost"}, token="admin")).status == 200
    assert [await status_of(master, token) for token in (first, second)] == [401, 401]
    again = await create(master, "ann", "viewer")
    assert await status_of(master, again) == 200
    entries = (await master.get("/v1/admin/audit?only=acts&after=0", token="admin")).body["entries"]
    assert [(e["who"], e["action"], e["outcome"]) for e in entries] == [
        ("admin", "token_create", "done"),
        ("ann", "token_rotate", "done"),
        ("admin", "token_revoke", "done"),
        ("admin", "token_create", "done"),
    ]
    assert entries[2]["reason"] == "laptop lost"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"name": "admin", "role": "viewer"}, 400, "reserved_name"),
        ({"name": "service", "role": "viewer"}, 400, "reserved_name"),
        ({"name": "system", "role": "viewer"}, 400, "reserved_name"),
        ({"name": "taken", "role": "viewer"}, 409, "name_taken"),
        ({"name": "x", "role": "root"}, 400, "invalid_body"),
        ({"name": "a b", "role": "viewer"}, 400, "invalid_body"),
        ({"name": "x", "role": "viewer", "life_s": 0}, 400, "invalid_body"),
        ({"role": "viewer"}, 400, "invalid_body"),
    ],
)
async def test_tokens_that_cannot_be_made(master, body, status, code):
    await create(master, "taken", "viewer")
    answer = await master.post("/v1/admin/tokens", body, token="admin")
    assert (answer.status, answer.body["error"]) == (status, code)
    for order in ("rotate", "revoke"):
        path = f"/v1/admin/tokens/nobody/{order}"
        answer = await master.post(path, {"reason": "x"}, token="admin")
        assert (answer.status, answer.body["error"]) == (404, "unknown_token")


async def test_tokens_are_checked_in_constant_time(master, monkeypatch):
    """Every shape of wrong token goes through the same comparison of two digests."""
    token = await create(master, "ann", "viewer")
    _, token_id, secret = token.split("_", 2)
    compared = []
    real = hmac.compare_digest

    def watched(one, other):
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(admin_tokens.hmac, "compare_digest", watched)
    stored = hashlib.sha256(secret.encode()).hexdigest()
    for shown in (
        token,
        f"wvt_{token_id}_{'A' * 43}",
        f"wvt_{token_id}_{secret[:-1]}{'A' if secret[-1] != 'A' else 'B'}",
        f"wvt_{'0' * 10}_{secret}",
    ):
        compared.clear()
        await master.get("/v1/admin/status", token=shown)
        digests = [pair for pair in compared if isinstance(pair[0], str) and len(pair[0]) == 64]
        assert len(digests) == 1, "one comparison, whatever is wrong"
        assert all(len(text) == 64 for text in digests[0]), "of digests, never of secrets"
        assert secret not in digests[0]
    assert ShownToken.parse(token) == ShownToken(token_id, stored)


async def test_wrong_admin_tokens_are_rate_limited_by_address_and_counted(tmp_path, clock):
    settings = {"admin_failures_per_minute": 5, "trusted_proxies": ("127.0.0.0/8",)}
    async with running_master(tmp_path, clock.clock(), **settings) as master:
        good = await create(master, "ann", "viewer")
        bad = f"wvt_0123456789_{'A' * 43}"

        async def guess(address, token=bad):
            headers = {"X-Forwarded-For": address}
            return await master.get("/v1/admin/status", token=token, headers=headers)

        statuses = [(await guess("192.0.2.1")).status for _ in range(7)]
        assert statuses == [401] * 5 + [429] * 2
        answer = await guess("192.0.2.1", "x" * 43)
        assert (answer.status, answer.body["error"]) == (429, "rate_limited"), "of any shape"
        assert int(answer.headers["Retry-After"]) >= 1
        assert (await guess("192.0.2.2")).status == 401, "other addresses have their own allowance"
        assert (await guess("192.0.2.1", good)).status == 200, "nobody locks the operator out"
        assert (await guess("192.0.2.1", master.files.admin_token)).status == 200
        clock.advance(60)
        assert (await guess("192.0.2.1")).status == 401
        text = (await master.get("/metrics", token="admin")).body
    assert 'wavry_master_admin_auth_failures_total{cause="wrong_token"} 7.0' in text
    assert 'wavry_master_admin_auth_failures_total{cause="limited"} 3.0' in text


@pytest.mark.parametrize(
    "form",
    [
        "{id}_{secret}",
        "wvt_{id}_",
        "wvt_{id}_{secret}x",
        "wvt_{id}_{secret}\u00e9",
        "WVT_{id}_{secret}",
        "wvt__{secret}",
        "{secret}",
    ],
)
async def test_what_only_looks_like_a_token_is_none(master, form):
    _, token_id, secret = (await create(master, "ann", "viewer")).split("_", 2)
    assert await status_of(master, form.format(id=token_id, secret=secret)) == 401


async def test_gateways_ask_who_a_token_is_without_telling_its_secret(master):
    token = await create(master, "ann", "operator")
    shown = ShownToken.parse(token)
    body = {"token_id": shown.token_id, "secret_hash": shown.secret_hash}
    path = "/v1/admin/tokens/check"
    answer = await master.post(path, body, token="service")
    assert answer.body == {"valid": True, "name": "ann", "role": "operator"}
    wrong = {**body, "secret_hash": "0" * 64}
    assert (await master.post(path, wrong, token="service")).body == {"valid": False}
    assert (await master.post(path, body, token="admin")).status == 403
    assert (await master.post(path, body)).status == 401
