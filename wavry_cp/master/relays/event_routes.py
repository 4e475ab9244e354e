"""``GET /v1/relays/events``: the stream for a relay that asks for a WebSocket, else one page."""

from typing import Final

import structlog
from aiohttp import hdrs, web

from wavry_cp.app.http import ApiError, bearer_token, json_response, unauthorized
from wavry_cp.master.context import MasterContext
from wavry_cp.master.refusal import RefusedError
from wavry_peer.protocol.http.relay_events import MAX_RELAY_FRAME_BYTES, PAGE_ROWS, EventPage

from .event_stream import EVENT_PING_S, EventStream, PresentState
from .rules import RelayState

__all__ = ["EventRoutes"]

MAX_NUMBER: Final = 2**53

_log = structlog.get_logger(__name__)


class EventRoutes:
    """Handlers; the work is `EventStream`'s."""

    def __init__(self, context: MasterContext) -> None:
        self._context = context

    def routes(self) -> list[web.RouteDef]:
        """The route table."""
        return [web.get("/v1/relays/events", self.events)]

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Revocations behind ``?after=N``, key-set serial and drain, for ``?relay_id=ID``."""
        context = self._context
        token = bearer_token(request)
        if token is None:
            raise unauthorized("the relay token is required")
        relay_id = request.query.get("relay_id", "")
        context.directory.authenticate(relay_id, token)
        after = min(_number(request.query.get("after", "0")), context.revocations.book.head)
        if request.headers.get(hdrs.UPGRADE, "").lower() == "websocket":
            return await self._stream(request, relay_id, token, after)
        context.metrics.event_pages.inc()
        if not context.events.is_connected(relay_id):
            context.events.note_acked(relay_id, after)
        return self._page(relay_id, token, after)

    def _page(self, relay_id: str, token: str, after: int) -> web.Response:
        state = self._state_of(relay_id, token)
        if state is None:  # Nothing was awaited since it was authenticated.
            raise unauthorized("relay token is wrong; register again")
        book = self._context.revocations.book
        rows = book.after(after, PAGE_ROWS + 1)
        return json_response(
            EventPage(
                log=book.log_id,
                number=book.head,
                keyset_serial=state.keyset_serial,
                drain=state.drain,
                revocations=tuple(rows[:PAGE_ROWS]),
                more=len(rows) > PAGE_ROWS,
            )
        )

    async def _stream(
        self, request: web.Request, relay_id: str, token: str, after: int
    ) -> web.StreamResponse:
        context = self._context
        ws = web.WebSocketResponse(
            heartbeat=EVENT_PING_S, max_msg_size=MAX_RELAY_FRAME_BYTES, compress=False, timeout=1.0
        )
        await ws.prepare(request)
        stream = EventStream(
            relay_id,
            ws,
            context.revocations.book,
            after=after,
            state=lambda: self._state_of(relay_id, token),
            now_s=context.clock.monotonic_s,
        )
        context.events.add(stream)
        _log.info("event_stream_opened", relay_id=relay_id, after=after)
        try:
            await stream.run()
        finally:
            context.events.remove(stream)
            context.metrics.event_stream_ends.labels(stream.cause or "cancelled").inc()
            expected = stream.cause in ("relay_left", "replaced", "stopping", "banned", None)
            log = _log.info if expected else _log.warning
            log(
                "event_stream_ended",
                relay_id=relay_id,
                cause=stream.cause,
                next_step="none: the relay connects again and polls meanwhile"
                if expected
                else "look at the relay's log; it goes on where it was",
            )
            if request.transport is not None:
                request.transport.abort()  # Whatever it did not read until now, it never will.
        return ws

    def _state_of(self, relay_id: str, token: str) -> PresentState | None:
        context = self._context
        try:
            record = context.directory.authenticate(relay_id, token)
        except RefusedError as error:
            if error.code != "banned":
                return None
            return PresentState(context.keys.keyset.serial, drain=True, banned=True)
        return PresentState(
            keyset_serial=context.keys.keyset.serial, drain=record.state is RelayState.DRAINING
        )


def _number(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= MAX_NUMBER:
        return int(text)
    raise ApiError(400, "invalid_query", "after must be a number of the log, or 0")
