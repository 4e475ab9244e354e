"""Blocked hosts: IPv4 addresses and IPv6 /64s whose leases are refused for a while.

An open-addressed table with short probes under a keyed hash, so nobody can aim at a place.
Entries end by themselves; nothing else ever frees one but an operator, so a crowd of blocked
hosts cannot push another out.  Where all places of a probe are taken, the newcomer is not
blocked (and counted): its limits hold all the same.  Writers need the table
lock, the supervisor's clearing is one word.  Where no block is in force, a look costs one word.
"""

import ipaddress
from collections.abc import Iterator
from typing import Final, NamedTuple

from .address import Address, host_of, host_text
from .layout import BLOCK, BLOCK_SLOTS, SHARED
from .segment import Segment
from .tags import Tags

__all__ = ["Block", "Blocks"]

_PROBES: Final = 16
_WORDS: Final = BLOCK.size // 8
_HOST: Final = BLOCK["host"].offset // 8
_UNTIL: Final = BLOCK["until_ms"].offset // 8
_SINCE: Final = BLOCK["since_ms"].offset // 8
_FAMILY: Final = BLOCK["family"].offset // 4
_REASON: Final = BLOCK["reason"].offset // 4


class Block(NamedTuple):
    """A block in force.  Times are unix milliseconds, `reason` is a `RejectReason`."""

    host: int
    family: int
    since_ms: int
    until_ms: int
    reason: int

    @property
    def subnet(self) -> str:
        """As text, e.g. ``192.0.2.7/32``."""
        return host_text(self.host, self.family)


class Blocks:
    """The block table of a segment."""

    def __init__(self, segment: Segment) -> None:
        regions = segment.geometry.regions
        self._words, self._halves = segment.u64, segment.u32
        self._at = regions["blocks"].offset // 8
        self._latest_at = (regions["shared"].offset + SHARED["blocks_until_ms"].offset) // 8
        self._tags = Tags(segment)

    def has(self, source: Address, now_ms: int) -> bool:
        """Return whether an address is blocked; needs no lock."""
        if now_ms >= self._words[self._latest_at]:
            return False
        host, family = source.host_key
        at = self._find(host, family)
        return at is not None and self._words[at + _UNTIL] > now_ms

    def add(self, source: Address, now_ms: int, until_ms: int, reason: int) -> bool:
        """Block an address; False where there is no place."""
        host, family = source.host_key
        words = self._words
        at = self._find(host, family)
        if at is None:
            at = next(
                (at for at in self._places(host, family) if words[at + _UNTIL] <= now_ms), None
            )
        if at is None:
            return False
        words[at + _UNTIL] = 0  # A reader sees no half-written block.
        words[at + _HOST] = host
        words[at + _SINCE] = now_ms
        self._halves[2 * at + _FAMILY] = family
        self._halves[2 * at + _REASON] = reason
        words[at + _UNTIL] = until_ms
        words[self._latest_at] = max(words[self._latest_at], until_ms)
        return True

    def live(self, now_ms: int) -> Iterator[Block]:
        """Return all blocks in force."""
        if now_ms >= self._words[self._latest_at]:
            return
        for number in range(BLOCK_SLOTS):
            at = self._at + number * _WORDS
            if self._words[at + _UNTIL] > now_ms:
                yield self._read(at)

    def clear(self, subnet: str | None, now_ms: int) -> int:
        """Lift the blocks of a host or in a subnet (its text), or all.

        Returns:
            How many were lifted.

        Raises:
            ValueError: no subnet.
        """
        wanted = None if subnet is None else ipaddress.ip_network(subnet, strict=False)
        lifted = 0
        for block in self.live(now_ms):
            host = host_of(block.host, block.family)
            if wanted is None or (wanted.version == host.version and wanted.overlaps(host)):
                at = self._find(block.host, block.family)
                if at is not None:
                    self._words[at + _UNTIL] = 0
                    lifted += 1
        return lifted

    def _read(self, at: int) -> Block:
        words, halves = self._words, self._halves
        return Block(
            words[at + _HOST],
            halves[2 * at + _FAMILY],
            words[at + _SINCE],
            words[at + _UNTIL],
            halves[2 * at + _REASON],
        )

    def _places(self, host: int, family: int) -> Iterator[int]:
        digest = self._tags.pair(host, family)
        for step in range(_PROBES):
            yield self._at + (digest + step) % BLOCK_SLOTS * _WORDS

    def _find(self, host: int, family: int) -> int | None:
        for at in self._places(host, family):
            if self._words[at + _HOST] == host and self._halves[2 * at + _FAMILY] == family:
                return at
        return None
