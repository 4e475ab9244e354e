"""Tells the peers of a draining relay to leave: NOTICE DRAINING to both slots of every session.

Each worker looks after the bitmap words of its own number, a few records between two batches, so
that packets never wait for it; a pass is repeated while the drain lasts, because a NOTICE may be
lost and a peer that found no other relay asks again.  The pace also spreads what follows: every
NOTICE makes a peer ask the gateway, and the gateway the master.
"""

from typing import Final

from wavry_peer.protocol.constants import NoticeCode
from wavry_peer.protocol.packets import build_notice
from wavry_peer.service.clock import Instant
from wavry_relay.shm.counters import CounterRow
from wavry_relay.shm.layout import SESSION_FREE
from wavry_relay.shm.tables import Tables

from .sweep import SendNotice, may_notify

__all__ = ["DrainNotices"]

STEP_NS: Final = 50_000_000
"""A step tells the sessions of one bitmap word (64): at most 128 datagrams, 1 ms of a worker's
time in 50, and 1280 sessions a second for each worker; 100 000 sessions on four workers hear of it
within 20 s."""
REPEAT_NS: Final = 5_000_000_000
"""From the beginning of one pass to the next."""
EMPTY_WORDS_PER_STEP: Final = 512
"""Words without a session that one step may pass over: 0.3 ms."""


class DrainNotices:
    """The notices of one worker's share of the sessions.

    Args:
        tables: shared with the other workers.
        counters: row of this worker.
        worker: number of this worker.
        send: sends NOTICE, best effort.
    """

    def __init__(self, tables: Tables, counters: CounterRow, worker: int, send: SendNotice) -> None:
        self._control = tables.control
        self._sessions = tables.sessions
        self._locks = tables.locks
        self._counters = counters
        self._send = send
        self._words = range(worker, self._sessions.bitmap_words, tables.segment.geometry.workers)
        self._next_word = 0
        self._next_ns = 0
        self._pass_began_ns = 0
        self._draining = False

    def step(self, now: Instant) -> None:
        """Send the next few notices if their time has come."""
        if not self._control.drain:
            self._draining = False
            return
        if not self._draining:
            self._draining = True
            self._begin_pass(now.mono_ns)
        elif now.mono_ns < self._next_ns:
            return
        elif self._next_word >= len(self._words):
            if now.mono_ns < self._pass_began_ns + REPEAT_NS:
                return
            self._begin_pass(now.mono_ns)
        self._next_ns = now.mono_ns + STEP_NS
        end = min(self._next_word + EMPTY_WORDS_PER_STEP, len(self._words))
        told = 0
        while self._next_word < end and not told:
            told = self._tell(self._words[self._next_word])
            self._next_word += 1

    def _begin_pass(self, now_ns: int) -> None:
        self._pass_began_ns = now_ns
        self._next_word = 0

    def _tell(self, word: int) -> int:
        """Notify all sessions of one bitmap word; return how many there were."""
        told = 0
        for record in self._sessions.live(word, 1):
            if record.state == SESSION_FREE:
                continue
            told += 1
            notice = build_notice(record.session_id, NoticeCode.DRAINING)
            for slot in record.slots():
                if may_notify(self._locks, record, slot) and self._send(notice, slot.address):
                    self._counters.add("sent_notices")
        return told
