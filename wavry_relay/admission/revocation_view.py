"""Revocations as one worker knows them, and the question whether a lease is hit.

It follows the log in shared memory and the key set in the control block: a key whose status is
``revoked`` hits every lease that it signed.  Entries are kept until the supervisor rewrites the
log; an expired one is harmless, for every lease that it hits has expired too.
"""

from collections.abc import Sequence
from typing import Final

from wavry_peer.protocol.lease import LeaseClaims
from wavry_relay.shm.layout import CONTROL
from wavry_relay.shm.revocations import RevocationEntry, RevokedKind, TablePosition
from wavry_relay.shm.sessions import session_words
from wavry_relay.shm.tables import Tables

__all__ = ["EVERY_LEASE_S", "RevocationView"]

EVERY_LEASE_S: Final = (1 << 63) - 1

_Key = tuple[int, int, int]
_JTI, _SESSION, _SUB, _KID = RevokedKind


class RevocationView:
    """One worker's copy."""

    def __init__(self, tables: Tables) -> None:
        self._table = tables.revocations
        self._tags = tables.tags
        self._control = control = tables.control
        self._words = tables.segment.u64
        self._epoch_at, self._count_at, self._key_epoch_at = (
            (control.base + CONTROL[name].offset) // 8
            for name in ("revocation_epoch", "revocation_count", "key_epoch")
        )
        self._position = TablePosition()
        self._key_epoch = -1
        self._until_s: dict[_Key, int] = {}
        self._revoked_keys: frozenset[int] = frozenset()
        self._news: list[RevocationEntry] = []

    def refresh(self) -> None:
        """Read what is new; a few comparisons where nothing is, as every lease asks twice."""
        words, position = self._words, self._position
        if words[self._count_at] != position[1] or words[self._epoch_at] != position[0]:
            self._read_table()
        if words[self._key_epoch_at] != self._key_epoch:
            self._read_keys()

    def take_news(self) -> Sequence[RevocationEntry]:
        """Return the entries that came since the last call and may hit live sessions."""
        news, self._news = self._news, []
        return news

    def _read_table(self) -> None:
        read = self._table.read(self._position)
        if read is None:
            return
        position, entries = read
        whole = position.epoch != self._position.epoch
        known = self._until_s
        if whole:
            self._until_s = {}
        for entry in entries:
            key = entry[:3]
            if entry.issued_until_s > known.get(key, -1):
                self._news.append(entry)
            self._until_s[key] = entry.issued_until_s
        self._position = position

    def _read_keys(self) -> None:
        read = self._control.read_keys()
        if read is None:
            return
        self._key_epoch, keys = read
        revoked = frozenset(
            self._tags.key_id(kid) for kid, key in keys.items() if key.status == "revoked"
        )
        for tag in revoked - self._revoked_keys:
            self._news.append(RevocationEntry(_KID, tag, 0, EVERY_LEASE_S, EVERY_LEASE_S))
        self._revoked_keys = revoked

    # -- Questions -------------------------------------------------------------------------

    def hits_claims(self, claims: LeaseClaims) -> bool:
        """Return whether a lease is revoked; call `refresh` before."""
        if not self._until_s and not self._revoked_keys:
            return False
        tag = self._tags.tag
        high, low = session_words(claims.session_id)
        return self.hits_session(high, low, claims.issued_s) or self.hits_slot(
            tag(b"jti", claims.jti.encode()),
            tag(b"sub", claims.sub.encode()),
            self._tags.key_id(claims.kid),
            claims.issued_s,
        )

    def hits_session(self, high: int, low: int, issued_s: int) -> bool:
        """Return whether a session id is revoked for a lease of that age."""
        return issued_s <= self._until_s.get((_SESSION, high, low), -1)

    def hits_slot(self, jti: int, sub: int, kid: int, issued_s: int) -> bool:
        """Return whether a lease in the words of a slot is revoked."""
        until_s = self._until_s
        return (
            kid in self._revoked_keys
            or issued_s <= until_s.get((_JTI, jti, 0), -1)
            or issued_s <= until_s.get((_SUB, sub, 0), -1)
            or issued_s <= until_s.get((_KID, kid, 0), -1)
        )
