"""What the registry of relays asks of a store.

A call that returned is on disk.  Every method raises `StoreUnavailableError` where the store
cannot answer now; then nothing of the call was kept.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from wavry_cp.operators.audit import AuditEntry
from wavry_cp.operators.bans import Ban

from .rules import RelayRecord

__all__ = ["RelayStore"]


class RelayStore(Protocol):
    """Records of relays."""

    async def relays(self) -> Sequence[RelayRecord]:
        """Return all relays."""
        ...

    async def save_relay(self, record: RelayRecord, audit: AuditEntry | None = None) -> None:
        """Write a relay, and with it (both or neither) the act that changed it."""
        ...

    async def enrol_relay(
        self, record: RelayRecord, token_id: str, now_s: int, audit: AuditEntry
    ) -> bool:
        """Write a relay, spend the token that lets it in, and write the act: all or nothing.

        Returns:
            False where the token has ended, was used or is gone; nothing was written.
        """
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
