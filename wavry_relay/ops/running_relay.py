"""The parts of a running relay that its health, its metrics and its orders are about."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from wavry_relay.master.connection import MasterConnection
from wavry_relay.shm.tables import SegmentTables
from wavry_relay.udp.sockets import ReuseportGroup
from wavry_relay.upgrade.messages import Counts

from .load_meter import LoadMeter
from .workers import Workers

__all__ = ["RELOAD_OUTCOMES", "UPGRADE_RESULTS", "RunningRelay"]

RELOAD_OUTCOMES: Final = ("applied", "partial", "unchanged", "failed")
"""All new values are in force; some wait for a restart; there are none; the settings are wrong."""

UPGRADE_RESULTS: Final = ("done", "failed")


@dataclass(slots=True)
class RunningRelay:
    """One relay that serves.

    Attributes:
        relay_id: derived from its key.
        version: of the software.
        tables: shared memory.
        groups: UDP sockets.
        workers: processes.
        master: keys, revocations and the link to the master.
        load: what heartbeats tell.
        stopping: it was told to end.
        reloads: by outcome, one of `RELOAD_OUTCOMES`.
        upgrades: by result, one of `UPGRADE_RESULTS`; handed on to the successor.
    """

    relay_id: str
    version: str
    tables: SegmentTables
    groups: list[ReuseportGroup]
    workers: Workers
    master: MasterConnection
    load: LoadMeter
    stopping: bool = field(default=False, init=False)
    reloads: Counter[str] = field(default_factory=Counter, init=False)
    upgrades: Counter[str] = field(default_factory=Counter, init=False)

    def counts(self) -> Counts:
        """Return what a successor must go on counting from."""
        link = self.master.link
        return Counts(
            upgrades=dict(self.upgrades),
            restarts=dict(self.workers.restarts),
            registrations=dict(link.registrations) if link else {},
            heartbeats=dict(link.heartbeats) if link else {},
        )

    def go_on_from(self, counts: Counts) -> None:
        """Add a predecessor's counts; called once."""
        self.upgrades.update(counts.upgrades)
        self.workers.restarts.update(counts.restarts)
        if (link := self.master.link) is not None:
            link.registrations.update(counts.registrations)
            link.heartbeats.update(counts.heartbeats)
