"""Why a call brought no answer, from real servers that fail in each way."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
import trustme

from wavry_peer.service.http_client import CallError, JsonCaller

TIMEOUT = aiohttp.ClientTimeout(total=20)


@asynccontextmanager
async def server(said: bytes, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(said)
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


async def fault(url: str, timeout: aiohttp.ClientTimeout = TIMEOUT) -> str:
    async with JsonCaller(timeout) as caller:
        with pytest.raises(CallError) as raised:
            await caller.call("GET", url)
    return str(raised.value)


async def test_a_port_where_nobody_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        assert await fault(f"http://127.0.0.1:{held.getsockname()[1]}/") == "connection refused"


async def test_a_name_that_is_not_known() -> None:
    assert await fault("http://nobody.invalid/") == "the name of its host is not known here"


async def test_a_certificate_that_nobody_trusts_or_for_another_name() -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("other.example").configure_cert(context)
    async with server(b"", context) as port:
        said = await fault(f"https://127.0.0.1:{port}/")
    assert said.startswith("its certificate is refused: ")
    assert "certificate" in said.partition(": ")[2]


async def test_https_where_http_is_spoken_and_the_other_way_round() -> None:
    async with server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as port:
        said = await fault(f"https://127.0.0.1:{port}/")
    assert "does it want http://?" in said
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with server(b"", context) as port:
        assert await fault(f"http://127.0.0.1:{port}/") in (
            "it closed the connection",
            "what answers speaks no HTTP; does it want https://?",
        )


async def test_something_else_than_http() -> None:
    async with server(b"SSH-2.0-OpenSSH_9.6\r\n") as port:
        said = await fault(f"http://127.0.0.1:{port}/")
    assert said == "what answers speaks no HTTP; does it want https://?"


async def test_silence() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        assert await fault(url, aiohttp.ClientTimeout(total=0.2)) == "no answer in time"


async def test_what_is_no_url() -> None:
    assert await fault("http://:80:80/") == "this is no URL of a service"
