"""A proxy before the master, which can be made to answer with an old key-set document."""

import asyncio
import contextlib
from collections.abc import Iterator

import aiohttp
from aiohttp import web

from support.machines.namespaces import InNamespace, Namespace

KEYS_PATH = "/.well-known/wavry-keys.json"
_PASSED_ON = ("Authorization", "Content-Type")


class CachingProxy:
    """Passes calls and event streams on; keeps the key set while `caches`.

    Args:
        namespace: where it listens, on every address.
        port: there.
        master_url: whom it asks.
    """

    def __init__(self, namespace: Namespace, port: int, master_url: str) -> None:
        self.caches = False
        self._master_url = master_url
        self._kept: bytes | None = None
        self._streams: set[asyncio.Task[None]] = set()
        self._place = InNamespace(namespace)
        self._place.run(self._start(port))

    async def _start(self, port: int) -> None:
        self._http = aiohttp.ClientSession()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(app, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "0.0.0.0", port).start()

    def close(self) -> None:
        self._place.run(self._stop())
        self._place.close()

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._http.close()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        url = self._master_url + request.path_qs
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._pass_stream(request, url, headers)
        if request.path == KEYS_PATH and self.caches and self._kept is not None:
            return web.Response(body=self._kept, content_type="application/json")
        try:
            async with self._http.request(
                request.method, url, data=await request.read(), headers=headers
            ) as answer:
                body = await answer.read()
        except aiohttp.ClientError:
            return web.Response(status=502)
        if request.path == KEYS_PATH and answer.status == 200:
            self._kept = body
        return web.Response(status=answer.status, body=body, content_type=answer.content_type)

    async def _pass_stream(
        self, request: web.Request, url: str, headers: dict[str, str]
    ) -> web.StreamResponse:
        try:
            behind = await self._http.ws_connect(url, headers=headers)
        except aiohttp.ClientError:
            return web.Response(status=502)
        before = web.WebSocketResponse()
        await before.prepare(request)
        try:
            ways = [asyncio.create_task(_copy(*way))
                    for way in ((before, behind), (behind, before))]  # fmt: skip
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            await behind.close()
            await before.close()
        return before

    @contextlib.contextmanager
    def caching(self) -> Iterator[None]:
        """For the length of a block the key set is the one of now."""
        self.caches = True
        try:
            yield
        finally:
            self.caches = False


Stream = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


async def _copy(source: Stream, target: Stream) -> None:
    async for message in source:
        if message.type is aiohttp.WSMsgType.TEXT:
            await target.send_str(message.data)
        elif message.type is aiohttp.WSMsgType.BINARY:
            await target.send_bytes(message.data)
