"""The deadline of a first request: for its head alone, however long its answer takes."""

import asyncio

import aiohttp
import pytest
from aiohttp import web

from wavry_cp.app.http import listening, new_application
from wavry_peer.protocol.errors import ListenError
from wavry_peer.service import http_server


async def _slow(_request: web.Request) -> web.Response:
    await asyncio.sleep(0.4)
    return web.Response(text="at last")


async def test_a_first_request_may_take_longer_than_its_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_server, "FIRST_REQUEST_TIMEOUT_S", 0.1)
    app = new_application()
    app.router.add_get("/slow", _slow)
    async with (
        listening(app, "127.0.0.1", 0) as url,
        aiohttp.ClientSession() as client,
        client.get(url + "/slow") as answer,
    ):
        assert (answer.status, await answer.text()) == (200, "at last")


async def test_a_taken_port_is_one_clear_error() -> None:
    async with listening(new_application(), "127.0.0.1", 0) as url:
        port = int(url.rsplit(":", 1)[1])
        with pytest.raises(ListenError, match=f"127.0.0.1:{port}"):
            async with listening(new_application(), "127.0.0.1", port):
                raise AssertionError("it listens twice")
