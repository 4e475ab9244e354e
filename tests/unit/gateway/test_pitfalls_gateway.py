"""Mistakes seen in the field that the gateway must not make (one test for each)."""

import hashlib
import json
import signal
import sqlite3

import aiohttp
import pytest
from support.control.gateway import (
    PASSWORD,
    TestUser,
    connected,
    gateway_process,
    http_call,
    make_config,
    running_gateway,
)

from wavry_cp.gateway.signaling.service import BAD_FRAMES_ALLOWED

CLIENT = "198.51.100.77"
"""An address that nothing but X-Forwarded-For of a trusted proxy brings in."""


def credentials(name):
    return {"username": name, "password": PASSWORD}


@pytest.mark.parametrize("path", ["/auth/register", "/auth/login"])
async def test_pitfall_limiter_key_has_nothing_that_a_client_can_vary(tmp_path, master, path):
    config = make_config(
        tmp_path,
        master.url,
        register_burst=1,
        register_per_minute=0.1,
        login_burst=1,
        login_per_minute=0.1,
    )
    async with running_gateway(config) as running:
        await running.call("POST", path, credentials("ann"))
        for variant in (path, f"{path}?a=1", f"{path}?b=2", path.replace("auth", "%61uth")):
            for headers in ({}, {"User-Agent": variant}, {"Authorization": f"Bearer {variant}"}):
                status, body, _ = await running.call(
                    "POST", variant, credentials("ann"), headers=headers
                )
                assert (status, body["error"]) == (429, "rate_limited"), variant


async def test_pitfall_identity_is_never_cut_from_a_part_of_a_token(gateway):
    token = (await gateway.user("ann")).token
    forged = [
        token[:-1],
        token[:8],
        token + "A",
        f"{token}.x",
        f"ann{token}",
        f"ann.{token}",
        "ann",
    ]
    for bad in [*forged, token.swapcase(), f" {token}", token[::-1]]:
        async with connected(gateway.http, gateway.url) as socket:
            await socket.ws.send_str(json.dumps({"type": "BIND", "token": bad}))
            assert await socket.close_code() == 4401, bad
        if bad == bad.strip():  # HTTP itself takes white space off
            assert (await gateway.call("GET", "/v1/sessions", token=bad))[0] == 401, bad
    assert (await gateway.call("GET", "/v1/sessions", token=token))[0] == 200


async def test_pitfall_strikes_of_one_connection_ban_no_address(tmp_path, master):
    config = make_config(tmp_path, master.url, connects_burst=100)
    async with running_gateway(config) as running:
        ann = await running.user("ann")
        bob = await running.user("bob")
        async with ann.online() as well:
            for _ in range(3):
                async with bob.online() as bad:
                    for _ in range(BAD_FRAMES_ALLOWED + 1):
                        await bad.ws.send_str("{")
                    assert await bad.close_code() == 4400
            # The same address, another connection: neither it nor a new one suffers for that.
            await well.silent()
            async with bob.online() as again:
                await again.silent()


async def test_pitfall_failed_binds_ban_no_address(tmp_path, master):
    config = make_config(tmp_path, master.url, connects_burst=100)
    async with running_gateway(config) as running:
        ann = await running.user("ann")
        for _ in range(20):
            async with connected(running.http, running.url) as stranger:
                await stranger.ws.send_str(json.dumps({"type": "BIND", "token": "A" * 43}))
                assert await stranger.close_code() == 4401
        async with ann.online() as socket:
            await socket.silent()


async def test_pitfall_no_address_at_rest_neither_raw_nor_hashed(tmp_path, master):
    hashes = {
        hashlib.new(name, form).hexdigest()
        for name in ("md5", "sha1", "sha256", "blake2b", "blake2s")
        for form in (CLIENT.encode(), bytes(map(int, CLIENT.split("."))))
    }
    environment = {"WAVRY_GATEWAY_TRUSTED_PROXIES": "127.0.0.0/8", "WAVRY_LOG_LEVEL": "debug"}
    forwarded = {"X-Forwarded-For": CLIENT}
    with gateway_process(tmp_path, master.url, environment) as process:
        async with aiohttp.ClientSession(headers=forwarded) as http:
            ann = await TestUser.create(http, process.url, "ann")
            wrong = {"username": "ann", "password": "wrong password"}
            for _ in range(8):  # into the growing delay
                await http_call(http, process.url, "POST", "/auth/login", wrong)
            async with ann.online() as socket:
                await socket.ws.send_str("{")
                await socket.error("invalid_json")
                await socket.silent()
            await ann.call("GET", "/v1/sessions")
            kept = b"".join(
                file.read_bytes() for file in process.data_dir.iterdir() if file.is_file()
            )
        assert process.stop() == 0
        with sqlite3.connect(process.data_dir / "gateway.db") as database:
            kept += "\n".join(database.iterdump()).encode()
        kept += process.log.encode()
    assert b"ann" in kept
    assert CLIENT.encode() not in kept
    assert bytes(map(int, CLIENT.split("."))) not in kept
    assert not [text for text in hashes if text.encode() in kept or bytes.fromhex(text) in kept]


async def test_pitfall_ctrl_c_ends_it_with_clients_connected(tmp_path, master):
    with gateway_process(tmp_path, master.url) as process:
        async with aiohttp.ClientSession() as http:
            ann = await TestUser.create(http, process.url, "ann")
            async with ann.online() as socket:
                assert process.process is not None
                process.process.send_signal(signal.SIGINT)
                await socket.error("shutting_down")
                assert await socket.close_code() == 1001
                assert process.process.wait(timeout=10) == 0
        assert "Traceback" not in process.log
        process.process = None


async def test_pitfall_metrics_do_not_leak_through_a_proxy_that_nobody_declared(gateway):
    for forwarded in ("198.51.100.7", "127.0.0.1"):
        status, _, _ = await gateway.call("GET", "/metrics", headers={"X-Forwarded-For": forwarded})
        assert status == 403
