"""What the master asks of a store about revocations."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from wavry_cp.operators.audit import AuditEntry
from wavry_peer.protocol.http.relay_events import RevocationKind

__all__ = ["NewRevocation", "RevocationLog", "RevocationRow", "RevocationStore"]


@dataclass(frozen=True, slots=True)
class NewRevocation:
    """A row before it has its number.

    Attributes:
        kind: what `value` is, or ``"unban"``.
        value: lease id, session id, user name or key id.
        issued_until_s: leases issued up to here are hit, unix seconds.
        expires_at_s: when no hit lease can be valid any more.
        at_s: when it was ordered, unix seconds.
        who: name of the token that was shown.
        reason: why, as the operator wrote it.
    """

    kind: RevocationKind
    value: str
    issued_until_s: int
    expires_at_s: int
    at_s: int
    who: str
    reason: str


@dataclass(frozen=True, slots=True)
class RevocationRow(NewRevocation):
    """A row of the log; numbers grow and are never used again."""

    number: int


@dataclass(frozen=True, slots=True)
class RevocationLog:
    """The whole log: its id (made with the database), its last number, the rows that are left."""

    log_id: str
    head: int
    rows: tuple[RevocationRow, ...]


class RevocationStore(Protocol):
    """Durable revocations; raises `StoreUnavailableError` as every store does."""

    async def revocation_log(self) -> RevocationLog:
        """Return everything, for the start of a master."""
        ...

    async def add_revocation(
        self, new: NewRevocation, audit: AuditEntry
    ) -> tuple[Sequence[RevocationRow], int]:
        """Write a revocation and the act that made it (both or neither).

        A lease that was renewed a moment ago lives on in its successor, so that one is revoked
        along with it.

        Returns:
            The rows that were written, and the number of live sessions that they hit.
        """
        ...

    async def sessions_of(self, sub: str, relays: Collection[str], now_s: int) -> Sequence[str]:
        """Return the ids of the live sessions that a user has at some relays."""
        ...

    async def knows(self, kind: RevocationKind, value: str) -> bool:
        """Return whether any stored session, or key that signed once, has this value."""
        ...

    async def add_unban(self, new: NewRevocation, audit: AuditEntry) -> RevocationRow:
        """Write an ``unban`` row and shorten the ``sub`` rows that it lifts (all or nothing)."""
        ...

    async def prune_revocations(self, expired_before_s: int) -> int:
        """Delete rows that no lease needs any more; gives how many."""
        ...
