"""Keyed hashes: the table index (fast, also computed in C) and tags of leases and identities.

The keys are random at each boot of the relay, so nobody outside can choose session ids or
addresses that collide, and nothing in shared memory can be compared with another relay's.
"""

import hashlib
from typing import Final

from .layout import CONTROL
from .segment import Segment

__all__ = ["Tags"]

_MASK: Final = (1 << 64) - 1
_MAX_KEY_IDS: Final = 256


class Tags:
    """Hashes under the keys in a segment's control block.

    Raises:
        ValueError: they are not there yet: whoever hashed without them would agree with nobody.
    """

    def __init__(self, segment: Segment) -> None:
        at = segment.geometry.regions["control"].offset
        key = at + CONTROL["tag_key"].offset
        self._tag_key = bytes(segment.u8[key : key + 32])
        if not any(self._tag_key):
            raise ValueError("the control block has no keys yet: initialise it first")
        word = (at + CONTROL["hash_key"].offset) // 8
        self._started: dict[bytes, hashlib.blake2b] = {}
        """One hash for each kind, its key already taken in: half the cost of a tag."""
        self._key_ids: dict[str, int] = {}
        """A few keys sign all leases."""
        self._key_high, self._key_low = segment.u64[word], segment.u64[word + 1]

    def pair(self, high: int, low: int) -> int:
        """Return the folded halves of the keyed 128-bit product of two words; never 0."""
        product = (high ^ self._key_high) * (low ^ self._key_low)
        return (product >> 64) ^ (product & _MASK) or 1

    def slot(self, words: tuple[int, int], role: int) -> int:
        """Return the non-zero 64-bit tag of a role of a session; `words` as `session_words`."""
        return self.pair(self.pair(*words), role + 1)

    def key_id(self, kid: str) -> int:
        """Return the non-zero 32-bit tag of a signing key's id."""
        known = self._key_ids.get(kid)
        if known is None:
            if len(self._key_ids) >= _MAX_KEY_IDS:
                self._key_ids.clear()
            known = self._key_ids[kid] = self.tag(b"kid", kid.encode()) & 0xFFFFFFFF or 1
        return known

    def tag(self, kind: bytes, data: bytes) -> int:
        """Return the non-zero 64-bit BLAKE2b tag of a lease id, identity, key or datagram."""
        started = self._started.get(kind)
        if started is None:
            started = hashlib.blake2b(digest_size=8, key=self._tag_key, person=kind)
            self._started[kind] = started
        hashed = started.copy()
        hashed.update(data)
        return int.from_bytes(hashed.digest(), "little") or 1
