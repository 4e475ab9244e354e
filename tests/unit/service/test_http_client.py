"""Answers that arrive in pieces, at each of the five callers, from a real server."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import aiohttp
import msgspec
import pytest
from aiohttp import web
from typer.testing import CliRunner

from wavry_cp.admin.client import ask_json
from wavry_cp.admin.commands.app import app as wavryctl
from wavry_cp.admin.doctor.reach import Asker
from wavry_cp.admin.output import CommandError
from wavry_cp.app.refusal import RefusedError
from wavry_cp.gateway.metrics import GatewayMetrics
from wavry_cp.gateway.sessions.broker import Broker
from wavry_peer.errors import GatewayUnreachableError
from wavry_peer.gateway.client import GatewayClient
from wavry_peer.protocol.ed25519 import SigningKey
from wavry_peer.protocol.errors import MessageError
from wavry_peer.protocol.http.admin import AuditPage, AuditRow, TokenCheckRequest
from wavry_peer.protocol.http.api import MAX_BODY_BYTES, RelayInfo, RelayList, SessionInfo
from wavry_peer.service.clock import Clock
from wavry_peer.service.http_client import CallError, JsonCaller
from wavry_relay.master.call_error import MasterCallError
from wavry_relay.master.description import RelayDescription
from wavry_relay.master.link import MasterLink

PIECE_BYTES = 30_000
TIMEOUT = aiohttp.ClientTimeout(total=20)
TOKEN = "t" * 43
DESCRIPTION = RelayDescription(
    SigningKey.from_seed(bytes(32)), ("127.0.0.1:4500",), None, 10, 1000, "1"
)
SESSION = SessionInfo(
    session_id="0d8e4f6a-1111-4222-8333-944455566677",
    state="pending",
    caller="ann",
    callee="bob",
    created_at=1,
    expires_at=2,
)

Serve = Callable[..., Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """A server that gives one body to every question, in pieces; gives its URL."""
    runners: list[web.AppRunner] = []

    async def start(body: bytes, status: int = 200) -> str:
        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(status=status)
            response.content_length = len(body)
            await response.prepare(request)
            for at in range(0, len(body), PIECE_BYTES):
                await response.write(body[at : at + PIECE_BYTES])
                await asyncio.sleep(0.001)
            return response

        application = web.Application()
        application.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


def relays(number: int) -> bytes:
    rows = tuple(
        RelayInfo(
            relay_id=f"rly_{at:020}", endpoints=("192.0.2.1:4500", "[2001:db8::1]:4500"),
            state="active", load_pct=1.5, active_sessions=at, max_sessions=10_000, version="1.0",
            held_kids=("k" * 12, "l" * 12), registered_at=1, last_heartbeat_at=2,
        )
        for at in range(number)
    )  # fmt: skip
    return msgspec.json.encode(RelayList(relays=rows))


def padded(body: Any, size: int) -> bytes:
    """JSON of this size: blanks at its end change nothing."""
    return msgspec.json.encode(body).ljust(size)


async def test_an_answer_of_4_mb_in_pieces_is_read_whole(serve: Serve) -> None:
    url = await serve(padded({"a": 1}, 4_000_000))
    async with JsonCaller(TIMEOUT, max_bytes=4_000_000) as caller:
        answer = await caller.call("GET", url + "/any")
    assert (answer.status, len(answer.raw)) == (200, 4_000_000)
    assert answer.read(dict[str, int]) == {"a": 1}


async def test_an_answer_over_the_bound_is_an_error_that_says_so(serve: Serve) -> None:
    url = await serve(bytes(4_000_001))
    async with JsonCaller(TIMEOUT, max_bytes=4_000_000) as caller:
        with pytest.raises(CallError, match="over 4000000 bytes"):
            await caller.call("GET", url)


async def test_a_long_failure_keeps_its_status(serve: Serve) -> None:
    url = await serve(b"<html>" * 100_000, 502)
    async with JsonCaller(TIMEOUT) as caller:
        answer = await caller.call("GET", url)
        assert (answer.status, answer.error_body()) == (502, None)
        with pytest.raises(MessageError):
            answer.read(dict[str, Any])


async def test_wavryctl_reads_4_mb(serve: Serve) -> None:
    url = await serve(body := relays(16_000))
    assert len(body) > 4_000_000
    answer = await ask_json("master", url, "/v1/relays", RelayList, timeout_s=20)
    assert len(answer.relays) == 16_000


async def test_wavryctl_says_that_an_answer_is_too_large(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wavry_cp.admin.client.MAX_ANSWER_BYTES", 100_000)
    url = await serve(relays(1000))
    with pytest.raises(CommandError, match="over 100000 bytes") as caught:
        await ask_json("master", url, "/v1/relays", RelayList)
    assert caught.value.code == "answer_too_large"


@pytest.mark.parametrize(
    ("arguments", "key"),
    [(("audit", "--limit", "1000"), "entries"), (("relays", "list"), "relays")],
)
async def test_the_commands_that_had_lost_their_answers(
    arguments: tuple[str, ...], key: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tuple(
        AuditRow(
            id=at + 1, at=at, who="carol", action="bans.put", target=f"user-{at}",
            reason="x" * 200, outcome="done",
        )
        for at in range(1000)
    )  # fmt: skip
    body = relays(1000) if key == "relays" else msgspec.json.encode(AuditPage(entries=rows))
    assert len(body) > 200_000
    url = await serve(body)
    monkeypatch.setenv("WAVRY_MASTER_URL", url)
    monkeypatch.setenv("WAVRY_ADMIN_TOKEN", TOKEN)
    monkeypatch.setenv("WAVRY_GATEWAY_URL", url)
    run = await asyncio.to_thread(CliRunner().invoke, wavryctl, [*arguments, "--json"])
    assert run.exit_code == 0, run.output
    services = 2 if key == "entries" else 1
    assert len(json.loads(run.stdout)[key]) == services * 1000


async def test_the_doctor_reads_4_mb(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    url = await serve(relays(16_000))
    async with Asker() as asker:
        answer = await asker.get(url, "/v1/relays")
        listed = answer.read(RelayList)
        assert listed is not None
        assert len(listed.relays) == 16_000
    monkeypatch.setattr("wavry_cp.admin.doctor.reach.MAX_ANSWER_BYTES", 100_000)
    async with Asker() as asker:
        large = await asker.get(url, "/v1/relays")
    assert (large.reach, large.is_reached) == ("too_large", False)
    assert "too large" in large.text


async def test_the_peer_takes_its_bound_in_pieces_and_no_more(serve: Serve) -> None:
    async with GatewayClient(await serve(padded(SESSION, MAX_BODY_BYTES))) as client:
        assert await client.session_info(SESSION.session_id) == SESSION
    async with GatewayClient(await serve(padded(SESSION, 4_000_000))) as client:
        with pytest.raises(GatewayUnreachableError, match=f"over {MAX_BODY_BYTES} bytes"):
            await client.session_info(SESSION.session_id)


async def test_the_relay_takes_its_bound_in_pieces_and_no_more(serve: Serve) -> None:
    url = await serve(bytes(4_000_000))
    # Key ring, orders and load have no part in a GET.
    unused = cast("Any", None)
    link = MasterLink(url, DESCRIPTION, unused, unused, unused, Clock())
    link._http = JsonCaller(TIMEOUT)
    try:
        assert len(await link.get("/any", 4_000_000)) == 4_000_000
        with pytest.raises(MasterCallError, match="over 65536 bytes"):
            await link.get("/any", MAX_BODY_BYTES)
    finally:
        await link._http.close()


async def test_the_broker_takes_its_bound_in_pieces_and_no_more(serve: Serve) -> None:
    asked = TokenCheckRequest(token_id="a" * 10, secret_hash="b" * 64)
    known = {"valid": True, "name": "carol", "role": "admin"}
    for size, error in ((MAX_BODY_BYTES, ""), (4_000_000, f"over {MAX_BODY_BYTES} bytes")):
        url = await serve(padded(known, size))
        broker = Broker(url, lambda: TOKEN, timeout_s=20, clock=Clock(), metrics=GatewayMetrics())
        try:
            if error:
                with pytest.raises(RefusedError):
                    await broker.check_admin_token(asked)
                assert error in broker.error
            else:
                assert (await broker.check_admin_token(asked)).name == "carol"
        finally:
            await broker.close()
