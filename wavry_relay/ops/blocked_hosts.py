"""Hosts that the relay has blocked, as the master and the operator see them."""

from collections.abc import Iterable

from wavry_peer.protocol.constants import RejectReason
from wavry_peer.protocol.http.api import BlockedHost
from wavry_relay.shm.blocks import Block

__all__ = ["blocked_hosts"]


def blocked_hosts(blocks: Iterable[Block]) -> list[BlockedHost]:
    """Describe blocks, those that last longest first."""
    return [
        BlockedHost(
            subnet=block.subnet,
            since=block.since_ms // 1000,
            until=-(-block.until_ms // 1000),
            reason=RejectReason(block.reason).name.lower(),
        )
        for block in sorted(blocks, key=lambda block: -block.until_ms)
    ]
