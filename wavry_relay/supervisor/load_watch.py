"""Load shedding: the supervisor looks at the load and tells the workers to take no new session.

Above a set share of the sessions, or of the bit rate where one is set, new sessions get
SESSION_FULL; renewals and second peers still pass, so what lives is served well.  Shedding
ends when the load has fallen to nine tenths of where it began.
"""

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

import structlog

from wavry_peer.service.clock import Clock, Instant
from wavry_relay.ops.workers import Workers
from wavry_relay.shm.control import Shedding
from wavry_relay.shm.counters import totals
from wavry_relay.shm.tables import SegmentTables

__all__ = ["LoadWatch", "ShedAt", "watch_workers"]

INTERVAL_S: Final = 0.25
RATE_NS: Final = 1_000_000_000
"""Bit rates are judged over a second: a key frame is no overload."""
_ENDS_AT: Final = 0.9

_log = structlog.get_logger(__name__)


class ShedAt(NamedTuple):
    """Per cent of the sessions and of `max_kbps` (0: no such limit); 100 never sheds."""

    pct: int
    max_kbps: int


class LoadWatch:
    """Decides about shedding.

    Args:
        tables: shared memory.
        shed_at: settings in force.
    """

    def __init__(self, tables: SegmentTables, shed_at: Callable[[], ShedAt]) -> None:
        self._tables = tables
        self._shed_at = shed_at
        self._rate_since: tuple[int, int] | None = None
        self._kbps = 0

    async def run(self, clock: Clock) -> None:
        """Look again and again; until cancelled."""
        while True:
            self.step(clock.now())
            await asyncio.sleep(INTERVAL_S)

    def step(self, now: Instant) -> Shedding:
        """Look once."""
        tables, (pct, max_kbps) = self._tables, self._shed_at()
        self._measure(now)
        before = Shedding(tables.control.shedding)
        after = Shedding.NONE
        if pct < 100:
            share = tables.sessions.count_taken() / tables.segment.geometry.max_sessions
            after |= _judge(Shedding.SESSIONS, before, 100 * share, pct)
            if max_kbps:
                after |= _judge(Shedding.BANDWIDTH, before, 100 * self._kbps / max_kbps, pct)
        if after != before:
            tables.control.shedding = int(after)
            _tell(before, after)
        return after

    def _measure(self, now: Instant) -> None:
        sent = totals(self._tables.segment)["forwarded_bytes"]
        if self._rate_since is None:
            self._rate_since = now.mono_ns, sent
            return
        elapsed_ns = now.mono_ns - self._rate_since[0]
        if elapsed_ns >= RATE_NS:
            self._kbps = (sent - self._rate_since[1]) * 8_000_000 // elapsed_ns
            self._rate_since = now.mono_ns, sent


async def watch_workers(workers: Workers, report_due: asyncio.Event) -> None:
    """Let the master hear at once when workers are missing, and when they are there again.

    A worker that was replaced meanwhile, as after a crash, is not worth a report.
    """
    told = earlier = False
    while True:
        lacks = workers.running() < workers.count
        if lacks == earlier != told:
            told = lacks
            report_due.set()
        earlier = lacks
        await asyncio.sleep(INTERVAL_S)


def _judge(cause: Shedding, before: Shedding, pct: float, limit_pct: int) -> Shedding:
    sheds = pct >= limit_pct * (_ENDS_AT if before & cause else 1)
    return cause if sheds else Shedding.NONE


def _tell(before: Shedding, after: Shedding) -> None:
    for cause in Shedding:
        name = (cause.name or "").lower()
        if after & cause and not before & cause:
            _log.warning(
                "shedding_began",
                cause=name,
                effect="new sessions get SESSION_FULL; live ones go on",
                next_step="add relays, or raise the limit that is nearly used up",
            )
        elif before & cause and not after & cause:
            _log.info("shedding_ended", cause=name)
