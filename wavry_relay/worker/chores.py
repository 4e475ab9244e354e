"""What a worker does between two batches of packets, a little at a time."""

from wavry_peer.protocol.constants import NoticeCode
from wavry_peer.service.clock import Instant
from wavry_relay.admission.policy import RelayPolicy
from wavry_relay.admission.revocation_view import RevocationView
from wavry_relay.shm.counters import CounterRow
from wavry_relay.shm.tables import Tables

from .drain_notices import DrainNotices
from .revocation_scan import RevocationScan
from .sweep import SendNotice, Sweep

__all__ = ["Chores"]


class Chores:
    """The chores of one worker: load, sweep, revocations, drain notices.

    Args:
        tables: shared with the other workers.
        counters: row of this worker.
        worker: number of this worker.
        policy: of the admission; looks at the load where nothing comes.
        view: revocations, as the policy knows them.
        send: sends NOTICE, best effort.
    """

    def __init__(
        self,
        tables: Tables,
        counters: CounterRow,
        worker: int,
        policy: RelayPolicy,
        view: RevocationView,
        send: SendNotice,
    ) -> None:
        self._policy = policy
        self._sweep = Sweep(tables, counters, worker, send)
        self._scan = RevocationScan(tables, view, worker, self._sweep)
        self._drain_notices = DrainNotices(tables, counters, worker, send)

    @property
    def is_busy(self) -> bool:
        """Whether a pass is under way that should not wait for packets."""
        return self._scan.is_busy

    def step(self, now: Instant) -> None:
        """Do the next little piece of each."""
        self._policy.step(now)
        self._sweep.step(now)
        self._scan.step()
        self._drain_notices.step(now)

    def announce_end(self) -> None:
        """Tell the peers of this worker's share that the relay goes."""
        self._sweep.announce(NoticeCode.SHUTDOWN)
