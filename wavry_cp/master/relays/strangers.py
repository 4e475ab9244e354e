"""Relays that nobody enrolled, where the operator has opened the door: how many are kept.

Strategy: each network has a few places, and the whole table has an end.  Who comes when his
network's places are taken is refused, or takes the place of one of his own that is silent.  When
the table is full, the network that holds the most gives a place up, so whoever fills the table
loses places to those who hold fewer.
"""

import ipaddress
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from wavry_cp.app.refusal import RefusedError
from wavry_peer.protocol.http.codes import ErrorCode

from .table import KnownRelay

__all__ = ["KEEP_SILENT_S", "MAX_ENDPOINTS", "PICK_SHARE", "is_forgotten", "network_of", "to_evict"]

MAX_STRANGERS: Final = 256
"""Each costs a record and a probe a minute; an operator who wants more relays approves some."""
MAX_PER_NETWORK: Final = 4
MAX_ENDPOINTS: Final = 2
"""One for each address family."""
KEEP_SILENT_S: Final = 86_400
PICK_SHARE: Final = 0.02
"""Of new sessions, for all strangers together, whoever they say they are."""


def network_of(host: str) -> str:
    """Return the network (IPv4 /24, IPv6 /48) that counts as one source of strangers."""
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.ip_network((address, 48), strict=False))
        address = address.ipv4_mapped
    return str(ipaddress.ip_network((address, 24), strict=False))


def is_forgotten(relay: KnownRelay, now_s: int) -> bool:
    """Return whether a stranger was silent for a day."""
    record = relay.record
    heard_s = max(record.registered_at_s, record.last_heartbeat_at_s)
    if relay.status is not None:
        heard_s = max(heard_s, relay.status.at_s)
    return now_s - heard_s > KEEP_SILENT_S


def to_evict(
    strangers: Sequence[KnownRelay], network: str, is_alive: Callable[[KnownRelay], bool]
) -> str | None:
    """Return the relay that gives its place to a newcomer, None where there is a free one.

    Args:
        strangers: those that are kept and that no operator gave an order about.
        network: of the newcomer.
        is_alive: whether a relay was heard of late.

    Raises:
        RefusedError: ``too_many_strangers``.
    """
    own = [relay for relay in strangers if relay.source == network]
    if len(own) >= MAX_PER_NETWORK:
        silent = [relay for relay in own if not is_alive(relay)]
        if not silent:
            raise RefusedError(
                ErrorCode.TOO_MANY_STRANGERS,
                f"this network has {MAX_PER_NETWORK} relays that nobody enrolled, and no more",
            )
        return _quietest(silent)
    if len(strangers) < MAX_STRANGERS:
        return None
    # One that this process has not heard yet is a network of its own.
    held = Counter(relay.source or relay.record.relay_id for relay in strangers)
    most = max(held.values())
    if most > len(own) + 1:
        crowd = {network for network, count in held.items() if count == most}
        return _quietest(
            [relay for relay in strangers if (relay.source or relay.record.relay_id) in crowd]
        )
    silent = [relay for relay in strangers if not is_alive(relay)]
    if silent:
        return _quietest(silent)
    raise RefusedError(ErrorCode.TOO_MANY_STRANGERS, "no more relays that nobody enrolled")


def _quietest(relays: Sequence[KnownRelay]) -> str:
    return min(relays, key=lambda relay: relay.seen_s).record.relay_id
