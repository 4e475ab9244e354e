"""Round trips to the other peer: probes with a number, answered by whoever is called."""

import asyncio
import itertools
import statistics
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from wavry_peer.errors import PeerError, SessionClosedError
from wavry_peer.files.transfer import DatagramSession

from .kinds import DatagramKind, KindStream

__all__ = ["PingSummary", "ping_session"]

_PROBE: Final = struct.Struct("!IQ")
LAST_WAIT_S: Final = 2.0
"""Probes without an answer after so long are lost."""


@dataclass(frozen=True, slots=True)
class PingSummary:
    """What a series of probes found; times are milliseconds, None without any answer.

    Attributes:
        sent: probes sent.
        received: probes answered.
        lost_pct: share without an answer, in percent.
        min_ms: shortest round trip.
        avg_ms: mean.
        median_ms: median.
        max_ms: longest.
        jitter_ms: mean difference of one round trip to the one before.
    """

    sent: int
    received: int
    lost_pct: float
    min_ms: float | None
    avg_ms: float | None
    median_ms: float | None
    max_ms: float | None
    jitter_ms: float | None


async def ping_session(
    session: DatagramSession,
    *,
    count: int,
    interval_s: float,
    on_reply: Callable[[int, float], None] | None = None,
    clock: Callable[[], int] = time.monotonic_ns,
) -> tuple[PingSummary, PeerError | None]:
    """Send probes and measure their way there and back.

    Args:
        session: nothing else may receive from it meanwhile.
        count: of probes.
        interval_s: seconds between two of them.
        on_reply: called with number and milliseconds of each answer.
        clock: monotonic nanoseconds.

    Returns:
        What was found, and what ended it before the last probe had its time.

    Raises:
        SessionClosedError: the session ended before the first probe was sent.
    """
    stream = KindStream(session, DatagramKind.PING, clock)
    round_trips_ms: dict[int, float] = {}
    all_there = asyncio.Event()

    async def read() -> None:
        while len(round_trips_ms) < count:
            data = await stream.receive()
            if len(data) != _PROBE.size:
                continue
            number, sent_ns = _PROBE.unpack(data)
            if number < count and number not in round_trips_ms:
                round_trips_ms[number] = (clock() - sent_ns) / 1e6
                if on_reply is not None:
                    on_reply(number, round_trips_ms[number])
        all_there.set()

    reader = asyncio.create_task(read())
    reader.add_done_callback(lambda _: all_there.set())
    sent = 0
    failure: PeerError | None = None
    try:
        for number in range(count):
            await stream.send(_PROBE.pack(number, clock()))
            sent += 1
            last = number + 1 == count
            try:
                async with asyncio.timeout(LAST_WAIT_S if last else interval_s):
                    await all_there.wait()
            except TimeoutError:
                continue
            break
    except SessionClosedError as error:
        if not sent:
            raise
        failure = error
    finally:
        reader.cancel()
        (end,) = await asyncio.gather(reader, return_exceptions=True)
    if isinstance(end, PeerError):
        failure = end
    times_ms = [round_trips_ms[number] for number in sorted(round_trips_ms)]
    return summarize(sent, times_ms), failure


def summarize(sent: int, round_trips_ms: list[float]) -> PingSummary:
    """Return numbers for people from the round trips in the order of sending."""
    received = len(round_trips_ms)
    lost_pct = 100.0 * (sent - received) / sent if sent else 0.0
    if not round_trips_ms:
        return PingSummary(sent, 0, lost_pct, None, None, None, None, None)
    steps = [abs(b - a) for a, b in itertools.pairwise(round_trips_ms)]
    return PingSummary(
        sent=sent,
        received=received,
        lost_pct=lost_pct,
        min_ms=min(round_trips_ms),
        avg_ms=statistics.fmean(round_trips_ms),
        median_ms=statistics.median(round_trips_ms),
        max_ms=max(round_trips_ms),
        jitter_ms=statistics.fmean(steps) if steps else 0.0,
    )
