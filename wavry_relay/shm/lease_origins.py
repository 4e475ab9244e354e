"""Which key signed a session's leases, and when: read only when something is revoked."""

from typing import Final

from .layout import LEASE_ORIGIN
from .segment import Segment

__all__ = ["LeaseOrigins"]

_WORDS: Final = LEASE_ORIGIN.size // 4
_KID: Final = LEASE_ORIGIN["kid"].offset // 4
_ISSUED: Final = LEASE_ORIGIN["issued_s"].offset // 4
_U32: Final = 0xFFFFFFFF


class LeaseOrigins:
    """The origins of all sessions of a segment, by record number."""

    def __init__(self, segment: Segment) -> None:
        self._words = segment.u32
        self._at = segment.geometry.regions["lease_origins"].offset // 4

    def put(self, record: int, role: int, kid: int, issued_s: int) -> None:
        """Remember the lease of a role; `kid` is `Tags.key_id`, 2106 is the last year."""
        at = self._at + record * _WORDS + role
        self._words[at + _KID] = kid
        self._words[at + _ISSUED] = min(issued_s, _U32)

    def get(self, record: int, role: int) -> tuple[int, int]:
        """Key tag and unix seconds of issue."""
        at = self._at + record * _WORDS + role
        return self._words[at + _KID], self._words[at + _ISSUED]

    def clear(self, record: int) -> None:
        """The session is over."""
        at = self._at + record * _WORDS
        for word in range(at, at + _WORDS):
            self._words[word] = 0

    def kids(self, first: int, end: int, role: int) -> list[int]:
        """Key tags of a run of records."""
        at = self._at + role + _KID
        tags: list[int] = self._words[at + first * _WORDS : at + end * _WORDS : _WORDS].tolist()
        return tags
