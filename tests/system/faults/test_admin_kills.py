"""kill -9 of master and gateway right after an act: no token, switch, ban or audit row is lost."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.control.gateway import ADMIN_TOKEN, GatewayProcess, http_call
from support.control.lease_parts import parties
from support.control.master import FakeRelay, MasterClient, MasterProcess, client_for

Check = Callable[[MasterClient], Awaitable[bool]]


async def order(master: MasterClient, path: str, body: dict[str, Any]) -> Any:
    answer = await master.post(path, body, token="admin")
    assert answer.status in (200, 201), answer
    return answer.body


async def token_made(master: MasterClient) -> Check:
    made = await order(master, "/v1/admin/tokens", {"name": "ann", "role": "viewer"})

    async def works(after: MasterClient) -> bool:
        return (await after.get("/v1/admin/status", token=made["token"])).status == 200

    return works


async def token_rotated(master: MasterClient) -> Check:
    made = await order(master, "/v1/admin/tokens", {"name": "ann", "role": "viewer"})
    new = await order(master, "/v1/admin/tokens/ann/rotate", {})

    async def both_work(after: MasterClient) -> bool:
        answers = [await after.get("/v1/admin/status", token=text["token"]) for text in (made, new)]
        return [answer.status for answer in answers] == [200, 200]

    return both_work


async def token_revoked(master: MasterClient) -> Check:
    made = await order(master, "/v1/admin/tokens", {"name": "ann", "role": "viewer"})
    await order(master, "/v1/admin/tokens/ann/revoke", {"reason": "lost"})

    async def is_dead(after: MasterClient) -> bool:
        return (await after.get("/v1/admin/status", token=made["token"])).status == 401

    return is_dead


async def relay_mode_off(master: MasterClient) -> Check:
    await order(master, "/v1/admin/switches/relay-mode", {"on": False, "reason": "drill"})

    async def is_off(after: MasterClient) -> bool:
        await FakeRelay(after).join()
        body = parties()
        answer = await after.post("/v1/leases", body, token="service")
        return bool(answer.body["error"] == "relay_mode_off")

    return is_off


async def lockdown_on(master: MasterClient) -> Check:
    await order(master, "/v1/admin/switches/lockdown", {"on": True, "reason": "drill"})

    async def is_closed(after: MasterClient) -> bool:
        return (await after.get("/v1/relays", token="service")).status == 503

    return is_closed


async def user_banned(master: MasterClient) -> Check:
    await order(master, "/v1/admin/bans", {"kind": "user", "value": "ann", "reason": "spam"})

    async def is_banned(after: MasterClient) -> bool:
        await FakeRelay(after).join()
        body = parties()
        answer = await after.post("/v1/leases", body, token="service")
        return bool(answer.body["error"] == "banned")

    return is_banned


async def relay_banned(master: MasterClient) -> Check:
    relay = await FakeRelay(master).join()
    await order(
        master, "/v1/admin/bans", {"kind": "relay", "value": relay.relay_id, "reason": "copied"}
    )

    async def is_out(after: MasterClient) -> bool:
        relay.client = after
        return (await relay.heartbeat()).status == 403

    return is_out


@pytest.mark.parametrize(
    "act",
    [
        token_made,
        token_rotated,
        token_revoked,
        relay_mode_off,
        lockdown_on,
        user_banned,
        relay_banned,
    ],
)
async def test_kill_9_of_the_master_right_after_an_act_loses_neither_it_nor_its_audit_row(
    tmp_path: Path, act: Callable[[MasterClient], Awaitable[Check]]
) -> None:
    with MasterProcess(tmp_path) as process:
        async with client_for(process.url, process.files) as master:
            holds = await act(master)
            await asyncio.to_thread(process.kill)
        rows_before = audit_rows(process.files.data_dir / "master.db")
        assert rows_before
        await asyncio.to_thread(process.start)
        async with client_for(process.url, process.files) as master:
            assert await holds(master)
            page = (await master.get("/v1/admin/audit?after=0", token="admin")).body["entries"]
            assert [row["action"] for row in page] == rows_before
            assert all(row["who"] == "admin" for row in page)


async def test_kill_9_in_the_middle_of_many_acts_leaves_each_whole_or_not_there(
    tmp_path: Path,
) -> None:
    with MasterProcess(tmp_path) as process:
        made: dict[str, str] = {}
        some_made = asyncio.Event()
        async with client_for(process.url, process.files) as master:

            async def create(number: int) -> None:
                body = {"name": f"t{number}", "role": "viewer"}
                answer = await master.post("/v1/admin/tokens", body, token="admin")
                if answer.status == 201:
                    made[body["name"]] = answer.body["token"]
                if len(made) >= 20:
                    some_made.set()

            tasks = [asyncio.create_task(create(number)) for number in range(200)]
            async with asyncio.timeout(30):
                await some_made.wait()
            process.kill()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(process.start)
        async with client_for(process.url, process.files) as master:
            listed = (await master.get("/v1/admin/tokens", token="admin")).body["tokens"]
            page = await master.get("/v1/admin/audit?after=0&limit=1000", token="admin")
            audited = {row["target"].split()[0] for row in page.body["entries"]}
            assert {row["name"] for row in listed} == audited, "an act and its row, or neither"
            assert set(made) <= audited, "what was answered is there"
            for token in made.values():
                assert (await master.get("/v1/admin/status", token=token)).status == 200


def audit_rows(path: Path) -> list[str]:
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT action FROM audit ORDER BY id").fetchall()
    database.close()
    return [row[0] for row in rows]


@pytest.mark.parametrize(
    ("path", "body", "probe", "code"),
    [
        (
            "/v1/admin/switches/lockdown",
            {"on": True, "reason": "drill"},
            ("/auth/login", {}),
            "lockdown",
        ),
        (
            "/v1/admin/bans",
            {"kind": "user", "value": "ann", "reason": "spam"},
            ("/auth/login", {"username": "ann", "password": "correct horse battery"}),
            "banned",
        ),
    ],
    ids=["lockdown", "ban"],
)
async def test_kill_9_of_the_gateway_right_after_an_act_loses_neither_it_nor_its_audit_row(
    tmp_path: Path, path: str, body: dict[str, Any], probe: tuple[str, dict[str, str]], code: str
) -> None:
    gateway = GatewayProcess(tmp_path / "gateway", "http://127.0.0.1:9")
    await asyncio.to_thread(gateway.start)
    try:
        async with aiohttp.ClientSession() as http:
            user = {"username": "ann", "password": "correct horse battery"}
            assert (await http_call(http, gateway.url, "POST", "/auth/register", user))[0] == 201
            status, answer, _ = await http_call(
                http, gateway.url, "POST", path, body, token=ADMIN_TOKEN
            )
            assert status == 200, answer
            await asyncio.to_thread(gateway.kill)
        await asyncio.to_thread(gateway.start)
        async with aiohttp.ClientSession() as http:
            status, answer, _ = await http_call(http, gateway.url, "POST", *probe)
            assert answer["error"] == code
            _, page, _ = await http_call(
                http, gateway.url, "GET", "/v1/admin/audit?after=0", token=ADMIN_TOKEN
            )
            (row,) = page["entries"]
            assert (row["who"], row["reason"]) == ("admin", body["reason"])
    finally:
        if gateway.process is not None:
            gateway.kill()
