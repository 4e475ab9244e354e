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
import msgspec
import pytest
import structlog.testing
from aiohttp import web

from wavry_cp.app.http import (
    CONNECTION_BOUNDS,
    listening,
    new_application,
    read_optional_body,
)
from wavry_peer.service import http_listener, http_server
from wavry_peer.service.http_listener import ConnectionBounds, HttpListener
from wavry_peer.service.http_server import awaiting_client


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
for one in held:
    one.sendall(bytes.fromhex(sys.argv[4]))
sys.stdin.read()
"""


async def hold_idle(
    stack: AsyncExitStack, port: int, source: str, count: int, said: bytes = b""
) -> None:
    """Connections of another process that say nothing."""
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _HOLD, str(port), source, str(count), said.hex(),
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


async def test_an_address_over_its_bound_gives_up_its_own_oldest_waiting_connection() -> None:
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
    ):
        sockets = [await stack.enter_async_context(http.ws_connect("/socket")) for _ in range(5)]
        port = int(url.rpartition(":")[2])

        async def connect(source: str) -> Client:
            client = await Client.connect(stack, port, source)
            assert await client.answers()
            return client

        elsewhere = await connect("127.0.0.2")
        oldest, second, third = [await connect("127.0.0.1") for _ in range(3)]
        with structlog.testing.capture_logs() as logs:
            newest = await connect("127.0.0.1")
            answered = [await one.answers() for one in (oldest, second, third, newest, elsewhere)]
            assert answered == [False, True, True, True, True]
            await connect("127.0.0.1")
            assert not await second.answers()
        assert [line["event"] for line in logs] == ["connections_short"]
        assert HttpListener.given_up == before + 2
        for client in [await connect("127.0.0.9") for _ in range(6)]:
            assert await client.answers()
        for one in sockets:
            await one.send_str("still here")
            assert await one.receive_str() == "still here"
        assert HttpListener.given_up == before + 2


async def _reads(request: web.Request) -> web.Response:
    await read_optional_body(request, Nothing)
    return web.Response()


class Nothing(msgspec.Struct):
    """An empty body."""


async def _long(_request: web.Request) -> web.Response:
    return web.Response(body=bytes(16 << 20))


async def _waits_for_a_token(request: web.Request) -> web.WebSocketResponse:
    answer = web.WebSocketResponse()
    await answer.prepare(request)
    with awaiting_client(request):
        await answer.receive()
    return answer


UPGRADE = (
    b"GET /token HTTP/1.1\r\nHost: wavry.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@pytest.mark.parametrize(
    "said",
    [
        b"GET /hello HTTP/1.1\r\n",
        b"POST /reads HTTP/1.1\r\nHost: wavry.example\r\nContent-Length: 100\r\n\r\n{",
        b"GET /long HTTP/1.1\r\nHost: wavry.example\r\n\r\n",
        UPGRADE,
    ],
    ids=["half_a_head", "half_a_body", "answer_not_read", "no_token"],
)
async def test_whatever_waits_for_its_client_makes_room(said: bytes) -> None:
    app = new_application()
    app.router.add_get("/hello", _hello)
    app.router.add_post("/reads", _reads)
    app.router.add_get("/long", _long)
    app.router.add_get("/token", _waits_for_a_token)
    before = HttpListener.given_up
    async with listening(app, "127.0.0.1", 0) as url, AsyncExitStack() as stack:
        port = int(url.rpartition(":")[2])
        await hold_idle(stack, port, "127.0.0.2", 10, said)
        with structlog.testing.capture_logs() as logs, room_for(3):
            async with asyncio.timeout(20):
                while not await (
                    client := await Client.connect(stack, port, "127.0.0.1")
                ).answers():
                    client.writer.close()  # they have not come as far as to wait
    assert HttpListener.given_up > before
    assert [line["event"] for line in logs].count("connections_short") == 1


async def test_an_answer_that_nobody_reads_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "STALLED_S", 0.05)
    app = new_application()
    app.router.add_get("/long", _long)
    async with listening(app, "127.0.0.1", 0) as url, AsyncExitStack() as stack:
        client = await Client.connect(stack, int(url.rpartition(":")[2]), "127.0.0.1")
        client.writer.write(b"GET /long HTTP/1.1\r\nHost: wavry.example\r\n\r\n")
        await client.reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.2)
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                assert len(await client.reader.read(-1)) < 16 << 20
