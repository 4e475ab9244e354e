"""The relay's own copy of the master's revocations: in memory, in shared memory, on disk.

A row takes effect first (shared memory, so that sessions are cut at once), is written to the state
directory next, and only then confirmed: a relay that dies in between reads it again from the
master.  The file is written whole, so that it is there or it is not; it also names the master's
log, because numbers of another log (a master that lost its database) mean nothing.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from wavry_peer.protocol.http.relay_events import FOREVER_S, Revocation
from wavry_relay.identity import StateDirectory
from wavry_relay.shm.layout import REVOCATION_SLOTS
from wavry_relay.shm.revocations import RevocationEntry, RevocationTable, RevokedKind, TablePosition
from wavry_relay.shm.sessions import session_words
from wavry_relay.shm.tags import Tags

__all__ = ["FILE_NAME", "RelayRevocations", "Snapshot"]

FILE_NAME: Final = "revocations.json"
MAX_FILE_BYTES: Final = 16 * 1024 * 1024
KEEP_S: Final = 60
"""A revocation is kept this much longer, in case the wall clock is set back."""

_KINDS: Final = {
    "jti": RevokedKind.JTI,
    "session": RevokedKind.SESSION,
    "sub": RevokedKind.SUB,
    "kid": RevokedKind.KID,
}
_Key = tuple[str, str]

_log = structlog.get_logger(__name__)


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    kind: str
    value: str
    issued_until_s: int
    expires_s: int


class _File(msgspec.Struct, frozen=True, kw_only=True):
    log: str
    number: int
    entries: list[_Kept]


class Snapshot(msgspec.Struct, frozen=True):
    """What is to be written: the bytes of the file and the number that they reach."""

    number: int
    raw: bytes


class RelayRevocations:
    """Revocations in force at this relay.

    Args:
        state: where they are kept.
        table: where workers read them.
        tags: of the same segment.
        now_s: unix seconds.

    Attributes:
        log: id of the master's log that `number` belongs to, empty before the first.
        number: last row that took effect.
        received: rows that took effect, by the way they came.
        evicted: revocations that were given up although a lease may still be hit by them.
    """

    def __init__(
        self,
        state: StateDirectory,
        table: RevocationTable,
        tags: Tags,
        now_s: Callable[[], int],
        *,
        capacity: int = REVOCATION_SLOTS,
    ) -> None:
        self._state = state
        self._table = table
        self._tags = tags
        self._now_s = now_s
        self._capacity = capacity
        self._kept: dict[_Key, _Kept] = {}
        self._adopted: dict[tuple[int, int, int], RevocationEntry] = {}
        """Of a predecessor and without a name: tags cannot be read backwards."""
        self.log = ""
        self.number = 0
        self.received: Counter[str] = Counter()
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._kept)

    def load(self, *, adopt: bool = False) -> None:
        """Put into force what the last run kept; called before a worker starts.

        Args:
            adopt: the table is a running relay's (a hot upgrade): what is in force there and not
                in the file stays.  A disk may not have taken it, or not yet.
        """
        adopted = self._table.read(TablePosition()) if adopt else None
        self._adopted = {entry[:3]: entry for entry in adopted[1]} if adopted else {}
        path = self._state.path / FILE_NAME
        try:
            with path.open("rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
            if len(raw) > MAX_FILE_BYTES:
                raise ValueError("file is over 16 MiB")  # noqa: TRY301  # one way to report it
            found = msgspec.json.decode(raw, type=_File)
        except FileNotFoundError:
            found = None
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            # ValueError covers bytes that are no UTF-8.
            found = None
            _log.error(
                "revocations_unreadable",
                path=str(path),
                cause=type(error).__name__,
                next_step="the master sends them again; until it is reached, revoked leases pass",
            )
        if found is not None:
            self.log, self.number = found.log, found.number
            self._kept = {
                (kept.kind, kept.value): kept for kept in found.entries if _is_sound(kept)
            }
        self._rewrite()

    def agrees(self, log: str, head: int, *, asked: int) -> bool:
        """Tell whether our numbers mean the same to the master; else everything is read anew.

        Args:
            log: id of the master's log.
            head: its last number.
            asked: our number when we asked; it may have grown since.
        """
        if self.log == log and asked <= head:
            return True
        if self.number:
            _log.warning(
                "revocation_log_changed",
                number=self.number,
                master_number=head,
                cause="the master has another database, or an older copy of it",
                next_step="none: all its revocations are read again, those known stay in force",
            )
        self.log, self.number = log, 0
        return False

    def take(self, row: Revocation, way: str) -> bool:
        """Put a row into force; False for one that was taken before.

        Args:
            row: from the master.
            way: ``"stream"`` or ``"poll"``, to count.
        """
        if row.number <= self.number:
            return False
        self.number = row.number
        self.received[way] += 1
        kept = self._merged(row)
        if kept is not None and kept.expires_s + KEEP_S > self._now_s():
            key = (kept.kind, kept.value)
            is_known = key in self._kept
            self._kept[key] = kept
            if (len(self._kept) > self._capacity and not is_known) or not self._table.append(
                self._entry(kept)
            ):
                self._rewrite()
        return True

    def _merged(self, row: Revocation) -> _Kept | None:
        """Return the entry after a row, None where it changes nothing."""
        if row.kind == "unban":
            known = self._kept.get(("sub", row.value))
            if known is None:
                return None
            return _Kept(
                "sub",
                row.value,
                min(known.issued_until_s, row.issued_until),
                min(known.expires_s, row.expires_at),
            )
        known = self._kept.get((row.kind, row.value))
        return _Kept(
            row.kind,
            row.value,
            max(row.issued_until, known.issued_until_s if known else 0),
            max(row.expires_at, known.expires_s if known else 0),
        )

    def _rewrite(self) -> None:
        """Write the table anew without what has expired; room is made if it must be."""
        now_s = self._now_s()
        kept = {key: one for key, one in self._kept.items() if one.expires_s + KEEP_S > now_s}
        surplus = len(kept) - self._capacity
        if surplus > 0:
            # The one that ends first does the least harm, and nobody may miss that it is gone.
            for key in sorted(kept, key=lambda key: kept[key].expires_s)[:surplus]:
                del kept[key]
            self.evicted += surplus
            _log.error(
                "revocations_evicted",
                evicted=surplus,
                room=self._capacity,
                cause="more revocations are in force than the relay has room for",
                next_step="revoke users or keys instead of single leases; drain this relay if a"
                " revoked lease must not come back",
            )
        self._kept = kept
        entries = {entry[:3]: entry for entry in map(self._entry, kept.values())}
        self._adopted = {
            key: entry
            for key, entry in self._adopted.items()
            if key not in entries and entry.expires_s + KEEP_S > now_s
        }
        room = REVOCATION_SLOTS - len(entries)
        self._table.rewrite((*list(self._adopted.values())[:room], *entries.values()))

    def _entry(self, kept: _Kept) -> RevocationEntry:
        kind = _KINDS[kept.kind]
        first, second = 0, 0
        if kind is RevokedKind.SESSION:
            first, second = session_words(bytes.fromhex(kept.value.replace("-", "")))
        elif kind is RevokedKind.KID:
            first = self._tags.key_id(kept.value)
        else:
            first = self._tags.tag(kept.kind.encode(), kept.value.encode())
        return RevocationEntry(kind, first, second, kept.issued_until_s, kept.expires_s)

    def snapshot(self) -> Snapshot:
        """Return what the file should hold now."""
        now_s = self._now_s()
        entries = [one for one in self._kept.values() if one.expires_s + KEEP_S > now_s]
        raw = msgspec.json.encode(_File(log=self.log, number=self.number, entries=entries))
        return Snapshot(self.number, raw)

    def write(self, snapshot: Snapshot) -> None:
        """Write the file; may run on another thread.

        Raises:
            StateError: the disk does not take it.
        """
        self._state.write(FILE_NAME, snapshot.raw)


def _is_sound(kept: _Kept) -> bool:
    """Tell whether a line of the file can be an entry: an edited file must not stop the relay."""
    if kept.kind not in _KINDS or not 0 <= kept.issued_until_s <= FOREVER_S:
        return False
    if not 0 <= kept.expires_s <= FOREVER_S:
        return False
    if kept.kind == "session":
        try:
            return len(bytes.fromhex(kept.value.replace("-", ""))) == 16
        except ValueError:
            return False
    return True
