"""Blocked networks: IPv4 /24s and IPv6 /48s whose leases are refused for a while.

An open-addressed table with short probes under a keyed hash, so nobody can aim at a place.
Entries end by themselves; nothing else ever frees one but an operator, so a crowd of blocked
networks cannot push another out.  Where all places of a probe are taken, the newcomer is not
blocked (and counted): its limits hold all the same.  Writers need the table
lock, the supervisor's clearing is one word.  Where no block is in force, a look costs one word.
"""

import ipaddress
from collections.abc import Iterator
from typing import Final, NamedTuple

from .address import Address, network_text
from .layout import BLOCK, BLOCK_SLOTS, SHARED
from .segment import Segment
from .tags import Tags

__all__ = ["Block", "Blocks"]

_PROBES: Final = 16
_WORDS: Final = BLOCK.size // 8
_NETWORK: Final = BLOCK["network"].offset // 8
_UNTIL: Final = BLOCK["until_ms"].offset // 8
_SINCE: Final = BLOCK["since_ms"].offset // 8
_FAMILY: Final = BLOCK["family"].offset // 4
_REASON: Final = BLOCK["reason"].offset // 4


class Block(NamedTuple):
    """A block in force.  Times are unix milliseconds, `reason` is a `RejectReason`."""

    network: int
    family: int
    since_ms: int
    until_ms: int
    reason: int

    @property
    def subnet(self) -> str:
        """As text, e.g. ``192.0.2.0/24``."""
        return network_text(self.network, self.family)


class Blocks:
    """The block table of a segment."""

    def __init__(self, segment: Segment) -> None:
        regions = segment.geometry.regions
        self._words, self._halves = segment.u64, segment.u32
        self._at = regions["blocks"].offset // 8
        self._latest_at = (regions["shared"].offset + SHARED["blocks_until_ms"].offset) // 8
        self._tags = Tags(segment)

    def has(self, source: Address, now_ms: int) -> bool:
        """Return whether an address is in a blocked network; needs no lock."""
        if now_ms >= self._words[self._latest_at]:
            return False
        network, family = source.network_key
        at = self._find(network, family)
        return at is not None and self._words[at + _UNTIL] > now_ms

    def add(self, source: Address, now_ms: int, until_ms: int, reason: int) -> bool:
        """Block the network of an address; False where there is no place."""
        network, family = source.network_key
        words = self._words
        at = self._find(network, family)
        if at is None:
            at = next(
                (at for at in self._places(network, family) if words[at + _UNTIL] <= now_ms), None
            )
        if at is None:
            return False
        words[at + _UNTIL] = 0  # A reader sees no half-written block.
        words[at + _NETWORK] = network
        words[at + _SINCE] = now_ms
        self._halves[2 * at + _FAMILY] = family
        self._halves[2 * at + _REASON] = reason
        words[at + _UNTIL] = until_ms
        words[self._latest_at] = max(words[self._latest_at], until_ms)
        return True

    def live(self, now_ms: int) -> Iterator[Block]:
        """All blocks in force."""
        if now_ms >= self._words[self._latest_at]:
            return
        for number in range(BLOCK_SLOTS):
            at = self._at + number * _WORDS
            if self._words[at + _UNTIL] > now_ms:
                yield self._read(at)

    def clear(self, subnet: str | None, now_ms: int) -> int:
        """Lift the block of a subnet (text of any address of it), or all.

        Returns:
            How many were lifted.

        Raises:
            ValueError: no subnet.
        """
        wanted = None
        if subnet is not None:
            first = ipaddress.ip_network(subnet, strict=False).network_address
            wanted = Address.from_ip(first.packed, 0).network_key
        lifted = 0
        for number in range(BLOCK_SLOTS):
            at = self._at + number * _WORDS
            if self._words[at + _UNTIL] <= now_ms:
                continue
            block = self._read(at)
            if wanted is None or (block.network, block.family) == wanted:
                self._words[at + _UNTIL] = 0
                lifted += 1
        return lifted

    def _read(self, at: int) -> Block:
        words, halves = self._words, self._halves
        return Block(
            words[at + _NETWORK],
            halves[2 * at + _FAMILY],
            words[at + _SINCE],
            words[at + _UNTIL],
            halves[2 * at + _REASON],
        )

    def _places(self, network: int, family: int) -> Iterator[int]:
        digest = self._tags.pair(network, family)
        for step in range(_PROBES):
            yield self._at + (digest + step) % BLOCK_SLOTS * _WORDS

    def _find(self, network: int, family: int) -> int | None:
        for at in self._places(network, family):
            if self._words[at + _NETWORK] == network and self._halves[2 * at + _FAMILY] == family:
                return at
        return None
