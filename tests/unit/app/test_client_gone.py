"""A client that goes away in the middle of its request is no fault of ours."""

import asyncio
from urllib.parse import urlsplit

import pytest
import structlog
from aiohttp import web

from wavry_cp.app.http import listening, new_application, read_body
from wavry_peer.protocol.http.api import UserCredentials


@pytest.mark.parametrize("how", ["abort", "close"])
async def test_pitfall_half_a_body_is_neither_an_error_line_nor_a_500(how: str) -> None:
    began, ended = asyncio.Event(), asyncio.Event()
    statuses: list[int] = []

    async def take(request: web.Request) -> web.Response:
        began.set()
        try:
            await read_body(request, UserCredentials)
        finally:
            ended.set()
        return web.Response()

    async def count(_request: web.Request, response: web.StreamResponse) -> None:
        statuses.append(response.status)

    app = new_application()
    app.router.add_post("/x", take)
    app.on_response_prepare.append(count)
    with structlog.testing.capture_logs() as logs:
        async with asyncio.timeout(20), listening(app, "127.0.0.1", 0) as url:
            _, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
            writer.write(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            await began.wait()
            if how == "abort":
                writer.transport.abort()
            else:
                writer.close()
            await ended.wait()
    assert [line for line in logs if line["log_level"] == "error"] == []
    assert [status for status in statuses if status >= 500] == []
