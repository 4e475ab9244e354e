"""The tables of a segment, made once in each process."""

from .blocks import Blocks
from .control import ControlBlock
from .leases import LeaseOrigins, Leftover, UsedLeases
from .locks import Locks
from .rate_limit import RateTable
from .revocations import RevocationTable
from .segment import Segment
from .sessions import SessionRecord, SessionTable
from .tags import Tags

__all__ = ["SegmentTables", "Tables"]


class SegmentTables:
    """What the supervisor reads and writes; none of it needs a lock there.

    Args:
        segment: shared memory.
    """

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.control = ControlBlock(segment)
        self.tags = Tags(segment)
        self.sessions = SessionTable(segment, self.tags)
        self.used_leases = UsedLeases(segment)
        self.revocations = RevocationTable(segment, self.control)
        self.blocks = Blocks(segment)


class Tables(SegmentTables):
    """What one worker shares with the others.

    Args:
        segment: shared memory.
        locks: of the engine, which alone knows how this relay locks.
    """

    def __init__(self, segment: Segment, locks: Locks) -> None:
        super().__init__(segment)
        self.locks = locks
        self.lease_origins = LeaseOrigins(segment)

    def remember_slot(self, record: SessionRecord, role: int) -> None:
        """Note, before it is cleared, which leases a slot denies; needs the table lock.

        Its own lease may come back with a higher counter.
        """
        slot = record.slot(role)
        _, issued_s = self.lease_origins.get(record.number, role)
        history = self.lease_origins.history(record.number, role)
        history = history._replace(until_ms=max(history.until_ms, slot.expires_ms))
        tag = self.tags.slot((record.id_high, record.id_low), role)
        self.used_leases.put(tag, slot.sub, Leftover(history, slot.mark, slot.jti, issued_s))

    def rates(
        self, region: str, *, per_s: int, burst: int, shares_overflow: bool = True
    ) -> RateTable:
        """Return the rate table of a region, e.g. ``ip_rates``; see `RateTable`."""
        return RateTable(
            self.segment,
            self.segment.geometry.regions[region],
            self.locks,
            per_s=per_s,
            burst=burst,
            shares_overflow=shares_overflow,
        )
