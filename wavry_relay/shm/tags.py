"""Keyed hashes: the table index (fast, also computed in C) and tags of leases and identities.

The keys are random at each boot of the relay, so nobody outside can choose session ids or
addresses that collide, and nothing in shared memory can be compared with another relay's.
"""

import hashlib
import struct
from typing import Final

from .layout import CONTROL
from .segment import Segment

__all__ = ["Tags"]

_MASK: Final = (1 << 64) - 1
_PAIR: Final = struct.Struct("=QQ")


class Tags:
    """Hashes under the keys in a segment's control block."""

    def __init__(self, segment: Segment) -> None:
        at = segment.geometry.regions["control"].offset
        key = at + CONTROL["tag_key"].offset
        self._tag_key = bytes(segment.u8[key : key + 32])
        word = (at + CONTROL["hash_key"].offset) // 8
        self._key_high, self._key_low = segment.u64[word], segment.u64[word + 1]

    def pair(self, high: int, low: int) -> int:
        """Hash of two words: the halves of their keyed 128-bit product, folded; never 0."""
        product = (high ^ self._key_high) * (low ^ self._key_low)
        return (product >> 64) ^ (product & _MASK) or 1

    def address(self, limit_key: bytes, purpose: int) -> int:
        """Key of a per-IP limit; `purpose` keeps the allowances of one address apart."""
        high, low = _PAIR.unpack(
            limit_key.ljust(8, b"\0") + bytes((len(limit_key), purpose)) + bytes(6)
        )
        return self.pair(high, low)

    def tag(self, kind: bytes, data: bytes) -> int:
        """Non-zero 64-bit BLAKE2b tag of a lease id, an identity, a key or a datagram."""
        digest = hashlib.blake2b(data, digest_size=8, key=self._tag_key, person=kind).digest()
        return int.from_bytes(digest, "little") or 1
