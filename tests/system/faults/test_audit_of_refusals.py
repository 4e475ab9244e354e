"""What the audit log must hold: provoked at real services, read by ``wavryctl audit --json``."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
from support.control.gateway import PASSWORD, connected, gateway_process, http_call
from support.control.master import FakeRelay, MasterProcess, client_for
from support.system.system import clean_environment

from wavry_peer.protocol.http import signaling as wire

WRONG_LOGINS = 29


def ctl(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "wavry_cp.admin", *arguments],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def offend_gateway(url: str, viewer: str) -> None:
    async with aiohttp.ClientSession() as http:

        async def call(path: str, body: Any = None, token: str | None = None) -> int:
            method = "GET" if body is None else "POST"
            return (await http_call(http, url, method, path, body, token))[0]

        ann = {"username": "ann", "password": PASSWORD}
        assert await call("/auth/register", ann) == 201
        wrong = ann | {"password": "not the password"}
        statuses = [await call("/auth/login", wrong) for _ in range(WRONG_LOGINS)]
        assert set(statuses) == {401, 429}
        assert await call("/auth/register", {"username": "bob", "password": PASSWORD}) == 429
        assert await call("/v1/sessions", token="x" * 43) == 401
        assert await call("/v1/admin/users", token="x" * 43) == 401
        ban = {"kind": "user", "value": "eve", "reason": "spam"}
        assert await call("/v1/admin/bans", ban, viewer) == 403
        reset = {"username": "ann", "token": "x" * 43, "new_password": PASSWORD}
        assert await call("/auth/reset", reset) == 401
        async with connected(http, url) as socket:
            await socket.send(wire.Bind(token="x" * 43))
            await socket.error("invalid_token")


async def offend_master(process: MasterProcess) -> None:
    async with client_for(process.url, process.files) as client:
        relay = await FakeRelay(client).join()
        assert (await relay.heartbeat(token="x" * 43)).status == 401
        assert (await client.get("/v1/admin/status", token="x" * 43)).status == 401
        assert (await client.post("/v1/leases", {}, token="x" * 43)).status == 401
        statuses = [(await client.get("/.well-known/wavry-keys.json")).status for _ in range(260)]
        assert statuses[-1] == 429


async def test_failures_limits_and_acts_are_in_the_audit_log(tmp_path: Path) -> None:
    master = MasterProcess(tmp_path / "master")
    with master:
        admin = str(master.files.admin_token_file)
        limits = {
            "WAVRY_GATEWAY_SERVICE_TOKEN_FILE": str(master.files.service_token_file),
            "WAVRY_GATEWAY_ADMIN_TOKEN_FILE": admin,
            "WAVRY_GATEWAY_REGISTER_BURST": "1",
            "WAVRY_GATEWAY_LOGIN_BURST": "100",
        }
        with gateway_process(tmp_path / "gateway", master.url, limits) as gateway:
            urls = {"WAVRY_GATEWAY_URL": gateway.url, "WAVRY_MASTER_URL": master.url}
            environment = clean_environment(WAVRY_ADMIN_TOKEN_FILE=admin, **urls)
            token = json.loads(ctl(environment, "tokens", "create", "looker", "--role", "viewer",
                                   "--json"))["token"]  # fmt: skip
            await offend_gateway(gateway.url, token)
            await offend_master(master)
            ctl(environment, "bans", "add", "user", "eve", "--reason", "spam")
            ctl(environment, "relay-mode", "off", "--reason", "drill")
            ctl(environment, "users", "reset", "ann")
            gateway.listen = gateway.url.removeprefix("http://")
            assert gateway.stop() == 0  # An end writes the counts of the minute that it cuts off.
            gateway.start()
            rows = json.loads(ctl(environment, "audit", "--json", "--limit", "1000"))["entries"]
            told = json.loads(ctl(environment, "audit", "--json", "--only", "refused"))["entries"]
    found = {(row["service"], row["action"], row["target"], row["outcome"]) for row in rows}
    assert found >= {
        ("gateway", "login_failed", "ann", "invalid_credentials"),
        ("gateway", "login_limited", "/auth/login", "too_many_attempts"),
        ("gateway", "rate_limited", "/auth/register", "rate_limited"),
        ("gateway", "token_refused", "/v1/sessions", "invalid_token"),
        ("gateway", "admin_token_refused", "/v1/admin/users", "invalid_token"),
        ("gateway", "admin_call_forbidden", "looker", "forbidden"),
        ("gateway", "reset_failed", "/auth/reset", "invalid_reset"),
        ("gateway", "bind_refused", "/ws", "invalid_token"),
        ("gateway", "ban_user", "eve", "done"),
        ("gateway", "user_reset", "ann", "done"),
        ("master", "admin_token_refused", "/v1/admin/status", "unauthorized"),
        ("master", "token_refused", "/v1/leases", "unauthorized"),
        ("master", "relay_refused", "/v1/relays/heartbeat", "invalid_relay_token"),
        ("master", "rate_limited", "/.well-known/wavry-keys.json", "rate_limited"),
        ("master", "token_create", "looker (viewer)", "done"),
        ("master", "ban_user", "eve", "done"),
        ("master", "relay_mode_off", "relay-mode", "done"),
    }
    assert {row["who"].partition(":")[0] for row in told} == {"address"}
    logins = [row for row in told if row["action"] in ("login_failed", "login_limited")]
    assert len(logins) == 4  # Each kind at once, and its count.
    counted = sum(int(row["reason"].split()[0]) for row in logins if row["reason"])
    assert counted + 2 == WRONG_LOGINS
    logs = gateway.log + master.log.read_text()
    refused = [line for line in logs.splitlines() if "address:" in line]
    assert len(refused) < 40
    for text in (*refused, json.dumps(told)):
        assert "127.0.0.1" not in text
        assert "not the password" not in text
        assert "x" * 43 not in text
