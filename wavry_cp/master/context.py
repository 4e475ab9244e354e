"""Everything that the routes of one master share."""

from dataclasses import dataclass

from wavry_cp.control.admin_tokens import TokenBook
from wavry_cp.control.ban_desk import BanDesk
from wavry_cp.control.bans import BanBook
from wavry_cp.control.switch_desk import SwitchDesk
from wavry_cp.control.switches import SwitchBook
from wavry_cp.http import IpNetwork
from wavry_cp.rate_limit import RateLimiter
from wavry_cp.store.interface import MasterStore

from .access import Access
from .block_desk import BlockDesk
from .challenges import Challenges
from .clock import Clock
from .config import MasterConfig
from .directory import RelayDirectory
from .event_stream import EventStreams
from .key_desk import KeyDesk
from .lease_desk import LeaseDesk
from .live_keys import LiveKeys
from .metrics import MasterMetrics
from .revocations import Revocations
from .token_desk import TokenDesk

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
