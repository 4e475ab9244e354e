"""Everything that the routes of one master share."""

from dataclasses import dataclass

from wavry_cp.app.http import IpNetwork
from wavry_cp.app.rate_limit import RateLimiter
from wavry_cp.master.blocks.service import BlockDesk
from wavry_cp.master.keys.live import LiveKeys
from wavry_cp.master.keys.service import KeyDesk
from wavry_cp.master.leases.service import LeaseDesk
from wavry_cp.master.relays.challenges import Challenges
from wavry_cp.master.relays.event_stream import EventStreams
from wavry_cp.master.relays.registry import RelayDirectory
from wavry_cp.master.revocations.service import Revocations
from wavry_cp.operators.admin_tokens import TokenBook
from wavry_cp.operators.ban_service import BanDesk
from wavry_cp.operators.bans import BanBook
from wavry_cp.operators.switch_service import SwitchDesk
from wavry_cp.operators.switches import SwitchBook
from wavry_cp.operators.token_service import TokenDesk

from .access import Access
from .clock import Clock
from .config import MasterConfig
from .metrics import MasterMetrics
from .store import MasterStore

__all__ = ["MasterContext"]


@dataclass(frozen=True, slots=True)
class MasterContext:
    """One master."""

    config: MasterConfig
    store: MasterStore
    directory: RelayDirectory
    keys: LiveKeys
    key_desk: KeyDesk
    desk: LeaseDesk
    access: Access
    tokens: TokenBook
    token_desk: TokenDesk
    switches: SwitchBook
    switch_desk: SwitchDesk
    bans: BanBook
    ban_desk: BanDesk
    block_desk: BlockDesk
    challenges: Challenges
    metrics: MasterMetrics
    clock: Clock
    revocations: Revocations
    events: EventStreams
    register_limit: RateLimiter
    open_limit: RateLimiter
    trusted_proxies: tuple[IpNetwork, ...]
    metrics_networks: tuple[IpNetwork, ...]
    started_s: float
