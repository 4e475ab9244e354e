"""A fake master with an event stream that a test can block, break and fill with nonsense."""

import asyncio
import contextlib
from typing import Any

import msgspec
from aiohttp import WSMsgType, web

from support.relay.fake_master import FakeMaster
from support.relay.mint import Mint
from wavry_peer.protocol.http.relay_events import FOREVER_S, EventPage, Revocation, StreamHello


class EventMaster(FakeMaster):
    """Keeps a revocation log and serves it both ways; used from the test's own thread.

    Attributes:
        stream_status: answer to a WebSocket request where it is not 101.
        poll_status: answer to a poll.
        page_raw: sent instead of a page, if set.
        first_frames: sent instead of the hello, if set.
        acks: numbers that relays confirmed, in order.
        asked: the `after` of every request, by way.
    """

    def __init__(self, mint: Mint, **options: Any) -> None:
        super().__init__(mint, **options)
        self.log_id = "a" * 32
        self.rows: list[Revocation] = []
        self.drain = False
        self.stream_status = 101
        self.poll_status = 200
        self.page_raw: bytes | None = None
        self.first_frames: list[str | bytes] | None = None
        self.acks: list[int] = []
        self.asked: list[tuple[str, int]] = []
        self._streams: set[web.WebSocketResponse] = set()

    def add_routes(self, app: web.Application) -> None:
        app.router.add_get("/v1/relays/events", self._events)

    @property
    def stream_count(self) -> int:
        return len(self._streams)

    def revoke(self, kind: str, value: str, *, until: int = FOREVER_S, number: int = 0) -> int:
        """Add a row and push it."""
        row = Revocation(
            number=number or (self.rows[-1].number if self.rows else 0) + 1,
            kind=kind,
            value=value,
            issued_until=until,
            expires_at=FOREVER_S,
        )
        self.rows.append(row)
        self.push(msgspec.json.encode(row).decode())
        return row.number

    def push(self, frame: str | bytes) -> None:
        """Send a frame to every stream."""
        asyncio.run_coroutine_threadsafe(self._push(frame), self._loop).result(10)

    def cut(self) -> None:
        """Break every stream off without a word."""
        asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result(10)

    async def _push(self, frame: str | bytes) -> None:
        for ws in tuple(self._streams):
            with contextlib.suppress(ConnectionError, RuntimeError):
                await (ws.send_str(frame) if isinstance(frame, str) else ws.send_bytes(frame))

    async def _cut(self) -> None:
        for ws in tuple(self._streams):
            transport = ws._req.transport if ws._req is not None else None
            if transport is not None:
                transport.abort()

    async def _events(self, request: web.Request) -> web.StreamResponse:
        if not self._is_authorized(request):
            return web.json_response({"error": "unauthorized", "message": "no"}, status=401)
        after = int(request.query["after"])
        if "Upgrade" in request.headers:
            self.asked.append(("stream", after))
            return await self._stream(request, after)
        self.asked.append(("poll", after))
        if self.poll_status != 200:
            return web.json_response({"error": "x", "message": "x"}, status=self.poll_status)
        if self.page_raw is not None:
            return web.Response(body=self.page_raw, content_type="application/json")
        left = self._behind(after)
        page = EventPage(
            log=self.log_id,
            number=self._head,
            keyset_serial=self.serial,
            revocations=tuple(left[:3]),
            more=len(left) > 3,
        )
        return web.Response(body=msgspec.json.encode(page), content_type="application/json")

    def _behind(self, number: int) -> list[Revocation]:
        return [row for row in self.rows if row.number > number]

    @property
    def _head(self) -> int:
        return self.rows[-1].number if self.rows else 0

    async def _stream(self, request: web.Request, after: int) -> web.StreamResponse:
        if self.stream_status != 101:
            return web.json_response({"error": "x", "message": "x"}, status=self.stream_status)
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        hello = StreamHello(
            log=self.log_id, number=self._head, keyset_serial=self.serial, drain=self.drain
        )
        frames = [msgspec.json.encode(hello).decode()]
        with contextlib.suppress(ConnectionError, RuntimeError):
            for frame in self.first_frames if self.first_frames is not None else frames:
                await (ws.send_str(frame) if isinstance(frame, str) else ws.send_bytes(frame))
            # Rows may come while others are sent; nothing is awaited between the last look and
            # the stream's being there for `push`.
            while self.first_frames is None and (left := self._behind(after)):
                after = left[0].number
                await ws.send_str(msgspec.json.encode(left[0]).decode())
        self._streams.add(ws)
        try:
            while (message := await ws.receive()).type is WSMsgType.TEXT:
                self.acks.append(msgspec.json.decode(message.data)["number"])
        finally:
            self._streams.discard(ws)
        return ws
