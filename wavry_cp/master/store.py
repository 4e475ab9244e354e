"""What the master asks of a store, in the terms of its domain.

`master_sqlite` is the embedded default; another database implements the same Protocol.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from wavry_cp.master.leases.rules import LeasedSession
from wavry_cp.master.relays.rules import RelayRecord
from wavry_cp.operators.audit import AuditEntry
from wavry_cp.operators.bans import Ban
from wavry_cp.operators.store import AdminStore, TokenStore

__all__ = ["AuditEntry", "KeyUse", "MasterStore"]


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What a signing key was used for.

    Attributes:
        last_expiry_s: unix seconds at which the last lease that it signed ends; 0 for none.
        forced: it was activated although live relays lacked it.
    """

    last_expiry_s: int
    forced: bool


class MasterStore(AdminStore, TokenStore, Protocol):
    """Durable state of the master.

    A call that returned is on disk.  Every method raises `StoreUnavailableError` where the store
    cannot answer now; then nothing of the call was kept.
    """

    async def relays(self) -> Sequence[RelayRecord]:
        """All relays."""
        ...

    async def save_relay(self, record: RelayRecord, audit: AuditEntry | None = None) -> None:
        """Write a relay, and with it (both or neither) the act that changed it."""
        ...

    async def remove_relay(self, relay_id: str, audit: AuditEntry | None = None) -> None:
        """Forget a relay, and write (both or neither) the act."""
        ...

    async def ban_relay(self, record: RelayRecord | None, ban: Ban, audit: AuditEntry) -> None:
        """Write a ban, the record of the relay where there is one, and the act."""
        ...

    async def unban_relay(
        self, record: RelayRecord | None, relay_id: str, audit: AuditEntry
    ) -> None:
        """Remove a ban, write the record of the relay where there is one, and the act."""
        ...

    async def save_heartbeats(self, at_s: Mapping[str, int]) -> None:
        """Write when relays (by id) were last heard, in unix seconds."""
        ...

    async def session(self, session_id: str) -> LeasedSession | None:
        """Return the session with this id."""
        ...

    async def swap_session(self, expected_revision: int | None, session: LeasedSession) -> bool:
        """Write a session if it is still as the caller read it, and how long its keys are needed.

        Args:
            expected_revision: revision that was read; None where there was no such session.
            session: with a revision of its own.

        Returns:
            False where somebody was faster; nothing was written.
        """
        ...

    async def live_sessions(self, now_s: int) -> int:
        """Return the number of sessions with a lease that still runs."""
        ...

    async def prune_sessions(self, expired_before_s: int, limit: int) -> int:
        """Delete at most `limit` sessions that expired before an instant; gives how many."""
        ...

    async def key_uses(self) -> Mapping[str, KeyUse]:
        """Use of each signing key that ever signed or was changed, by key id."""
        ...

    async def record_key_step(self, audit: AuditEntry, kid: str, *, forced: bool) -> None:
        """Write a change of the keys, and (both or neither) whether it was forced."""
        ...

    async def check(self) -> None:
        """Do the smallest possible write transaction, or raise `StoreUnavailableError`."""
        ...

    async def close(self) -> None:
        """End the store; calling it again does nothing."""
        ...
