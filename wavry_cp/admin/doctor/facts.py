"""What was gathered: plain values, so that checks are functions that a test can call."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from wavry_peer.protocol.http.admin import AuditPage, AuditRow, BanList, SwitchInfo, SwitchList
from wavry_peer.protocol.http.api import RelayInfo, RelayList
from wavry_peer.protocol.http.keys import KeysStatus
from wavry_peer.protocol.http.ops import GatewayStatus, RelayHealth
from wavry_peer.protocol.http.relay_events import RevocationList
from wavry_peer.protocol.keyset import KeySet

from .reach import HttpAnswer
from .udp_probe import UdpAnswer

__all__ = [
    "Counters",
    "RelayFacts",
    "ServiceFacts",
    "SystemFacts",
]

Counters = Mapping[str, float]
"""Counters by a name of ours, e.g. ``unknown_key``."""


_UNASKED: Final = HttpAnswer("bad_url")


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """Gateway or master.

    Attributes:
        url: where it was asked; None where no address is known.
        health: answer of ``/health``.
        ready: answer of ``/ready``.
        counters: before and after the watch; None where ``/metrics`` did not answer.
    """

    url: str | None
    health: HttpAnswer = _UNASKED
    ready: HttpAnswer = _UNASKED
    counters: tuple[Counters | None, Counters | None] = (None, None)

    @property
    def is_reached(self) -> bool:
        """It answered."""
        return self.health.is_reached


@dataclass(frozen=True, slots=True)
class RelayFacts:
    """One relay.

    Attributes:
        name: its id, or its ops URL where the id is not known.
        row: what the master says of it; None where it does not know it, or was not asked.
        ops_url: None where not known.
        ops: answer of its ``/health``; None where its ops URL is not known.
        health: that, read.
        udp: its endpoints, as the master names them, else those it listens on.
        missed_heartbeat: the master got none while one was due; only looked at where nothing else
            of it gives a sign of life.
        counters: before and after the watch.
    """

    name: str
    row: RelayInfo | None = None
    ops_url: str | None = None
    ops: HttpAnswer | None = None
    health: RelayHealth | None = None
    udp: tuple[UdpAnswer, ...] = ()
    missed_heartbeat: bool = False
    counters: tuple[Counters | None, Counters | None] = (None, None)

    @property
    def is_banned(self) -> bool:
        """An operator put it out of the pool."""
        return self.row is not None and self.row.state == "BANNED"

    @property
    def workers(self) -> tuple[int, int]:
        """Workers wanted and missing, by its own word, else as it told the master."""
        if self.health is not None:
            workers = self.health.workers
            return workers.wanted, workers.wanted - workers.running
        if self.row is not None:
            return self.row.workers_wanted, self.row.workers_missing
        return 0, 0

    @property
    def udp_reach(self) -> str:
        """``ok`` if one endpoint answers, else how the others fail; ``unknown`` without any."""
        reaches = [answer.reach for answer in self.udp]
        for reach in ("ok", "silent", "closed", "bad_address", "no_route"):
            if reach in reaches:
                return reach
        return "unknown"


@dataclass(frozen=True, slots=True)
class SystemFacts:
    """Everything.

    Attributes:
        token: ``given``, ``none``, or what is wrong with it.
        listed: the master's relays; None where it did not say.
        keys: rotation status; None where it did not say.
        document: the public key set.
        switches: kill switches by service, with who turned them.
        interval_s: of heartbeats.
        watch_s: how long counters were watched.
    """

    gateway: ServiceFacts
    master: ServiceFacts
    relays: tuple[RelayFacts, ...] = ()
    token: str = "given"
    gateway_status: GatewayStatus | None = None
    listed: RelayList | None = None
    keys: KeysStatus | None = None
    document: KeySet | None = None
    revocations: RevocationList | None = None
    switches: Mapping[str, SwitchList] = field(default_factory=dict)
    audit: AuditPage | None = None
    bans: BanList | None = None
    interval_s: float = 5.0
    watch_s: float = 3.0

    @property
    def active_kid(self) -> str:
        """Id of the key that signs, or empty where nobody said."""
        if self.keys is not None:
            return self.keys.active_kid
        if self.document is not None:
            return next((key.kid for key in self.document.keys if key.status == "active"), "")
        return ""

    def switch(self, service: str, name: str) -> SwitchInfo | None:
        """Return a kill switch, if the service told who turned it."""
        listed = self.switches.get(service)
        rows = () if listed is None else listed.switches
        return next((row for row in rows if row.switch == name), None)

    def last_act(self, action: str, target: str) -> AuditRow | None:
        """Return the newest act of this kind that was carried out, if the log was readable."""
        rows = () if self.audit is None else self.audit.entries
        return next(
            (
                row
                for row in reversed(rows)
                if (row.action, row.target, row.outcome) == (action, target, "done")
            ),
            None,
        )
