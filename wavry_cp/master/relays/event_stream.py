"""Event streams: one WebSocket for each relay, which reads the log of revocations at its own pace.

A stream holds no queue.  It remembers the number that it sent last, is woken when something
changed, and sends what is behind that number; key-set serial and drain are states that are sent
whenever they differ from what was sent last.  So a slow relay costs a number and no memory,
a flood of revocations waits in the log, and a stream that is cut off goes on at the number that the
relay names.  A relay that does not read, or does not confirm, within 30 s is disconnected.

Strategy for two connections of one relay: the newer one replaces the older, and the older one's
end removes only itself.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
from aiohttp import WSMsgType, web

from wavry_cp.master.revocations.service import RevocationIndex
from wavry_peer.protocol.errors import MessageError
from wavry_peer.protocol.http.relay_events import (
    DrainFrame,
    KeysFrame,
    MasterFrame,
    StreamHello,
    decode_relay_frame,
)

__all__ = ["EVENT_PING_S", "EventStream", "EventStreams", "PresentState"]

EVENT_PING_S: Final = 10.0
"""Both sides notice a dead connection within 15 s; the poll is the net meanwhile."""

SEND_TIMEOUT_S: Final = 10.0
ACK_TIMEOUT_S: Final = 30.0
"""Longer than a relay takes to write its file on a slow disk."""

MAX_UNACKED: Final = 256
CHECK_S: Final = 5.0
"""How often a stream looks whether its relay may still listen."""

CLOSE_GOING_AWAY: Final = 1001
CLOSE_POLICY: Final = 1008
CLOSE_REPLACED: Final = 4001
_CLOSE_TIMEOUT_S: Final = 2.0
_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class PresentState:
    """What is told beside revocations."""

    keyset_serial: int
    drain: bool
    banned: bool = False
    """Told as a drain, so that the sessions leave; then the stream ends."""
    names: bool = True
    """Revocations that name a user are told too."""


class StateOf(Protocol):
    """Asks for the present state of one relay."""

    def __call__(self) -> PresentState | None:
        """Return the state, or None where this relay may not listen any more."""


class EventStream:
    """One relay's connection.

    Args:
        relay_id: whose.
        ws: prepared.
        index: the log.
        after: last number that the relay has.
        state: asks for the present state.
        now_s: monotonic seconds.

    Attributes:
        acked: last number that the relay confirmed.
        cause: why it ended, None while it runs.
    """

    def __init__(
        self,
        relay_id: str,
        ws: web.WebSocketResponse,
        index: RevocationIndex,
        *,
        after: int,
        state: StateOf,
        now_s: Callable[[], float],
        ack_timeout_s: float = ACK_TIMEOUT_S,
    ) -> None:
        self.relay_id = relay_id
        self.acked = after
        self.cause: str | None = None
        self._ws = ws
        self._index = index
        self._sent = after
        self._state = state
        self._now_s = now_s
        self._ack_timeout_s = ack_timeout_s
        self._unacked: deque[tuple[int, float]] = deque()
        self._wake = asyncio.Event()
        self._close_code = CLOSE_GOING_AWAY

    def wake(self) -> None:
        """Wake the stream: something changed."""
        self._wake.set()

    def end(self, cause: str, code: int = CLOSE_GOING_AWAY) -> None:
        """Close the connection; the first cause counts."""
        if self.cause is None:
            self.cause, self._close_code = cause, code
        self._wake.set()

    async def run(self) -> None:
        """Send and receive until either side ends it."""
        sender = asyncio.create_task(self._send_all())
        receiver = asyncio.create_task(self._receive_all())
        try:
            await asyncio.wait((sender, receiver), return_when=asyncio.FIRST_COMPLETED)
            self.end("relay_left")
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            try:
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    await self._ws.close(code=self._close_code, message=(self.cause or "").encode())
            except (TimeoutError, ConnectionError, RuntimeError):
                pass  # It does not read: the caller cuts the connection.
        finally:
            for task in (sender, receiver):
                task.cancel()
            await asyncio.gather(sender, receiver, return_exceptions=True)

    # -- Sending ---------------------------------------------------------------------------

    async def _send_all(self) -> None:
        told = self._state()
        try:
            if told is None:
                self.end("not_allowed", CLOSE_POLICY)
                return
            hello = StreamHello(
                log=self._index.log_id,
                number=self._index.head,
                keyset_serial=told.keyset_serial,
                drain=told.drain,
            )
            await self._send(hello)
            while self.cause is None:
                self._wake.clear()
                state = self._state()
                if state is None:
                    self.end("not_allowed", CLOSE_POLICY)
                    return
                await self._send_state(told, state)
                if state.banned:
                    self.end("banned", CLOSE_POLICY)
                    return
                told = state
                if not await self._send_rows(names=state.names):
                    await self._wait()
        except TimeoutError:
            self.end("slow_relay", CLOSE_POLICY)
        except (ConnectionError, RuntimeError):
            # aiohttp raises RuntimeError for a send after the close; both mean: the relay is gone.
            self.end("relay_left")

    async def _send_state(self, told: PresentState, state: PresentState) -> None:
        if state.keyset_serial != told.keyset_serial:
            await self._send(KeysFrame(serial=state.keyset_serial))
        if state.drain != told.drain:
            await self._send(DrainFrame(drain=state.drain))

    async def _send_rows(self, *, names: bool) -> bool:
        """Send the next rows; False where there is nothing to send now."""
        room = MAX_UNACKED - len(self._unacked)
        rows = self._index.after(self._sent, min(_BATCH, room), names=names) if room > 0 else ()
        for row in rows:
            self._unacked.append((row.number, self._now_s()))
            self._sent = row.number
            await self._send(row)
        return bool(rows)

    async def _send(self, frame: MasterFrame) -> None:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await self._ws.send_str(msgspec.json.encode(frame).decode())

    async def _wait(self) -> None:
        if self._unacked and self._now_s() - self._unacked[0][1] > self._ack_timeout_s:
            self.end("no_ack", CLOSE_POLICY)
            return
        try:
            async with asyncio.timeout(min(CHECK_S, self._ack_timeout_s)):
                await self._wake.wait()
        except TimeoutError:
            return  # Time to look at the relay's state and at its confirmations.

    # -- Receiving -------------------------------------------------------------------------

    async def _receive_all(self) -> None:
        while self.cause is None:
            message = await self._ws.receive()
            if message.type is not WSMsgType.TEXT:
                # Over the size limit, binary, a broken frame, or the end.
                fault = message.type in (WSMsgType.ERROR, WSMsgType.BINARY)
                self.end("bad_frame" if fault else "relay_left", CLOSE_POLICY)
                return
            try:
                number = decode_relay_frame(message.data).number
            except MessageError:
                self.end("bad_frame", CLOSE_POLICY)
                return
            if not self.acked < number <= self._sent:
                self.end("bad_number", CLOSE_POLICY)
                return
            self.acked = number
            while self._unacked and self._unacked[0][0] <= number:
                self._unacked.popleft()
            self._wake.set()


class EventStreams:
    """All streams of one master."""

    def __init__(self) -> None:
        self._open: dict[str, EventStream] = {}
        self._acked: dict[str, int] = {}
        self._closing = False

    def add(self, stream: EventStream) -> None:
        """Take a new stream in; an older one of the same relay ends."""
        older = self._open.get(stream.relay_id)
        self._open[stream.relay_id] = stream
        if older is not None:
            older.end("replaced", CLOSE_REPLACED)
        if self._closing:
            stream.end("stopping")

    def remove(self, stream: EventStream) -> None:
        """Forget a stream that ended, unless a newer one took its place."""
        self.note_acked(stream.relay_id, stream.acked)
        if self._open.get(stream.relay_id) is stream:
            del self._open[stream.relay_id]

    def wake(self, relay_id: str) -> None:
        """Wake the stream of one relay: something changed for it."""
        if relay_id in self._open:
            self._open[relay_id].wake()

    def wake_all(self) -> None:
        """Wake all streams: something changed for all relays."""
        for stream in self._open.values():
            stream.wake()

    def close(self) -> None:
        """End all streams; the relays come back to the next master."""
        self._closing = True
        for stream in self._open.values():
            stream.end("stopping")

    def note_acked(self, relay_id: str, number: int) -> None:
        """Note the last number that a relay says it has."""
        self._acked[relay_id] = number

    def forget(self, relay_id: str) -> None:
        """Forget a relay that was deregistered."""
        self._acked.pop(relay_id, None)

    @property
    def count(self) -> int:
        """Number of open streams."""
        return len(self._open)

    def is_connected(self, relay_id: str) -> bool:
        """Return whether a relay holds a stream open."""
        return relay_id in self._open

    def acked(self, relay_id: str) -> int:
        """Return the last number that a relay is known to have kept, 0 where it never said one."""
        stream = self._open.get(relay_id)
        return stream.acked if stream is not None else self._acked.get(relay_id, 0)
