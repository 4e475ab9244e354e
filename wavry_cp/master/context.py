"""Everything that the routes of one master share."""

from dataclasses import dataclass

from wavry_cp.app.http import IpNetwork
from wavry_cp.app.rate_limit import RateLimiter
from wavry_cp.app.store_probe import StoreProbe
from wavry_cp.master.blocks.service import BlockService
from wavry_cp.master.keys.live import LiveKeys
from wavry_cp.master.keys.service import KeyService
from wavry_cp.master.leases.service import LeaseService
from wavry_cp.master.relays.challenges import Challenges
from wavry_cp.master.relays.event_stream import EventStreams
from wavry_cp.master.relays.registry import RelayRegistry
from wavry_cp.master.revocations.service import RevocationService
from wavry_cp.operators.admin_tokens import TokenTable
from wavry_cp.operators.ban_service import BanService
from wavry_cp.operators.bans import BanTable
from wavry_cp.operators.switch_service import SwitchService
from wavry_cp.operators.switches import SwitchTable
from wavry_cp.operators.token_service import TokenService
from wavry_peer.service.clock import Clock

from .access import Access
from .config import MasterConfig
from .metrics import MasterMetrics
from .store import MasterStore

__all__ = ["MasterContext"]


@dataclass(frozen=True, slots=True)
class MasterContext:
    """One master."""

    config: MasterConfig
    store: MasterStore
    directory: RelayRegistry
    keys: LiveKeys
    key_service: KeyService
    lease_service: LeaseService
    access: Access
    tokens: TokenTable
    token_service: TokenService
    switches: SwitchTable
    switch_service: SwitchService
    bans: BanTable
    ban_service: BanService
    block_service: BlockService
    challenges: Challenges
    metrics: MasterMetrics
    clock: Clock
    revocations: RevocationService
    events: EventStreams
    register_limit: RateLimiter
    open_limit: RateLimiter
    trusted_proxies: tuple[IpNetwork, ...]
    store_probe: StoreProbe
    started_s: float
