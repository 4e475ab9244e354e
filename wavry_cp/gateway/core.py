"""What every service of a gateway is built on."""

from dataclasses import dataclass

from wavry_cp.gateway.accounts.access import UserAccess
from wavry_cp.gateway.sessions.events import SessionEvents
from wavry_cp.gateway.signaling.hub import Hub
from wavry_cp.operators.refusals import Refusals
from wavry_peer.service.clock import Clock

from .config import GatewayConfig
from .metrics import GatewayMetrics
from .store import GatewayStore

__all__ = ["GatewayCore"]


@dataclass(frozen=True, slots=True)
class GatewayCore:
    """Settings, store, connected users, who of them may come in, time, counters, refusals, news."""

    config: GatewayConfig
    store: GatewayStore
    hub: Hub
    access: UserAccess
    clock: Clock
    metrics: GatewayMetrics
    refusals: Refusals
    events: SessionEvents
