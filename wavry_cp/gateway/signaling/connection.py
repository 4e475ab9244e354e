"""One WebSocket of a client: a bounded outgoing queue, one writer, and one way to end it.

`send`, `pass_on` and `end` never wait, so that a slow client holds up nobody else.  Where the
gateway's own word does not fit into the queue, the client does not read: its connection is cut.
What other users send is refused to them instead (see `queue`).  `end` says why in an
ERROR, closes, and cuts the connection when the client does not go along in time.  It takes
the reading side out of its wait first: only then does aiohttp wait for the client's side of the
close, and a client that is still sending gets to read the ERROR instead of a reset.
"""

import asyncio
from typing import Final

import structlog
from aiohttp import WSMessage, web

from wavry_cp.gateway.accounts.tokens import TokenHash
from wavry_peer.protocol.http.signaling import Error, Message, encode_message

from .queue import ClientQueue, Sender

__all__ = [
    "CLOSE_ABUSE",
    "CLOSE_AUTH",
    "CLOSE_BIND_TIMEOUT",
    "CLOSE_DISPLACED",
    "CLOSE_FLOOD",
    "CLOSE_GOING_AWAY",
    "CLOSE_INTERNAL",
    "CLOSE_TOO_BIG",
    "SignalingConnection",
]

CLOSE_GOING_AWAY: Final = 1001
CLOSE_TOO_BIG: Final = 1009
CLOSE_INTERNAL: Final = 1011
CLOSE_ABUSE: Final = 4400
CLOSE_AUTH: Final = 4401
CLOSE_BIND_TIMEOUT: Final = 4408
CLOSE_DISPLACED: Final = 4409
CLOSE_FLOOD: Final = 4429

END_GRACE_S: Final = 2.0
"""What a client gets to take the last messages and to answer the close."""

_log = structlog.get_logger(__name__)


class SignalingConnection:
    """The sending side of one client's WebSocket, made inside a running event loop.

    Attributes:
        username: of the bound user, None before BIND.
        token: hash of the token that BIND named, None before.
        cause: why the connection ends, a bounded set of names; None while it is open.
    """

    def __init__(
        self,
        ws: web.WebSocketResponse,
        transport: asyncio.Transport,
        *,
        queue_messages: int,
        queue_bytes: int,
        send_timeout_s: float,
    ) -> None:
        self.address = ""
        """What limits by address count the client under."""
        self.username: str | None = None
        self.token: TokenHash | None = None
        self.cause: str | None = None
        self._ws = ws
        self._transport = transport
        self._queue = ClientQueue(queue_messages, queue_bytes)
        self._send_timeout_s = send_timeout_s
        self._wake = asyncio.Event()
        self._receiving: asyncio.Timeout | None = None
        self._not_receiving = asyncio.Event()
        self._not_receiving.set()
        self._close_code: int | None = None
        self._cutter: asyncio.TimerHandle | None = None

    async def receive(self) -> WSMessage | None:
        """Return the next message of the client; None once the connection ends."""
        if self.cause is not None:
            return None
        self._not_receiving.clear()
        try:
            async with asyncio.timeout(None) as self._receiving:
                return await self._ws.receive()
        except TimeoutError:
            return None
        finally:
            self._receiving = None
            self._not_receiving.set()

    def send(self, message: Message) -> bool:
        """Queue a message of the gateway; False where the connection is ending."""
        if self.cause is not None:
            return False
        text = encode_message(message)
        if not self._queue.has_room(text, None):
            self.cut("slow_reader")
            return False
        self._put(text)
        return True

    def pass_on(self, message: Message, sender: Sender) -> bool:
        """Queue a message of another user; False where it does not fit now, which cuts nobody."""
        text = encode_message(message)
        if self.cause is not None or not self._queue.has_room(text, sender):
            return False
        self._put(text, sender)
        return True

    def end(self, close_code: int, cause: str, error: Error | None = None) -> None:
        """Say why, close, and cut the connection if that takes too long; only the first counts."""
        if self.cause is not None:
            return
        self.cause = cause
        if error is not None:
            self._put(encode_message(error))
        self._close_code = close_code
        self._wake.set()
        loop = asyncio.get_running_loop()
        self._cutter = loop.call_later(END_GRACE_S, self._transport.abort)
        if self._receiving is not None:
            self._receiving.reschedule(loop.time())

    def cut(self, cause: str) -> None:
        """End the connection at once, without a word."""
        if self.cause is None:
            self.cause = cause
        self._queue.clear()
        self._close_code = self._close_code or CLOSE_GOING_AWAY
        self._wake.set()
        self._transport.abort()

    async def write(self) -> None:
        """Send what is queued until the connection ends; run as one task."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    text = self._queue.take()
                    async with asyncio.timeout(self._send_timeout_s):
                        await self._ws.send_str(text)
                if self._close_code is not None:
                    await self._not_receiving.wait()
                    await self._ws.close(code=self._close_code)
                    return
        except TimeoutError:
            self.cut("slow_reader")
        except (ConnectionError, RuntimeError) as error:
            # aiohttp raises RuntimeError for a send after the close; both mean: the client is gone.
            _log.debug("websocket_gone", cause=type(error).__name__)
            self.cut("gone")

    async def finish(self, writer: "asyncio.Task[None]") -> None:
        """Wait for the writer after the reading side has ended."""
        self.end(CLOSE_GOING_AWAY, "client_left")
        try:
            async with asyncio.timeout(END_GRACE_S + 1):
                await writer
        except TimeoutError:
            self.cut("gone")
        finally:
            writer.cancel()
            if self._cutter is not None:
                self._cutter.cancel()

    def _put(self, text: str, sender: Sender | None = None) -> None:
        self._queue.put(text, sender)
        self._wake.set()
