"""What relays have blocked, and the orders to lift it.

Both live in memory: a relay tells its blocks with every heartbeat, and an order is repeated with
the answers until the relay no longer tells what was to be lifted, `MOST_TRIES` times at most.  Who
gives an order waits for that, so an order that a restart of the master cuts off is a call that
failed: it is in the audit log and is given again.
"""

import asyncio
import ipaddress
from dataclasses import dataclass, field
from typing import Final

from wavry_cp.app.refusal import RefusedError
from wavry_peer.protocol.http.admin import RelayBlock
from wavry_peer.protocol.http.api import BlockedHost, Command
from wavry_peer.protocol.http.codes import ErrorCode

__all__ = ["BlockService", "subnet_text"]

MOST_TRIES: Final = 3
MOST_ORDERS: Final = 256
"""For each relay: 64 blocks are told at a time, so an operator has no use for more."""


def subnet_text(text: str) -> str:
    """Return a subnet in the one way to write it; of IPv6 a /64 at the least.

    Raises:
        ValueError: it is none.
    """
    subnet = ipaddress.ip_network(text, strict=False)
    if subnet.version == 6 and subnet.prefixlen > 64:
        subnet = subnet.supernet(new_prefix=64)
    return str(subnet)


def _covers(subnet: str | None, block: BlockedHost) -> bool:
    """Return whether an order to lift the blocks of a subnet (None: all) is about a block."""
    if subnet is None:
        return True
    try:
        wanted, host = ipaddress.ip_network(subnet), ipaddress.ip_network(block.subnet)
    except ValueError:  # a relay may tell anything
        return False
    return wanted.version == host.version and wanted.overlaps(host)


@dataclass(slots=True)
class _Order:
    tries: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    is_done: bool = False

    def end(self, *, is_done: bool) -> None:
        self.is_done = is_done
        self.ended.set()


class BlockService:
    """Blocks and orders of all relays."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[BlockedHost, ...]] = {}
        self._orders: dict[str, dict[str | None, _Order]] = {}

    def order(self, relay_id: str, subnet: str | None) -> int:
        """Lift the block of a subnet, or all; how many of them the relay told of last.

        Raises:
            RefusedError: ``too_many_orders``.
        """
        orders = self._orders.setdefault(relay_id, {})
        if subnet not in orders and len(orders) >= MOST_ORDERS:
            raise RefusedError(
                ErrorCode.TOO_MANY_ORDERS, "the relay follows none; lift all at once"
            )
        orders.setdefault(subnet, _Order()).tries = 0
        return sum(_covers(subnet, block) for block in self._told.get(relay_id, ()))

    async def confirmed(self, relay_id: str, subnet: str | None, wait_s: float) -> bool:
        """Wait until the relay no longer tells what an order was about.

        Returns:
            False where it still does, or was not heard, when the time is over.
        """
        order = self._orders.get(relay_id, {}).get(subnet)
        if order is None:
            return False
        try:
            async with asyncio.timeout(wait_s):
                await order.ended.wait()
        except TimeoutError:
            return False
        return order.is_done

    def close(self) -> None:
        """End every wait: the master stops."""
        for relay_id in tuple(self._orders):
            self.forget(relay_id)

    def take_heartbeat(self, relay_id: str, blocks: tuple[BlockedHost, ...]) -> tuple[Command, ...]:
        """Take what a relay tells; the orders that are still open."""
        if blocks:
            self._told[relay_id] = blocks
        else:
            self._told.pop(relay_id, None)
        orders = self._orders.get(relay_id)
        if not orders:
            return ()
        for subnet, order in list(orders.items()):
            lifted = not any(_covers(subnet, block) for block in blocks)
            # Blocks behind the 64th are not told, so every order goes out once at least.
            if order.tries and (lifted or order.tries >= MOST_TRIES):
                orders.pop(subnet).end(is_done=lifted)
                continue
            order.tries += 1
        if not orders:
            del self._orders[relay_id]
        return tuple(Command(type="clear_blocks", subnet=subnet) for subnet in orders)

    def forget(self, relay_id: str) -> None:
        """Forget a relay that is gone."""
        self._told.pop(relay_id, None)
        for order in self._orders.pop(relay_id, {}).values():
            order.end(is_done=False)

    def blocks(self, relay_id: str | None, now_s: int) -> tuple[RelayBlock, ...]:
        """Return the blocks of a relay, or of all."""
        return tuple(
            RelayBlock(
                relay_id=owner,
                subnet=block.subnet,
                since=block.since,
                until=block.until,
                reason=block.reason,
                clearing=any(_covers(subnet, block) for subnet in self._orders.get(owner, {})),
            )
            for owner, blocks in sorted(self._told.items())
            if relay_id in (None, owner)
            for block in blocks
            if block.until > now_s
        )
