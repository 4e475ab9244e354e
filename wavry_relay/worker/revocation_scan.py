"""Cuts live sessions that a revocation hits.

Strategy: each worker looks after an equal run of session records.  When its view of the
revocations has news, it makes one pass over its run, a slice between two batches of packets: the
columns that the news ask for (lease, identity, key, session id) are copied out with one strided
slice each and compared in C, so 100 000 sessions cost milliseconds.  What looks hit is looked at
again under its locks and closed as Revoked, with a NOTICE to both peers.  News that come
during a pass wait for the next one, so a flood of revocations costs passes and not a pass each.

A worker that admits a lease at this very moment checks the revocations once more under the table
lock; taking that lock once before the pass therefore means: whoever did not see the news
yet has finished writing his session, and the pass will find it.  A replacement of a dead worker
begins with a pass over everything in force.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from wavry_peer.protocol.constants import NoticeCode, Role
from wavry_relay.admission.revocation_view import RevocationView
from wavry_relay.shm.layout import SESSION, SESSION_FREE, SLOT
from wavry_relay.shm.locks import LockBusyError
from wavry_relay.shm.revocations import RevocationEntry, RevokedKind
from wavry_relay.shm.sessions import SessionRecord
from wavry_relay.shm.tables import Tables

from .sweep import Sweep

__all__ = ["RevocationScan"]

SLICE_RECORDS: Final = 32_768
"""Copied and compared in a few milliseconds: less than a batch of leases takes."""

CLOSES_PER_STEP: Final = 128
"""A revoked key may hit every session; the rest waits for the next step, not for the next pass."""

_STRIDE: Final = SESSION.size // 8
_ID: Final = SESSION["id"].offset // 8
_SLOTS: Final = (SESSION["client"].offset // 8, SESSION["server"].offset // 8)
_JTI: Final = SLOT["jti"].offset // 8
_SUB: Final = SLOT["sub"].offset // 8


class RevocationScan:
    """The passes of one worker.

    Args:
        tables: shared with the other workers.
        view: revocations, shared with the admission of this worker.
        worker: number of this worker.
        sweep: closes sessions.
    """

    def __init__(self, tables: Tables, view: RevocationView, worker: int, sweep: Sweep) -> None:
        geometry = tables.segment.geometry
        share = -(-geometry.max_sessions // geometry.workers)
        self._run = range(
            min(worker * share, geometry.max_sessions),
            min((worker + 1) * share, geometry.max_sessions),
        )
        self._words = tables.segment.u64
        self._records_at = geometry.regions["sessions"].offset // 8
        self._origins = tables.lease_origins
        self._sessions = tables.sessions
        self._locks = tables.locks
        self._view = view
        self._sweep = sweep
        self._news: list[RevocationEntry] = []
        self._wanted: dict[int, set[int]] = {}
        self._next = self._run.stop
        self._hit: list[int] = []

    @property
    def is_busy(self) -> bool:
        """Whether a pass is under way: the next step should come soon."""
        return bool(self._news or self._hit) or self._next < self._run.stop

    def step(self) -> None:
        """Look for news, and do a slice of the pass."""
        self._view.refresh()
        self._news += self._view.take_news()
        try:
            if not self._hit and self._next >= self._run.stop and self._news:
                self._begin()
            if not self._hit and self._next < self._run.stop:
                self._look()
            self._close_some()
        except LockBusyError:
            return  # Again in the next step.

    def _begin(self) -> None:
        with self._locks.table():
            pass  # The barrier; see above.
        self._wanted = {}
        for entry in self._news:
            # A session is looked for by one word of its id and compared whole when it is closed.
            self._wanted.setdefault(entry.kind, set()).add(
                entry.second if entry.kind == RevokedKind.SESSION else entry.tag
            )
        self._news = []
        self._next = self._run.start

    def _look(self) -> None:
        first = self._next
        end = min(first + SLICE_RECORDS, self._run.stop)
        hit: set[int] = set()
        for wanted, column in self._columns(first, end):
            if not wanted.isdisjoint(column):
                hit.update(first + at for at, word in enumerate(column) if word in wanted)
        self._hit = sorted(hit, reverse=True)
        self._next = end

    def _columns(self, first: int, end: int) -> Iterable[tuple[set[int], Sequence[int]]]:
        wanted = self._wanted
        if session_ids := wanted.get(RevokedKind.SESSION):
            yield session_ids, self._column(_ID + 1, first, end)
        for role, slot in zip(Role, _SLOTS, strict=True):
            if jtis := wanted.get(RevokedKind.JTI):
                yield jtis, self._column(slot + _JTI, first, end)
            if subs := wanted.get(RevokedKind.SUB):
                yield subs, self._column(slot + _SUB, first, end)
            if kids := wanted.get(RevokedKind.KID):
                yield kids, self._origins.kids(first, end, role)

    def _column(self, word: int, first: int, end: int) -> Sequence[int]:
        at = self._records_at + word
        column: list[int] = self._words[
            at + first * _STRIDE : at + end * _STRIDE : _STRIDE
        ].tolist()
        return column

    def _close_some(self) -> None:
        for _ in range(min(CLOSES_PER_STEP, len(self._hit))):
            record = self._sessions.record(self._hit[-1])
            with self._locks.table(), self._locks.session(record.number):
                if record.state != SESSION_FREE and self._is_hit(record):
                    self._sweep.close(record, "session_closed_revoked", NoticeCode.REVOKED)
            self._hit.pop()

    def _is_hit(self, record: SessionRecord) -> bool:
        for role, slot in zip(Role, record.slots(), strict=True):
            if not slot.jti:
                continue
            kid, issued_s = self._origins.get(record.number, role)
            if self._view.hits_slot(slot.jti, slot.sub, kid, issued_s):
                return True
            if self._view.hits_session(record.id_high, record.id_low, issued_s):
                return True
        return False
