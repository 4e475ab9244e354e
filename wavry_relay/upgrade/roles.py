"""What a hot upgrade needs of the relay around it; the supervisor and its pool have it."""

from collections import Counter
from typing import Protocol

from wavry_relay.shm.tables import SegmentTables

from .messages import Counts

__all__ = ["NewWorkers", "OldWorkers", "RelayOwner", "UpgradableRelay"]


class UpgradableRelay(Protocol):
    """The relay that is handed over.

    Attributes:
        tables: of its segment.
        stopping: it was told to end.
        upgrades: by result, ``done`` or ``failed``.
    """

    tables: SegmentTables
    stopping: bool
    upgrades: Counter[str]

    def counts(self) -> Counts:
        """Return what a successor must go on counting from."""


class RelayOwner(Protocol):
    """The process that owns a relay until it is handed over."""

    async def let_go(self) -> None:
        """End what must not run twice (the link to the master), before the commit."""

    async def hold_on(self) -> None:
        """Undo `let_go`."""

    def leave(self, successor_pid: int) -> None:
        """End this process without touching what was handed over."""


class OldWorkers(Protocol):
    """Workers that are replaced by a successor's."""

    @property
    def count(self) -> int:
        """Number of workers wanted."""

    def pids(self) -> list[int]:
        """Return their process ids."""

    async def release(self, number: int) -> None:
        """End a worker and do not replace it; return when it will touch nothing any more."""

    async def reclaim(self) -> None:
        """Start the released workers again."""


class NewWorkers(Protocol):
    """Workers that replace a predecessor's."""

    @property
    def count(self) -> int:
        """Number of workers wanted."""

    def pids(self) -> list[int]:
        """Return their process ids."""

    def inherit(self) -> None:
        """Begin with no worker."""

    async def park(self, number: int) -> None:
        """Start a worker that has everything ready and waits."""

    async def begin(self, number: int) -> None:
        """Let a parked worker begin."""
