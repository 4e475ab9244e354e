"""The parts of a relay, put together around its sockets and its shared memory.

Nothing is started here: a fresh start and a take-over begin with the same parts.
"""

from dataclasses import dataclass

from wavry_peer.protocol.ed25519 import SigningKey
from wavry_peer.protocol.keyset import relay_id
from wavry_peer.service.clock import Clock
from wavry_relay.config import RelayConfig
from wavry_relay.identity import StateDirectory
from wavry_relay.master.connection import MasterConnection
from wavry_relay.master.description import RelayDescription
from wavry_relay.master.event_link import EventLink
from wavry_relay.master.key_ring import KeyRing
from wavry_relay.master.link import MasterLink
from wavry_relay.master.revocations import RelayRevocations
from wavry_relay.ops.figures import RelayFigures
from wavry_relay.ops.load_meter import LoadMeter
from wavry_relay.ops.orders import RelayOrders
from wavry_relay.ops.running_relay import RunningRelay
from wavry_relay.shm.tables import SegmentTables
from wavry_relay.udp.sockets import ReuseportGroup
from wavry_relay.worker.placement import Placement

from .pool import WorkerPool

__all__ = ["Assembler", "RelayParts"]


@dataclass(frozen=True, slots=True)
class RelayParts:
    """One relay: its state, its workers, what describes it and what carries out orders."""

    relay: RunningRelay
    pool: WorkerPool
    figures: RelayFigures
    orders: RelayOrders


@dataclass(frozen=True, slots=True)
class Assembler:
    """Puts relays together.

    Attributes:
        config: settings.
        state: keeps key set and revocations.
        root: root key that is pinned, if one is.
        version: of the software.
        clock: time.
    """

    config: RelayConfig
    state: StateDirectory
    root: bytes | None
    version: str
    clock: Clock

    def assemble(
        self, identity: SigningKey, tables: SegmentTables, groups: list[ReuseportGroup]
    ) -> RelayParts:
        """Make the parts of a relay."""
        config, clock = self.config, self.clock
        placement = Placement.choose(config.busy_poll_us, pin=config.pin_workers)
        segment = tables.segment
        pool = WorkerPool(segment, groups, config.hang_timeout_s, clock, placement)
        orders = RelayOrders(tables, clock)
        load = LoadMeter(tables, pool, config.max_bitrate_kbps, self.state, clock)
        keyring = KeyRing(self.state, tables.control, self.root)
        revocations = RelayRevocations(
            self.state,
            tables.revocations,
            tables.tags,
            lambda: clock.now().wall_ms // 1000,
        )
        link = events = None
        if config.master_url is not None:
            description = RelayDescription(
                identity=identity,
                endpoints=config.advertise or tuple(group.endpoint for group in groups),
                region=config.region,
                max_sessions=segment.geometry.max_sessions,
                max_bitrate_kbps=config.max_bitrate_kbps,
                version=self.version,
                name=config.name,
                enrolment_token_file=config.enrolment_token_file,
            )
            link = MasterLink(config.master_url, description, keyring, orders, load.measure, clock)
            events = EventLink(link, revocations, orders, poll_s=config.event_poll_s)
        master = MasterConnection(keyring, revocations, link, events)
        own_id = relay_id(identity.public_key)
        relay = RunningRelay(own_id, self.version, tables, groups, pool, master, load)
        return RelayParts(relay, pool, RelayFigures(relay, clock), orders)
