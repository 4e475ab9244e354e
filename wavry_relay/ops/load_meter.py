"""The load of the relay between two heartbeats."""

from typing import Final

from wavry_peer.protocol.http.api import MAX_BLOCKS_TOLD
from wavry_peer.service.clock import Clock
from wavry_relay.identity import StateDirectory
from wavry_relay.master.description import RelayLoad
from wavry_relay.shm.counters import totals
from wavry_relay.shm.tables import SegmentTables

from .blocked_hosts import blocked_hosts
from .workers import Workers

__all__ = ["LoadMeter"]

_LOSSES: Final = ("drop_send_blocked", "drop_send_failed", "drop_lock_busy", "drop_global_rate")
"""What the relay itself loses; limits of a lease and bad packets are the sender's."""
_REJECT: Final = "reject_"


class LoadMeter:
    """Measures the load since it was asked last.

    Args:
        tables: shared memory.
        workers: of the relay.
        max_bitrate_kbps: setting; 0 is no limit.
        state: kept on disk.
        clock: time.

    Attributes:
        max_bitrate_kbps: setting in force, which a reload may change.
    """

    def __init__(
        self,
        tables: SegmentTables,
        workers: Workers,
        max_bitrate_kbps: int,
        state: StateDirectory,
        clock: Clock,
    ) -> None:
        self.max_bitrate_kbps = max_bitrate_kbps
        self._tables = tables
        self._workers = workers
        self._state = state
        self._clock = clock
        self._last = (clock.now().mono_ns, totals(tables.segment))

    def measure(self) -> RelayLoad:
        """Return the load since the last call.

        A relay that sheds says 100 %: the master gives it only what no other relay takes.
        """
        now_ns, now_ms = self._clock.now()
        counts = totals(self._tables.segment)
        last_ns, before = self._last
        self._last = now_ns, counts
        elapsed_ms = max(1, (now_ns - last_ns) // 1_000_000)
        delta = {name: counts[name] - before[name] for name in counts}
        in_kbps = delta["received_bytes"] * 8 // elapsed_ms
        out_kbps = delta["forwarded_bytes"] * 8 // elapsed_ms
        lost = sum(delta[name] for name in _LOSSES)
        passed = delta["forwarded_packets"] + lost
        sessions = sum(self._tables.sessions.count_states())
        shares = [sessions / self._tables.segment.geometry.max_sessions]
        if self.max_bitrate_kbps:
            shares.append(out_kbps / self.max_bitrate_kbps)
        if self._tables.control.shedding:
            shares.append(1.0)
        return RelayLoad(
            load_pct=round(min(100.0, 100 * max(shares)), 2),
            active_sessions=sessions,
            bandwidth_in_kbps=in_kbps,
            bandwidth_out_kbps=out_kbps,
            packet_loss_pct=round(100 * lost / passed, 3) if passed else 0.0,
            draining=bool(self._tables.control.drain),
            workers_wanted=self._workers.count,
            workers_missing=self._workers.count - self._workers.running(),
            disk_failing=bool(self._state.unwritten),
            rejects={
                name.removeprefix(_REJECT): count
                for name, count in counts.items()
                if name.startswith(_REJECT) and count
            },
            blocks=tuple(blocked_hosts(self._tables.blocks.live(now_ms))[:MAX_BLOCKS_TOLD]),
        )
