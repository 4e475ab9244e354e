"""Admin tokens at the gateway: its own file works alone, named tokens are the master's to judge."""

import asyncio
import time

import pytest
from support.control.gateway import ADMIN_TOKEN, make_config, running_gateway
from support.control.master import MasterFiles
from support.control.master import running_master as running_real_master

from wavry_cp.gateway import admin_access

USERS = "/v1/admin/users"


@pytest.fixture
async def both(tmp_path):
    """The real master and a gateway on it."""
    files = MasterFiles.make(tmp_path / "master")
    async with running_real_master(tmp_path / "master", files=files) as master:
        config = make_config(
            tmp_path / "gateway", master.url, service_token_file=files.service_token_file
        )
        async with running_gateway(config) as gateway:
            yield master, gateway


async def create(master, name, role):
    answer = await master.post("/v1/admin/tokens", {"name": name, "role": role}, token="admin")
    return answer.body["token"]


async def test_named_tokens_of_the_master_work_at_the_gateway(both):
    master, gateway = both
    viewer = await create(master, "looker", "viewer")
    status, body, _ = await gateway.call("GET", USERS, token=viewer)
    assert (status, body) == (200, {"users": []})
    status, body, _ = await gateway.call("GET", USERS, token=viewer[:-1] + "!")
    assert (status, body["error"]) == (401, "invalid_token")
    status, body, _ = await gateway.call("GET", USERS, token=f"wvt_0123456789_{'A' * 43}")
    assert (status, body["error"]) == (401, "invalid_token")


async def test_a_token_revoked_at_the_master_is_dead_at_the_gateway_within_seconds(both):
    master, gateway = both
    token = await create(master, "ann", "viewer")
    assert (await gateway.call("GET", USERS, token=token))[0] == 200
    await master.post("/v1/admin/tokens/ann/revoke", {"reason": "lost"}, token="admin")
    deadline_s = time.monotonic() + 15
    while (await gateway.call("GET", USERS, token=token))[0] != 401:
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.2)
    assert admin_access.VALID_S <= 5


async def test_without_the_master_the_own_file_works_and_others_get_a_clear_error(
    tmp_path, unused_tcp_port
):
    config = make_config(tmp_path, f"http://127.0.0.1:{unused_tcp_port}")
    async with running_gateway(config) as gateway:
        assert (await gateway.call("GET", USERS, token=ADMIN_TOKEN))[0] == 200
        token = f"wvt_0123456789_{'A' * 43}"
        status, body, headers = await gateway.call("GET", USERS, token=token)
        assert (status, body["error"]) == (503, "admin_check_unavailable")
        assert "WAVRY_GATEWAY_ADMIN_TOKEN_FILE" in body["message"]
        assert "Retry-After" in headers


async def test_wrong_admin_tokens_are_rate_limited_at_the_gateway_too(tmp_path, master):
    config = make_config(tmp_path, master.url, admin_failures_per_minute=3)
    async with running_gateway(config) as gateway:
        statuses = [(await gateway.call("GET", USERS, token="x" * 43))[0] for _ in range(5)]
        assert statuses == [401] * 3 + [429] * 2
        assert (await gateway.call("GET", USERS, token=ADMIN_TOKEN))[0] == 200
        # A stranger's named token is not worth a call of the master any more.
        before = master_checks(gateway)
        status, _, _ = await gateway.call("GET", USERS, token=f"wvt_0123456789_{'A' * 43}")
        assert status == 429
        assert master_checks(gateway) == before
        text = gateway.gateway.metrics.text().decode()
    assert 'wavry_gateway_admin_auth_failures_total{cause="wrong_token"} 3.0' in text
    assert 'wavry_gateway_admin_auth_failures_total{cause="limited"} 3.0' in text


def master_checks(gateway):
    text = gateway.gateway.metrics.text().decode()
    return [line for line in text.splitlines() if 'call="check_token"' in line]


async def test_strangers_tokens_fill_no_memory_and_do_not_flood_the_master(both, monkeypatch):
    master, gateway = both
    monkeypatch.setattr(admin_access, "MAX_KEPT", 4)
    for number in range(10):
        await gateway.call("GET", USERS, token=f"wvt_{number:010d}_{'A' * 43}")
    assert len(gateway.gateway.admin._kept) <= 4
    token = await create(master, "ann", "viewer")
    for _ in range(20):
        assert (await gateway.call("GET", USERS, token=token))[0] == 200
    asked = [line for line in master_checks(gateway) if 'result="ok"' in line]
    assert asked
    assert float(asked[0].split()[-1]) == 11, "ten strangers, and once for the known one"


async def test_a_named_token_ends_a_lockdown_of_both_services(both):
    """What closes everything must not close the way back."""
    master, gateway = both
    token = await create(master, "ann", "admin")
    path = "/v1/admin/switches/lockdown"
    assert (await master.post(path, {"on": True, "reason": "drill"}, token=token)).status == 200
    status, body, _ = await gateway.call("POST", path, {"on": True, "reason": "x"}, token=token)
    assert (status, body["who"]) == (200, "ann")
    gateway.gateway.admin._kept.clear()  # as after five seconds: the master is asked again
    assert (await gateway.call("POST", path, {"on": False}, token=token))[0] == 200
    assert (await master.post(path, {"on": False}, token=token)).status == 200


async def test_strangers_with_many_addresses_do_not_lock_out_a_named_token(tmp_path):
    files = MasterFiles.make(tmp_path / "master")
    async with running_real_master(tmp_path / "master", files=files) as master:
        config = make_config(
            tmp_path / "gateway",
            master.url,
            service_token_file=files.service_token_file,
            trusted_proxies=("127.0.0.0/8",),
        )
        async with running_gateway(config) as gateway:
            token = await create(master, "ann", "viewer")
            for number in range(120):
                await gateway.call(
                    "GET",
                    USERS,
                    token=f"wvt_{number:010d}_{'A' * 43}",
                    headers={"X-Forwarded-For": f"192.0.2.{number % 6}"},
                )
            own = {"X-Forwarded-For": "198.51.100.9"}
            assert (await gateway.call("GET", USERS, token=token, headers=own))[0] == 200
