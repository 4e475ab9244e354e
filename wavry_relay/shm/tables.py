"""The tables of a segment that a worker reads and writes, made once."""

from .blocks import Blocks
from .control import ControlBlock
from .leases import LeaseOrigins, UsedLeases
from .locks import Locks
from .rate_limit import RateTable
from .revocations import RevocationTable
from .segment import Segment
from .sessions import SessionTable
from .tags import Tags

__all__ = ["Tables"]


class Tables:
    """What one worker shares with the others.

    Args:
        segment: shared memory.
        locks: of the engine, which alone knows how this relay locks.
    """

    def __init__(self, segment: Segment, locks: Locks) -> None:
        self.segment = segment
        self.locks = locks
        self.control = ControlBlock(segment)
        self.tags = Tags(segment)
        self.sessions = SessionTable(segment, self.tags)
        self.used_leases = UsedLeases(segment)
        self.lease_origins = LeaseOrigins(segment)
        self.revocations = RevocationTable(segment)
        self.blocks = Blocks(segment)

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
