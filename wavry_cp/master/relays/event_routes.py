"""``GET /v1/relays/events``: the stream for a relay that asks for a WebSocket, else one page."""

from typing import Final

import structlog
from aiohttp import hdrs, web

from wavry_cp.app.http import bearer_token, unauthorized
from wavry_cp.app.refusal import RefusedError
from wavry_cp.app.routes import CallerKind, Route, caller_of
from wavry_cp.master.master import Master
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.http.relay_events import MAX_RELAY_FRAME_BYTES, PAGE_ROWS, EventPage
from wavry_peer.protocol.relay_terms import RelayState

from .event_stream import EVENT_PING_S, EventStream, PresentState

__all__ = ["EVENT_ROUTES"]

MAX_NUMBER: Final = 2**53

_log = structlog.get_logger(__name__)


async def _events(master: Master, request: web.Request) -> EventPage | web.StreamResponse:
    relay_id, token = caller_of(request).name, bearer_token(request) or ""
    after = min(_number(request.query.get("after", "0")), master.revocations.index.head)
    if request.headers.get(hdrs.UPGRADE, "").lower() == "websocket":
        return await _stream(master, request, relay_id, token, after)
    master.metrics.event_pages.inc()
    if not master.events.is_connected(relay_id):
        master.events.note_acked(relay_id, after)
    return _page(master, relay_id, token, after)


def _page(master: Master, relay_id: str, token: str, after: int) -> EventPage:
    state = _state_of(master, relay_id, token)
    if state is None:  # Nothing was awaited since it was authenticated.
        raise unauthorized("relay token is wrong; register again")
    index = master.revocations.index
    rows = index.after(after, PAGE_ROWS + 1, names=state.names)
    return EventPage(
        log=index.log_id,
        number=index.head,
        keyset_serial=state.keyset_serial,
        revocations=tuple(rows[:PAGE_ROWS]),
        more=len(rows) > PAGE_ROWS,
    )


async def _stream(
    master: Master, request: web.Request, relay_id: str, token: str, after: int
) -> web.StreamResponse:
    ws = web.WebSocketResponse(
        heartbeat=EVENT_PING_S, max_msg_size=MAX_RELAY_FRAME_BYTES, compress=False, timeout=1.0
    )
    await ws.prepare(request)
    stream = EventStream(
        relay_id,
        ws,
        master.revocations.index,
        after=after,
        state=lambda: _state_of(master, relay_id, token),
        now_s=master.clock.monotonic_s,
    )
    master.events.add(stream)
    _log.info("event_stream_opened", relay_id=relay_id, after=after)
    try:
        await stream.run()
    finally:
        master.events.remove(stream)
        master.metrics.event_stream_ends.labels(stream.cause or "cancelled").inc()
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


def _state_of(master: Master, relay_id: str, token: str) -> PresentState | None:
    serial = master.keys.keyset.serial
    try:
        record = master.registry.authenticate(relay_id, token)
    except RefusedError as error:
        return (
            PresentState(serial, drain=True, banned=True)
            if error.code == ErrorCode.BANNED
            else None
        )
    return PresentState(
        serial, drain=record.state is RelayState.DRAINING, names=not record.is_stranger
    )


def _number(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= MAX_NUMBER:
        return int(text)
    raise RefusedError(ErrorCode.INVALID_QUERY, "after must be a number of the log, or 0")


EVENT_ROUTES: Final = (
    Route[Master](
        "GET",
        "/v1/relays/events",
        (CallerKind.RELAY,),
        _events,
        "Stream revocations behind `after`, key-set serial and drain; without Upgrade, one page.",
        query=("relay_id", "after"),
        answer=EventPage,
        errors=(
            ErrorCode.BANNED,
            ErrorCode.INVALID_QUERY,
            ErrorCode.INVALID_RELAY_TOKEN,
            ErrorCode.UNKNOWN_RELAY,
        ),
        in_lockdown=True,
        websocket=True,
    ),
)
