"""The access log: off, on, sampled; it names no path, no token and no full address."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from io import StringIO
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp import web

from wavry_cp.app import requests
from wavry_cp.app.http import listening, new_application
from wavry_cp.app.requests import AccessLog, AccessLogMode, check_access_log, observe_requests
from wavry_peer.service import logs
from wavry_peer.service.clock import Clock

Serve = Callable[[AccessLogMode], AbstractAsyncContextManager[str]]


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> Iterator[StringIO]:
    monkeypatch.setattr(requests, "_log", structlog.get_logger())  # A used one keeps its stream.
    before = structlog.get_config()
    stream = StringIO()
    logs.configure("test", stream=stream)
    yield stream
    structlog.configure(**before)
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def counted() -> list[tuple[str, str, int]]:
    return []


@pytest.fixture
def serve(counted: list[tuple[str, str, int]]) -> Serve:
    @asynccontextmanager
    async def serving(mode: AccessLogMode) -> AsyncIterator[str]:
        app = new_application()
        clock = Clock()
        observe_requests(
            app,
            lambda route, method, status, _seconds: counted.append((route, method, status)),
            AccessLog(mode, ()),
            clock.monotonic_s,
        )

        async def fail(_request: web.Request) -> web.Response:
            raise ZeroDivisionError

        app.router.add_get("/users/{name}", _done)
        app.router.add_get("/fail", fail)
        async with listening(app, "127.0.0.1", 0) as url:
            yield url

    return serving


async def _done(_request: web.Request) -> web.Response:
    return web.Response()


def lines_of(out: StringIO) -> list[dict[str, Any]]:
    lines = map(json.loads, out.getvalue().splitlines())
    return [line for line in lines if line["event"] == "request"]


async def test_on_writes_a_line_for_each_request(
    serve: Serve, out: StringIO, counted: list[tuple[str, str, int]]
) -> None:
    async with serve(AccessLogMode.ON) as url, aiohttp.ClientSession() as http:
        headers = {"Authorization": "Bearer secret-token"}
        await http.get(url + "/users/mallory?password=secret", headers=headers)
        await http.request("TRACE", url + "/nothing")
    first, second = lines_of(out)
    assert (first["route"], first["method"], first["status"]) == ("/users/{name}", "GET", 200)
    assert first["client"] == "127.0.0.0/24"
    assert len(first["request_id"]) == 16
    assert first["duration_ms"] >= 0
    assert (second["route"], second["method"], second["status"]) == ("unmatched", "other", 404)
    for word in ("mallory", "secret", "127.0.0.1"):
        assert word not in out.getvalue()
    assert counted == [("/users/{name}", "GET", 200), ("unmatched", "other", 404)]


async def test_sampled_writes_one_in_a_hundred_and_each_fault_of_ours(
    serve: Serve, out: StringIO
) -> None:
    async with serve(AccessLogMode.SAMPLED) as url, aiohttp.ClientSession() as http:
        for _ in range(99):
            await http.get(url + "/users/a")
        assert lines_of(out) == []
        await http.get(url + "/users/a")
        await http.get(url + "/fail")
    assert [line["status"] for line in lines_of(out)] == [200, 500]


async def test_off_writes_nothing_and_counts_all(
    serve: Serve, out: StringIO, counted: list[tuple[str, str, int]]
) -> None:
    async with serve(AccessLogMode.OFF) as url, aiohttp.ClientSession() as http:
        await http.get(url + "/users/a")
        await http.get(url + "/fail")
    assert lines_of(out) == []
    assert [status for _, _, status in counted] == [200, 500]


def test_another_word_is_refused() -> None:
    assert check_access_log("WAVRY_X", "sampled") == []
    assert check_access_log("WAVRY_X", "yes") == ["WAVRY_X must be off, sampled, on"]
