"""The store of a gateway: what each of its subjects asks for."""

from typing import Protocol

from wavry_cp.gateway.accounts.store import AccountStore
from wavry_cp.gateway.sessions.store import CallStore
from wavry_cp.operators.store import AdminStore

__all__ = ["GatewayStore"]


class GatewayStore(AccountStore, CallStore, AdminStore, Protocol):
    """Accounts, tokens and sessions, and what operators' orders need."""

    async def check(self) -> None:
        """Do the smallest possible write transaction, or raise `StoreUnavailableError`."""

    async def close(self) -> None:
        """Release the store."""
