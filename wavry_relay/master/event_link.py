"""The event link: what the master pushes to this relay, with a poll as the net under it.

Strategy: four small loops over one state.  The *stream* holds a WebSocket and takes frames as they
come; the *poll* asks for revocations and the key set every 30 s over plain HTTP, so that a proxy
that breaks WebSockets costs half a minute and no more.  Both put rows into force at once.  The
*keeper* writes what took effect to disk, as many rows at a time as came meanwhile, and confirms
them over the stream.  The *key fetcher* gets a new key set when either of them heard of one.

A drain comes over the stream only.  The net under that is the answer to the heartbeat (`link`), not
the poll: it comes every few seconds, and the master repeats its order until the relay reports that
it is done.

The link needs the relay token of `MasterLink`; where the master refuses it, the heartbeat notices
too and registers again.  Sessions and revocations in force need no link at all.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

import aiohttp
import msgspec
import structlog

from wavry_peer.protocol.errors import MessageError
from wavry_peer.protocol.http.api import MAX_BODY_BYTES, decode_body
from wavry_peer.protocol.http.relay_events import (
    MAX_MASTER_FRAME_BYTES,
    DrainFrame,
    EventAck,
    EventPage,
    KeysFrame,
    MasterFrame,
    StreamHello,
    decode_master_frame,
)
from wavry_relay.identity import StateError

from .call_error import MasterCallError
from .link import Orders
from .revocations import RelayRevocations

__all__ = ["EventLink", "MasterSide"]

CONNECT_TIMEOUT_S: Final = 5.0
PING_S: Final = 10.0
BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0
"""No longer than the poll's interval: after it, the stream is back as soon as the poll is."""

TOKEN_POLL_S: Final = 0.1
KEYS_PAUSE_S: Final = 1.0
SAVE_RETRY_S: Final = 5.0
FIRST_POLL_S: Final = 2.0
"""The stream brings everything at the start; where it cannot, nobody waits for half a minute."""

MAX_PAGES: Final = 1000
_JITTER: Final = 0.2
_PING_UNANSWERED: Final = 1006

_log = structlog.get_logger(__name__)


class MasterSide(Protocol):
    """What the link needs of `MasterLink` and the relay's state."""

    url: str

    @property
    def relay_id(self) -> str:
        """Id of this relay."""

    @property
    def token(self) -> str:
        """Relay token, empty before the first registration."""

    @property
    def keyset_serial(self) -> int:
        """Serial of the key set in use."""

    async def get(self, path: str, limit: int) -> bytes:
        """Ask with the relay token; raises `MasterCallError`."""

    async def refresh_keys(self) -> None:
        """Fetch the key set."""


class _FrameRefusedError(Exception):
    """The master sent something that no master should send."""


class EventLink:
    """Keeps the relay informed.

    Args:
        master: where to ask.
        revocations: what rows are put into.
        orders: carries out the master's drain.
        poll_s: seconds between two polls.
        uniform: source of jitter.

    Attributes:
        connected: the stream is open and said hello.
        connections: attempts by result, ``ok`` or ``failed``.
        polls: the same for polls.
        frames_refused: frames and pages that did not fit.
        unsaved: the disk did not take the last rows.
    """

    def __init__(
        self,
        master: MasterSide,
        revocations: RelayRevocations,
        orders: Orders,
        *,
        poll_s: float = 30.0,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._master = master
        self._revocations = revocations
        self._orders = orders
        self._poll_s = poll_s
        self._uniform = uniform
        self._dirty = asyncio.Event()
        self._keys_wanted = asyncio.Event()
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        self._seen = 0
        """Highest number that came over the present stream: no other may be confirmed there."""
        self._saved = 0
        self._acked = 0
        self.connected = False
        self.connections: Counter[str] = Counter()
        self.polls: Counter[str] = Counter()
        self.frames_refused = 0
        self.unsaved = False

    async def run(self) -> None:
        """Follow the master until cancelled."""
        self._saved = self._revocations.number
        loops = (self._stream_forever, self._poll_forever, self._keep_forever, self._fetch_keys)
        async with asyncio.TaskGroup() as group:
            for loop in loops:
                group.create_task(self._kept_alive(loop))

    async def _kept_alive(self, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await loop()
            except Exception as error:  # noqa: BLE001 - a defect here must not end the link
                _log.error(
                    "event_link_failed",
                    exc_info=error,
                    next_step="report this with the traceback; the link goes on",
                )
                await asyncio.sleep(self._uniform(BACKOFF_FIRST_S, BACKOFF_MAX_S))

    # -- Stream ----------------------------------------------------------------------------

    async def _stream_forever(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            delay_s = BACKOFF_FIRST_S
            while True:
                await self._wait_for_token()
                well = False
                try:
                    well = await self._stream(http)
                except (MasterCallError, _FrameRefusedError) as error:
                    if isinstance(error, _FrameRefusedError):
                        self.frames_refused += 1
                    self.connections["failed"] += 1
                    _log.warning(
                        "event_stream_failed",
                        cause=str(error),
                        poll_s=self._poll_s,
                        next_step="none: revocations are polled until the stream is back; check"
                        " that a proxy before the master lets WebSockets pass",
                    )
                finally:
                    self._ws, self.connected = None, False
                delay_s = BACKOFF_FIRST_S if well else min(delay_s * 2, BACKOFF_MAX_S)
                await asyncio.sleep(self._uniform(delay_s / 2, delay_s))

    async def _wait_for_token(self) -> None:
        while not self._master.token:  # noqa: ASYNC110  # only before the first registration
            await asyncio.sleep(TOKEN_POLL_S)

    async def _stream(self, http: aiohttp.ClientSession) -> bool:
        """Follow one connection; True where it worked and ended in peace.

        Raises:
            MasterCallError: it was refused or broke off before its hello.
            _FrameRefusedError: a frame does not fit.
        """
        after = self._revocations.number
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                ws = await http.ws_connect(
                    self._master.url + self._path(after),
                    headers={"Authorization": f"Bearer {self._master.token}"},
                    heartbeat=PING_S,
                    max_msg_size=MAX_MASTER_FRAME_BYTES,
                )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            status = getattr(error, "status", 0)
            raise MasterCallError(
                f"event stream: {status or type(error).__name__}", status
            ) from error
        async with ws:
            hello = await self._next_frame(ws, timeout_s=CONNECT_TIMEOUT_S)
            if not isinstance(hello, StreamHello):
                raise _FrameRefusedError("the stream did not begin with a hello")
            self.connections["ok"] += 1
            if not self._revocations.agrees(hello.log, hello.number, asked=after):
                return True  # Again at once, from the beginning of this log.
            self._ws, self.connected = ws, True
            self._seen = self._acked = after
            _log.info("event_stream_open", number=after, master_number=hello.number)
            self._hear_of_keys(hello.keyset_serial)
            self._orders.drain_by_master(drain=hello.drain)
            while (frame := await self._next_frame(ws)) is not None:
                self._hear(frame)
            _log.info("event_stream_closed", code=ws.close_code)
            return True

    def _path(self, after: int) -> str:
        return f"/v1/relays/events?relay_id={self._master.relay_id}&after={after}"

    async def _next_frame(
        self, ws: aiohttp.ClientWebSocketResponse, timeout_s: float | None = None
    ) -> MasterFrame | None:
        """Return the next frame that this version knows, None at the end of the stream."""
        while True:
            try:
                async with asyncio.timeout(timeout_s):
                    message = await ws.receive()
            except TimeoutError:
                raise _FrameRefusedError("the stream says nothing") from None
            if message.type in (
                aiohttp.WSMsgType.CLOSE,
                aiohttp.WSMsgType.CLOSING,
                aiohttp.WSMsgType.CLOSED,
            ):
                return None
            if message.type is aiohttp.WSMsgType.ERROR and ws.close_code == _PING_UNANSWERED:
                return None
            if message.type is not aiohttp.WSMsgType.TEXT:
                raise _FrameRefusedError("a frame is too large, or no text")
            try:
                frame = decode_master_frame(message.data)
            except MessageError as error:
                raise _FrameRefusedError(str(error)) from error
            if frame is not None:
                return frame

    def _hear(self, frame: MasterFrame) -> None:
        match frame:
            case KeysFrame():
                self._hear_of_keys(frame.serial)
            case DrainFrame():
                self._orders.drain_by_master(drain=frame.drain)
            case StreamHello():
                raise _FrameRefusedError("a second hello")
            case _:
                if frame.number <= self._seen:
                    raise _FrameRefusedError("numbers of revocations do not grow")
                self._seen = frame.number
                self._revocations.take(frame, "stream")
                self._dirty.set()

    def _hear_of_keys(self, serial: int) -> None:
        if serial > self._master.keyset_serial:
            self._keys_wanted.set()

    # -- Poll ------------------------------------------------------------------------------

    async def _poll_forever(self) -> None:
        await self._wait_for_token()
        await asyncio.sleep(min(FIRST_POLL_S, self._poll_s))
        while True:
            await self._wait_for_token()
            try:
                await self._poll()
                self.polls["ok"] += 1
            except MasterCallError as error:
                self.polls["failed"] += 1
                _log.info(
                    "event_poll_failed",
                    cause=str(error),
                    next_step="none: the heartbeat says whether the master is reached",
                )
            await asyncio.sleep(self._poll_s * self._uniform(1 - _JITTER, 1 + _JITTER))

    async def _poll(self) -> None:
        for _ in range(MAX_PAGES):
            after = self._revocations.number
            raw = await self._master.get(self._path(after), MAX_BODY_BYTES)
            try:
                page = decode_body(EventPage, raw)
            except MessageError as error:
                self.frames_refused += 1
                raise MasterCallError(f"events: the answer does not fit: {error}") from error
            if not self._revocations.agrees(page.log, page.number, asked=after):
                if self._ws is not None:
                    await self._ws.close()  # It counts by the old log.
                continue
            self._hear_of_keys(page.keyset_serial)
            for row in page.revocations:
                if self._revocations.take(row, "poll"):
                    self._dirty.set()
            if not page.more or not page.revocations:
                return

    # -- Keeper and key fetcher --------------------------------------------------------------

    async def _keep_forever(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            snapshot = self._revocations.snapshot()
            try:
                await asyncio.to_thread(self._revocations.write, snapshot)
            except StateError as error:
                self.unsaved = True
                _log.error(
                    "revocations_not_saved",
                    cause=str(error),
                    next_step="free the disk; they are in force, and the master keeps them",
                )
                await asyncio.sleep(SAVE_RETRY_S)
                self._dirty.set()
                continue
            self.unsaved = False
            self._saved = snapshot.number
            await self._confirm()

    async def _confirm(self) -> None:
        number = min(self._saved, self._seen)
        ws = self._ws
        if ws is None or number <= self._acked:
            return
        self._acked = number
        try:
            await ws.send_str(msgspec.json.encode(EventAck(number=number)).decode())
        except (ConnectionError, RuntimeError):
            return  # The stream has just ended; the next one says how far we are.

    async def _fetch_keys(self) -> None:
        while True:
            await self._keys_wanted.wait()
            self._keys_wanted.clear()
            await self._master.refresh_keys()
            await asyncio.sleep(KEYS_PAUSE_S)  # Whatever the master says: not more often.
