"""Datagrams there and back over a session, in both directions at the same time.

Each side sends questions and sends back what the other asks.  An answer must be the question byte
for byte; its round trip is measured by the clock of the side that asked.
"""

import asyncio
import contextlib
import struct
import time
from collections.abc import Sequence
from typing import Final, Self

import msgspec

import wavry_peer

__all__ = ["Echo", "EchoFigures"]

_HEAD: Final = struct.Struct("!cIQ")
_ASKED, _ANSWERED = b"Q", b"R"
STRAGGLERS_S: Final = 2.0


class EchoFigures(msgspec.Struct, frozen=True):
    """Result of both directions together; round trips in milliseconds."""

    sent: int
    answered: int
    corrupt: int
    smallest_bytes: int
    largest_bytes: int
    rtt_p50_ms: float
    rtt_p99_ms: float

    @property
    def lost(self) -> int:
        """Questions without an answer; either of the two datagrams may be the lost one."""
        return self.sent - self.answered


class _Side:
    """What one side asked and heard."""

    def __init__(self, session: wavry_peer.Session) -> None:
        self.session = session
        self.asked: dict[int, bytes] = {}
        self.sent = 0
        self.corrupt = 0
        self.round_trips_ns: list[int] = []
        self.sizes = sorted({_HEAD.size, 200, 600, 1200, session.max_datagram_bytes})

    async def ask(self) -> None:
        size = self.sizes[self.sent % len(self.sizes)]
        filler = (self.sent % 251).to_bytes(1, "big") * (size - _HEAD.size)
        datagram = _HEAD.pack(_ASKED, self.sent, time.monotonic_ns()) + filler
        self.asked[self.sent] = datagram
        self.sent += 1
        await self.session.send(datagram)

    async def listen(self) -> None:
        with contextlib.suppress(wavry_peer.SessionClosedError):
            while True:
                await self._take(await self.session.receive())

    async def _take(self, datagram: bytes) -> None:
        if len(datagram) < _HEAD.size:
            self.corrupt += 1
            return
        kind, number, asked_ns = _HEAD.unpack_from(datagram)
        if kind == _ASKED:
            await self.session.send(_ANSWERED + datagram[1:])
            return
        question = self.asked.pop(number, None)
        if question is None or kind != _ANSWERED or question[1:] != datagram[1:]:
            self.corrupt += 1
            return
        self.round_trips_ns.append(time.monotonic_ns() - asked_ns)


class Echo:
    """Questions and answers over both ends of one session, for the length of a block.

    Args:
        sessions: both ends.
        interval_s: between two questions of one side.
        count: questions of each side; None goes on until the block ends.
    """

    def __init__(
        self, sessions: Sequence[wavry_peer.Session], *, interval_s: float, count: int | None
    ) -> None:
        self._sides = [_Side(session) for session in sessions]
        self._interval_s = interval_s
        self._count = count
        self._asking: list[asyncio.Task[None]] = []
        self._listening: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._listening = [asyncio.create_task(side.listen()) for side in self._sides]
        self._asking = [asyncio.create_task(self._ask(side)) for side in self._sides]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (*self._asking, *self._listening):
            task.cancel()
        await asyncio.gather(*self._asking, *self._listening, return_exceptions=True)

    @property
    def answered(self) -> int:
        """Answers so far."""
        return sum(len(side.round_trips_ns) for side in self._sides)

    async def finished(self) -> EchoFigures:
        """Wait for the questions and, for at most 2 s, for their answers; return the result.

        Raises:
            SessionClosedError: the session ended under way.
        """
        if self._count is None:
            for task in self._asking:
                task.cancel()
            await asyncio.gather(*self._asking, return_exceptions=True)
        else:
            await asyncio.gather(*self._asking)
        deadline_s = time.monotonic() + STRAGGLERS_S
        while self._waits() and time.monotonic() < deadline_s:  # noqa: ASYNC110  # 2 s at most
            await asyncio.sleep(0.01)
        return self._figures()

    async def _ask(self, side: _Side) -> None:
        next_s = time.monotonic()
        while self._count is None or side.sent < self._count:
            await side.ask()
            next_s += self._interval_s
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))

    def _waits(self) -> bool:
        return any(side.asked for side in self._sides)

    def _figures(self) -> EchoFigures:
        round_trips = sorted(ns for side in self._sides for ns in side.round_trips_ns)
        return EchoFigures(
            sent=sum(side.sent for side in self._sides),
            answered=len(round_trips),
            corrupt=sum(side.corrupt for side in self._sides),
            smallest_bytes=self._sides[0].sizes[0],
            largest_bytes=self._sides[0].sizes[-1],
            rtt_p50_ms=_percentile_ms(round_trips, 0.50),
            rtt_p99_ms=_percentile_ms(round_trips, 0.99),
        )


def _percentile_ms(ordered_ns: list[int], share: float) -> float:
    if not ordered_ns:
        return 0.0
    return round(ordered_ns[min(len(ordered_ns) - 1, int(share * len(ordered_ns)))] / 1e6, 3)
