"""Orders of the operator and the master: drain, and lift blocks."""

import asyncio

import structlog

from wavry_peer.protocol.errors import LocalError
from wavry_peer.service.clock import Clock
from wavry_relay.shm.control import Drain
from wavry_relay.shm.tables import SegmentTables

__all__ = ["RelayOrders"]

_log = structlog.get_logger(__name__)


class RelayOrders:
    """Carries out orders by what it writes into the shared memory.

    Args:
        tables: shared memory.
        clock: time.

    Attributes:
        report_due: set when the master should hear of the relay at once.
    """

    def __init__(self, tables: SegmentTables, clock: Clock) -> None:
        self._control = tables.control
        self._blocks = tables.blocks
        self._clock = clock
        self.report_due = asyncio.Event()

    def set_drain(self, bit: Drain, *, drain: bool) -> None:
        """Set or clear one of the reasons to drain."""
        before = Drain(self._control.drain)
        after = before | bit if drain else before & ~bit
        if after != before:
            self._control.drain = int(after)
            _log.info("drain_changed", draining=bool(after), by=bit.name)
            self.report_due.set()

    def drain_by_master(self, *, drain: bool) -> None:
        """Begin or end the drain that the master ordered."""
        self.set_drain(Drain.MASTER, drain=drain)

    def clear_blocks(self, subnet: str | None) -> int:
        """Lift the block of a subnet, or all; return how many there were.

        Raises:
            LocalError: no subnet.
        """
        try:
            cleared = self._blocks.clear(subnet, self._clock.now().wall_ms)
        except ValueError as error:
            raise LocalError(f"{subnet!r} is no subnet; `blocks` shows those there are") from error
        _log.info("blocks_cleared", count=cleared, all=subnet is None)
        return cleared

    def clear_blocks_by_master(self, subnet: str | None) -> None:
        """Lift blocks as the master ordered; a subnet that is none is logged."""
        try:
            self.clear_blocks(subnet)
        except LocalError as error:
            _log.warning(
                "blocks_not_cleared",
                cause=str(error),
                next_step="name a subnet as `wavryctl blocks list` shows it",
            )
