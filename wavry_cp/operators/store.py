"""What operators' orders ask of a store, in both services.

Every method is one transaction, with the row of the audit log in it, and may raise
`StoreUnavailableError`; then nothing of the call was kept.
"""

from collections.abc import Sequence
from typing import Protocol

from .admin_tokens import AdminToken
from .audit import AuditEntry, AuditLog
from .bans import Ban, BanKind
from .switches import SwitchState

__all__ = ["AdminStore", "TokenStore"]


class AdminStore(AuditLog, Protocol):
    """Audit log, switches and bans; and how the store itself is."""

    @property
    def warning(self) -> str:
        """Why this may not be the database that was here before, in words; empty where it is."""
        ...

    async def checkpoint(self) -> None:
        """Bring what was written into the main file of the database."""
        ...

    async def switches(self) -> Sequence[SwitchState]:
        """Return the switches that were ever touched."""
        ...

    async def set_switch(self, state: SwitchState, audit: AuditEntry) -> None:
        """Write where a switch stands, and the act."""
        ...

    async def bans(self) -> Sequence[Ban]:
        """Return all bans, also those that are over and not removed yet."""
        ...

    async def save_ban(self, ban: Ban, audit: AuditEntry) -> None:
        """Write a ban (in place of an older one of the same user or relay), and the act."""
        ...

    async def remove_ban(self, kind: BanKind, value: str, audit: AuditEntry) -> None:
        """Remove a ban, and write the act."""
        ...


class TokenStore(AuditLog, Protocol):
    """Named admin tokens."""

    async def admin_tokens(self) -> Sequence[AdminToken]:
        """Return all of them."""
        ...

    async def change_admin_tokens(
        self, keep: Sequence[AdminToken], forget: Sequence[AdminToken], audit: AuditEntry
    ) -> None:
        """Write some tokens, remove others, and write the act."""
        ...
