"""Connections that only wait make room for others where the process has no descriptor left."""

import asyncio
import contextlib
import itertools
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

import aiohttp
import pytest
import structlog.testing
from aiohttp import web

from wavry_cp.app.http import CONNECTION_BOUNDS, listening, new_application
from wavry_peer.service import http_listener
from wavry_peer.service.http_listener import ConnectionBounds, HttpListener


@contextlib.contextmanager
def room_for(more: int) -> Iterator[None]:
    """Let this process open so many descriptors more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(fd.name) for fd in Path("/proc/self/fd").iterdir()}
    free = (number for number in itertools.count() if number not in used)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (next(itertools.islice(free, more, None)), before[1])
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def _hello(_request: web.Request) -> web.Response:
    return web.Response(text="hello")


_HOLD = """
import resource, socket, sys
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
held = [
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), source_address=(sys.argv[2], 0))
    for _ in range(int(sys.argv[3]))
]
print("held", flush=True)
sys.stdin.read()
"""


async def hold_idle(stack: AsyncExitStack, port: int, source: str, count: int) -> None:
    """Connections of another process that say nothing."""
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _HOLD, str(port), source, str(count),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip

    async def end() -> None:
        await holder.communicate(b"")

    stack.push_async_callback(end)
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"


async def open_files_all_the_time(count: int) -> None:
    """Use descriptors as the service itself does, until there is none, in each turn of the loop."""
    while True:
        for own in [os.dup(0) for _ in range(count)]:
            os.close(own)
        await asyncio.sleep(0)


async def test_pitfall_idle_connections_of_one_address_keep_nobody_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_listener, "PAUSE_S", 0.01)
    app = new_application()
    app.router.add_get("/hello", _hello)
    defects: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, about: defects.append(about))
    with structlog.testing.capture_logs() as logs:
        async with AsyncExitStack() as stack, listening(app, "127.0.0.1", 0) as url:
            port = int(url.rpartition(":")[2])
            with room_for(40):
                opening = asyncio.create_task(open_files_all_the_time(3))
                await hold_idle(stack, port, "127.0.0.2", 500)
                for _ in range(20):
                    async with (
                        aiohttp.ClientSession() as client,
                        client.get(url + "/hello", timeout=aiohttp.ClientTimeout(20)) as answer,
                    ):
                        assert await answer.text() == "hello"
                assert not opening.done(), opening
                opening.cancel()
    assert not defects
    assert [line["event"] for line in logs].count("connections_short") == 1


async def test_a_connection_in_the_middle_of_a_request_is_not_closed_for_another() -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        entered.set()
        await leave.wait()
        return web.Response(text="at last")

    app = new_application()
    app.router.add_get("/slow", slow)
    async with (
        AsyncExitStack() as stack,
        listening(app, "127.0.0.1", 0) as url,
        aiohttp.ClientSession() as client,
    ):
        asked = asyncio.create_task(client.get(url + "/slow"))
        await entered.wait()
        with room_for(40):
            await hold_idle(stack, int(url.rpartition(":")[2]), "127.0.0.1", 200)
            leave.set()
            answer = await asked
            assert await answer.text() == "at last"


async def _echo(request: web.Request) -> web.WebSocketResponse:
    answer = web.WebSocketResponse()
    await answer.prepare(request)
    async for message in answer:
        await answer.send_str(message.data)
    return answer


class Client:
    """A connection from an address of this host."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, stack: AsyncExitStack, port: int, source: str) -> Self:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
        stack.callback(writer.close)
        return cls(reader, writer)

    async def answers(self) -> bool:
        """Ask, and wait for the next question."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            self.writer.write(b"GET /hello HTTP/1.1\r\nHost: wavry.example\r\n\r\n")
            async with asyncio.timeout(20):
                return (await self.reader.readuntil(b"hello")).endswith(b"hello")
        return False


async def test_an_address_over_its_bound_gives_up_its_own_oldest_idle_connection() -> None:
    app = new_application()
    app[CONNECTION_BOUNDS] = ConnectionBounds(
        per_address=3, is_proxy=lambda host: host == "127.0.0.9"
    )
    app.router.add_get("/hello", _hello)
    app.router.add_get("/socket", _echo)
    before = HttpListener.given_up
    async with (
        AsyncExitStack() as stack,
        listening(app, "127.0.0.1", 0) as url,
        aiohttp.ClientSession(url) as http,
        http.ws_connect("/socket") as one,
    ):
        port = int(url.rpartition(":")[2])

        async def connect(source: str) -> Client:
            return await Client.connect(stack, port, source)

        elsewhere = await connect("127.0.0.2")
        assert await elsewhere.answers()
        oldest, second = await connect("127.0.0.1"), await connect("127.0.0.1")
        assert await oldest.answers()
        assert await second.answers()
        with structlog.testing.capture_logs() as logs:
            newest = await connect("127.0.0.1")
            assert await newest.answers()
            assert not await oldest.answers()
            async with http.ws_connect("/socket"), http.ws_connect("/socket"):
                assert not await second.answers()
                assert not await newest.answers()
                refused = await connect("127.0.0.1")
                assert not await refused.answers()
                await one.send_str("still here")
                assert await one.receive_str() == "still here"
        assert [line["event"] for line in logs] == ["connections_short"]
        assert HttpListener.given_up == before + 4
        assert await elsewhere.answers()
        for client in [await connect("127.0.0.9") for _ in range(6)]:
            assert await client.answers()
        assert HttpListener.given_up == before + 4


async def test_what_is_open_in_all_is_bounded_and_whoever_has_most_makes_room() -> None:
    app = new_application()
    app[CONNECTION_BOUNDS] = ConnectionBounds(total=4)
    app.router.add_get("/hello", _hello)
    async with AsyncExitStack() as stack, listening(app, "127.0.0.1", 0) as url:
        port = int(url.rpartition(":")[2])
        clients = [
            await Client.connect(stack, port, source)
            for source in ("127.0.0.3", "127.0.0.2", "127.0.0.2", "127.0.0.2")
        ]
        for client in clients:
            assert await client.answers()
        clients.append(await Client.connect(stack, port, "127.0.0.1"))
        assert await clients[-1].answers()
        assert [await client.answers() for client in clients] == [True, False, True, True, True]
