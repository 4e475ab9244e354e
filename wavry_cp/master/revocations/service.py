"""Revocations of the master: the log in memory, and the one way to add to it.

The rows in force are few (10 000 at most) and are asked at every lease, so they are kept in memory
beside the store.  A row is in the store before anybody hears of it.  The log itself is the
queue of every relay's event stream: a stream only remembers how far it has come.
"""

import bisect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from wavry_cp.app.refusal import RefusedError
from wavry_cp.master.leases.rules import LeasedSession, LeaseSlot
from wavry_cp.operators.audit import AuditEntry
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.http.relay_events import (
    FOREVER_S,
    MAX_REVOCATIONS,
    Revocation,
    RevocationKind,
)

from .store import NewRevocation, RevocationLog, RevocationRow, RevocationStore

__all__ = ["RevocationIndex", "RevocationService", "Revoked"]

HORIZON_S: Final = c.LEASE_HORIZON_S
"""No relay takes a lease that ends later than this, so no row is needed longer."""

KEEP_S: Final = 60
"""A row is kept this much longer, in case the wall clock is set back."""

_NAMES: Final = frozenset({"sub", "unban"})
"""Kinds whose value is the name of a user."""

_ONCE: Final = frozenset({"jti", "session"})
"""Values that are never given out again: the row hits whatever carries them."""


class RevocationIndex:
    """The log in memory; changed by `RevocationService` alone."""

    def __init__(self, log: RevocationLog) -> None:
        self.log_id = log.log_id
        self.head = log.head
        self._rows: list[RevocationRow] = []
        self._until_s: dict[tuple[str, str], int] = {}
        for row in log.rows:
            self.add(row)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: RevocationRow) -> None:
        """Take a row that is in the store."""
        self.head = max(self.head, row.number)
        if row.kind == "unban":
            self._rows = [_lifted(old, row) for old in self._rows]
            key = ("sub", row.value)
            if key in self._until_s:
                self._until_s[key] = min(self._until_s[key], row.issued_until_s)
        else:
            key = (row.kind, row.value)
            self._until_s[key] = max(self._until_s.get(key, -1), row.issued_until_s)
        self._rows.append(row)

    def prune(self, expired_before_s: int) -> None:
        """Forget rows that no lease needs any more."""
        if any(row.expires_at_s < expired_before_s for row in self._rows):
            left = tuple(row for row in self._rows if row.expires_at_s >= expired_before_s)
            self._rows, self._until_s = [], {}
            for row in left:
                self.add(row)

    @property
    def rows(self) -> Sequence[RevocationRow]:
        """Rows in force, by number."""
        return self._rows

    def after(self, number: int, limit: int, *, names: bool = True) -> Sequence[Revocation]:
        """Return at most `limit` rows behind a number, as relays read them.

        Args:
            number: of the last row that the relay has.
            limit: most rows.
            names: also those that name a user; `RevocationService` revokes his sessions at a relay
                that does not get them.
        """
        first = bisect.bisect_right(self._rows, number, key=lambda row: row.number)
        if names:
            return [_frame(row) for row in self._rows[first : first + limit]]
        told = (self._rows[at] for at in range(first, len(self._rows)))
        return [_frame(row) for row in islice((r for r in told if r.kind not in _NAMES), limit)]

    def hits(self, session: LeasedSession) -> bool:
        """Return whether a lease of a session is revoked."""
        if not self._until_s:
            return False
        if ("session", session.session_id) in self._until_s:
            return True
        return any(self._hits_slot(slot) for slot in (session.client, session.server))

    def hits_session_id(self, session_id: str) -> bool:
        """Return whether a session was revoked by its id."""
        return ("session", session_id) in self._until_s

    def _hits_slot(self, slot: LeaseSlot) -> bool:
        keys = (("jti", slot.jti), ("jti", slot.previous_jti or ""), ("sub", slot.sub),
                ("kid", slot.kid))  # fmt: skip
        return any(slot.issued_at_s <= self._until_s.get(key, -1) for key in keys)


@dataclass(frozen=True, slots=True)
class Revoked:
    """Outcome of a revocation: its row, and how many live sessions it hit."""

    row: RevocationRow
    live_sessions: int


class RevocationService:
    """Revokes and lifts; what it returns is durable and on its way to the relays.

    Args:
        store: of the master.
        index: of the same store.
        announce: called after each change of the index.
        strangers: tells the relays that must not hear names of users.
    """

    def __init__(
        self,
        store: RevocationStore,
        index: RevocationIndex,
        announce: Callable[[], None],
        strangers: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        self._store = store
        self.index = index
        self._announce = announce
        self._strangers = strangers

    async def revoke(
        self,
        kind: RevocationKind,
        value: str,
        *,
        now_s: int,
        who: str,
        reason: str,
        until_s: int | None = None,
    ) -> Revoked:
        """Revoke every lease of a value that was issued up to now.

        Args:
            kind: ``jti``, ``session``, ``sub`` or ``kid``.
            value: what it says.
            now_s: unix seconds.
            who: name of the token that was shown.
            reason: of the operator.
            until_s: also hit leases issued up to this instant (a ban); for ``sub`` and ``kid``.

        Raises:
            RefusedError: ``too_many_revocations``.
        """
        if len(self.index) >= MAX_REVOCATIONS:
            raise RefusedError(
                ErrorCode.TOO_MANY_REVOCATIONS,
                f"{MAX_REVOCATIONS} revocations are in force; revoke users or a key instead",
            )
        issued_until_s = FOREVER_S if kind in _ONCE else max(now_s, until_s or 0)
        last_issue_s = now_s if kind in _ONCE else issued_until_s
        new = NewRevocation(
            kind=kind,
            value=value,
            issued_until_s=issued_until_s,
            expires_at_s=min(last_issue_s + HORIZON_S, FOREVER_S),
            at_s=now_s,
            who=who,
            reason=reason,
        )
        audit = AuditEntry(now_s, who, f"revoke_{kind}", value, reason)
        rows, live_sessions = await self._store.add_revocation(new, audit)
        for row in rows:
            self.index.add(row)
        if kind == "sub":
            await self._revoke_at_strangers(new)
        self._announce()
        return Revoked(rows[0], live_sessions)

    async def _revoke_at_strangers(self, new: NewRevocation) -> None:
        """Revoke by their ids the sessions of a user at the relays that do not hear his name."""
        strangers = self._strangers()
        if not strangers:
            return
        for session_id in await self._store.sessions_of(new.value, strangers, new.at_s):
            row = replace(
                new,
                kind="session",
                value=session_id,
                issued_until_s=FOREVER_S,
                expires_at_s=new.at_s + HORIZON_S,
            )
            audit = AuditEntry(new.at_s, new.who, "revoke_session", session_id, new.reason)
            rows, _ = await self._store.add_revocation(row, audit)
            for written in rows:
                self.index.add(written)

    async def knows(self, kind: RevocationKind, value: str) -> bool:
        """Return whether there is or was a session, or a key that signed, with this value."""
        return await self._store.knows(kind, value)

    async def unban(self, sub: str, *, now_s: int, who: str, reason: str) -> RevocationRow:
        """End what a `revoke` of a user with `until_s` said about the future.

        Meanwhile no lease was issued; one of this very second is already a new one.
        """
        new = NewRevocation(
            kind="unban",
            value=sub,
            issued_until_s=now_s - 1,
            expires_at_s=now_s + HORIZON_S,
            at_s=now_s,
            who=who,
            reason=reason,
        )
        row = await self._store.add_unban(new, AuditEntry(now_s, who, "unban", sub, reason))
        self.index.add(row)
        self._announce()
        return row

    async def prune(self, now_s: int) -> None:
        """Forget, in store and memory, what no lease needs any more."""
        before_s = now_s - KEEP_S
        await self._store.prune_revocations(before_s)
        self.index.prune(before_s)


def _lifted(row: RevocationRow, unban: RevocationRow) -> RevocationRow:
    if (row.kind, row.value) != ("sub", unban.value):
        return row
    return replace(
        row,
        issued_until_s=min(row.issued_until_s, unban.issued_until_s),
        expires_at_s=min(row.expires_at_s, unban.expires_at_s),
    )


def _frame(row: RevocationRow) -> Revocation:
    return Revocation(
        number=row.number,
        kind=row.kind,
        value=row.value,
        issued_until=row.issued_until_s,
        expires_at=row.expires_at_s,
    )
