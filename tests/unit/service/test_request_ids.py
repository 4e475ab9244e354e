"""The id of a request: in every answer, in every log line, and passed on."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from io import StringIO

import aiohttp
import pytest
import structlog
from aiohttp import web

from wavry_cp.app.http import listening, new_application
from wavry_peer.errors import GatewayError
from wavry_peer.gateway.client import GatewayClient
from wavry_peer.service import logs
from wavry_peer.service.http_client import JsonCaller
from wavry_peer.service.request_ids import REQUEST_ID_HEADER, current_request_id

TIMEOUT = aiohttp.ClientTimeout(total=20)
ID = "0123456789abcdef"


@pytest.fixture
def lines() -> "list[dict[str, object]]":
    return []


async def _echo(_request: web.Request) -> web.Response:
    structlog.get_logger().info("served")
    return web.Response(text=current_request_id())


async def _fail(_request: web.Request) -> web.Response:
    raise ZeroDivisionError


@pytest.fixture
async def url() -> AsyncIterator[str]:
    app = new_application()

    async def pass_on(_request: web.Request) -> web.Response:
        async with JsonCaller(TIMEOUT) as caller:
            answer = await caller.call("GET", where + "/echo")
        return web.Response(body=answer.raw)

    app.router.add_get("/echo", _echo)
    app.router.add_get("/fail", _fail)
    app.router.add_get("/pass-on", pass_on)
    async with listening(app, "127.0.0.1", 0) as where:
        yield where


async def test_an_answer_names_the_request_as_its_caller_does(url: str) -> None:
    async with aiohttp.ClientSession() as http:
        async with http.get(url + "/echo", headers={REQUEST_ID_HEADER: ID}) as answer:
            assert (answer.headers[REQUEST_ID_HEADER], await answer.text()) == (ID, ID)
        async with http.get(url + "/pass-on", headers={REQUEST_ID_HEADER: ID}) as answer:
            assert await answer.text() == ID, "what a service asks of others has the same id"


@pytest.mark.parametrize(
    "given", ["", "short", "x" * 25, "evil id\twith", "a" * 15 + "%0", "\u00e9" * 16]
)
async def test_an_id_of_another_form_is_replaced(url: str, given: str) -> None:
    async with (
        aiohttp.ClientSession() as http,
        http.get(url + "/echo", headers={REQUEST_ID_HEADER: given}) as answer,
    ):
        own = answer.headers[REQUEST_ID_HEADER]
        assert own == await answer.text()
        assert own != given
        assert len(own) == 16


@pytest.mark.parametrize(("path", "status"), [("/nothing", 404), ("/fail", 500)])
async def test_refusals_have_an_id_too(url: str, path: str, status: int) -> None:
    async with aiohttp.ClientSession() as http, http.get(url + path) as answer:
        assert answer.status == status
        own = answer.headers[REQUEST_ID_HEADER]
        assert len(own) == 16
        if status == 500:
            assert own in (await answer.json())["message"]


async def test_requests_of_one_connection_have_ids_of_their_own(url: str) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as http:
        seen = set()
        for _ in range(3):
            async with http.get(url + "/echo") as answer:
                seen.add(await answer.text())
    assert len(seen) == 3


async def test_bytes_that_are_no_http_are_answered_with_an_id(url: str) -> None:
    port = int(url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, family=socket.AF_INET)
    writer.write(b"GARBAGE\r\n\r\n")
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.0 400")
    assert f"\r\n{REQUEST_ID_HEADER}: ".encode() in answer


async def test_log_lines_of_a_request_name_it(url: str) -> None:
    before = structlog.get_config()
    out = StringIO()
    try:
        logs.configure("test", stream=out)
        async with aiohttp.ClientSession() as http:
            await http.get(url + "/echo", headers={REQUEST_ID_HEADER: ID})
    finally:
        structlog.configure(**before)
        structlog.contextvars.clear_contextvars()
    (line,) = (one for one in map(json.loads, out.getvalue().splitlines()))
    assert (line["event"], line["request_id"]) == ("served", ID)


async def test_an_error_of_the_gateway_shows_a_person_its_id(url: str) -> None:
    async with GatewayClient(url) as client:
        with pytest.raises(GatewayError) as refused:
            await client.close_session("0d8e4f6a-1111-4222-8333-944455566677")
    assert len(refused.value.request_id) == 16
    assert refused.value.request_id in str(refused.value)
