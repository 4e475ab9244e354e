"""A WebSocket that is refused says why to the person, not "check the URL"."""

import asyncio
from pathlib import Path

import pytest
from support.control.gateway import FakeMaster, make_config, running_gateway

from wavry_peer.errors import GatewayError, GatewayUnreachableError
from wavry_peer.gateway.client import GatewayClient


async def refusal(url: str) -> GatewayError:
    async with GatewayClient(url) as client:
        with pytest.raises(GatewayError) as refused:
            await client.open_websocket()
    return refused.value


async def test_a_limit_names_itself_and_how_long_to_wait(
    tmp_path: Path, master: FakeMaster
) -> None:
    config = make_config(tmp_path, master.url, connects_per_minute=1, connects_burst=1)
    async with running_gateway(config) as running:
        async with GatewayClient(running.url) as client:
            await (await client.open_websocket()).close()
        error = await refusal(running.url)
    assert (error.code, error.status) == ("rate_limited", 429)
    assert error.retry_after_s
    assert f"{error.retry_after_s:.0f} s" in str(error)
    assert error.request_id in str(error)
    assert error.request_id


async def test_too_many_connections_of_an_address_name_themselves(
    tmp_path: Path, master: FakeMaster
) -> None:
    config = make_config(tmp_path, master.url, connections_per_address=1)
    async with running_gateway(config) as running, GatewayClient(running.url) as client:
        held = await client.open_websocket()
        error = await refusal(running.url)
        await held.close()
    assert error.code == "too_many_connections"


async def test_a_server_without_websockets_is_named() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, GatewayClient(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(GatewayUnreachableError, match=r"status 502.*proxy"):
            await client.open_websocket()
