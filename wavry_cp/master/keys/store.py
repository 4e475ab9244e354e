"""What the signing keys ask of a store.

A call that returned is on disk.  Every method raises `StoreUnavailableError` where the store
cannot answer now; then nothing of the call was kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from wavry_cp.operators.audit import AuditEntry, AuditLog

__all__ = ["KeyStore", "KeyUse"]


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What a signing key was used for.

    Attributes:
        last_expiry_s: unix seconds at which the last lease that it signed ends; 0 for none.
        forced: it was activated although live relays lacked it.
    """

    last_expiry_s: int
    forced: bool


class KeyStore(AuditLog, Protocol):
    """What signing keys were used for, and their steps."""

    async def key_uses(self) -> Mapping[str, KeyUse]:
        """Use of each signing key that ever signed or was changed, by key id."""
        ...

    async def record_key_step(self, audit: AuditEntry, kid: str, *, forced: bool) -> None:
        """Write a change of the keys, and (both or neither) whether it was forced."""
        ...
