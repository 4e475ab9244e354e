"""The store of a master: what each of its subjects asks for."""

from typing import Protocol

from wavry_cp.master.enrolment.store import EnrolmentStore
from wavry_cp.master.keys.store import KeyStore
from wavry_cp.master.leases.store import LeaseStore
from wavry_cp.master.relays.store import RelayStore
from wavry_cp.operators.store import AdminStore, TokenStore

__all__ = ["MasterStore"]


class MasterStore(
    RelayStore, EnrolmentStore, LeaseStore, KeyStore, AdminStore, TokenStore, Protocol
):
    """Relays, leases and keys, and what operators' orders need; revocations have their own."""

    async def check(self) -> None:
        """Do the smallest possible write transaction, or raise `StoreUnavailableError`."""
        ...

    async def close(self) -> None:
        """End the store; calling it again does nothing."""
        ...
