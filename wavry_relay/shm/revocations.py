"""Revocations in shared memory: a log that the supervisor writes and every worker reads.

Strategy: an append-only array.  The supervisor writes an entry and then counts it, so a reader that
sees the count sees the entry; a worker remembers how far it has read and keeps what it read in
a dictionary of its own.  Nobody locks.  When the array is full the supervisor rewrites it without
what has expired, under a sequence lock: `revocation_epoch` is odd meanwhile, and a reader that
finds another epoch than the one it knows reads everything again.  Of two entries with the same key
the later one counts.
"""

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from .control import ControlBlock
from .layout import REVOCATION, REVOCATION_SLOTS
from .segment import Segment

__all__ = ["RevocationEntry", "RevocationTable", "RevokedKind", "TablePosition"]

_WORDS: Final = REVOCATION.size // 8
_READ_ATTEMPTS: Final = 100


class RevokedKind(IntEnum):
    """What an entry names."""

    JTI = 1
    SESSION = 2
    SUB = 3
    KID = 4


class RevocationEntry(NamedTuple):
    """One entry: leases of `tag` with an issue time up to `issued_until_s` are revoked.

    Attributes:
        kind: a `RevokedKind`.
        tag: `Tags.tag` of a jti or sub, `Tags.key_id`, or the first word of a session id.
        second: the second word of a session id, else 0.
        issued_until_s: unix seconds.
        expires_s: unix seconds; later nobody needs the entry.
    """

    kind: int
    tag: int
    second: int
    issued_until_s: int
    expires_s: int


class TablePosition(NamedTuple):
    """How far a reader has come."""

    epoch: int = -1
    entries: int = 0


class RevocationTable:
    """The revocation log of a segment."""

    def __init__(self, segment: Segment, control: ControlBlock) -> None:
        self._words = segment.u64
        self._at = segment.geometry.regions["revocations"].offset // 8
        self._control = control

    @property
    def count(self) -> int:
        """Entries, superseded and expired ones included."""
        return self._control.revocation_count

    def append(self, entry: RevocationEntry) -> bool:
        """Write one entry (supervisor only); False where there is no room."""
        count = self._control.revocation_count
        if count >= REVOCATION_SLOTS:
            return False
        self._write(count, entry)
        self._control.revocation_count = count + 1
        return True

    def rewrite(self, entries: Iterable[RevocationEntry]) -> None:
        """Replace everything (supervisor only); at most `REVOCATION_SLOTS` entries.

        A writer that died half-way left an odd epoch; this makes it even again.
        """
        control = self._control
        control.revocation_epoch = (control.revocation_epoch + 1) | 1
        count = 0
        for entry in entries:
            self._write(count, entry)
            count += 1
        control.revocation_count = count
        control.revocation_epoch += 1

    def _write(self, number: int, entry: RevocationEntry) -> None:
        at = self._at + number * _WORDS
        for place, value in enumerate(entry):
            self._words[at + place] = value

    def read(
        self, position: TablePosition
    ) -> tuple[TablePosition, Sequence[RevocationEntry]] | None:
        """Return the entries behind a position, all of them after a rewrite.

        Returns:
            The new position and the entries, or None while a writer does not finish.
        """
        control = self._control
        for _ in range(_READ_ATTEMPTS):
            epoch = control.revocation_epoch
            if epoch & 1:
                continue
            count = min(control.revocation_count, REVOCATION_SLOTS)
            first = position.entries if epoch == position.epoch else 0
            words = self._words[self._at + first * _WORDS : self._at + count * _WORDS].tolist()
            if control.revocation_epoch == epoch:
                entries = [
                    RevocationEntry(*words[at : at + _WORDS]) for at in range(0, len(words), _WORDS)
                ]
                return TablePosition(epoch, count), entries
        return None
