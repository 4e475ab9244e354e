"""What enrolment asks of a store; the token is spent where the relay is written (`RelayStore`).

A call that returned is on disk.  Every method raises `StoreUnavailableError` where the store
cannot answer now; then nothing of the call was kept.
"""

from collections.abc import Sequence
from typing import Protocol

from wavry_cp.operators.audit import AuditEntry, AuditLog

from .tokens import EnrolmentToken

__all__ = ["EnrolmentStore"]


class EnrolmentStore(AuditLog, Protocol):
    """Tokens that let new relays in."""

    async def enrolments(self) -> Sequence[EnrolmentToken]:
        """Return all tokens, used and ended ones too."""
        ...

    async def save_enrolment(self, token: EnrolmentToken, audit: AuditEntry) -> None:
        """Write a token in place of the one of its name, and the act."""
        ...

    async def remove_enrolments(self, names: Sequence[str], audit: AuditEntry | None) -> None:
        """Forget the tokens of these names, and write the act."""
        ...
