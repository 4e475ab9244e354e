"""The audit log: who did what to whom, when, why, and the outcome.

An act and its row are written in one transaction, by the store method that carries the act out;
`append_audit` of the store is the only place that writes rows.  An act that a rule refuses changes
nothing, so its row is all there is to write: `attempted` does that.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Protocol

from wavry_peer.protocol.errors import WavryError

__all__ = [
    "ADDRESS_PREFIX",
    "DONE",
    "SYSTEM",
    "AuditEntry",
    "AuditLog",
    "AuditPart",
    "AuditRecord",
    "attempted",
]

DONE: Final = "done"
ADDRESS_PREFIX: Final = "address:"
SYSTEM: Final = "system"
"""Who lifts a ban whose time is over; no token may have this name."""


class AuditPart(StrEnum):
    """``acts`` of operators and users; what somebody at an address was ``refused``."""

    ACTS = "acts"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One act of an operator or user, or what was refused; kept for ever.

    Attributes:
        at_s: unix seconds.
        who: name of the token that was shown, ``user:NAME``, or ``address:HASH`` where it was
            refused to somebody there.
        action: e.g. ``"drain"``.
        target: e.g. the relay id.
        reason: in the operator's words, may be empty.
        outcome: ``"done"``, or the error code with which a rule refused the act.
    """

    at_s: int
    who: str
    action: str
    target: str
    reason: str = ""
    outcome: str = DONE


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """A stored entry; `number` grows by the order of writing, and no two are the same."""

    number: int
    entry: AuditEntry


class AuditLog(Protocol):
    """The log of one service, append-only."""

    async def record_act(self, entry: AuditEntry) -> None:
        """Write an act that changes nothing in this store, e.g. one that was refused."""
        ...

    async def record_acts(self, entries: Sequence[AuditEntry]) -> None:
        """Write several at once, in their order."""
        ...

    async def audit_page(
        self,
        *,
        after: int | None,
        since_s: int | None,
        limit: int,
        only: AuditPart | None = None,
    ) -> Sequence[AuditRecord]:
        """Return the acts in the order of writing.

        Args:
            after: only those with a larger number; None gives the last ones.
            since_s: only those at or after this instant, unix seconds.
            limit: most rows.
            only: a part of the log; None gives all of it.
        """
        ...


@asynccontextmanager
async def attempted(log: AuditLog, entry: AuditEntry) -> AsyncIterator[AuditEntry]:
    """Carry out an act inside the block; where a rule refuses it, that is written down.

    The block writes `entry` together with what it does; a store that does not answer leaves
    neither an act nor a row.
    """
    try:
        yield entry
    except WavryError as error:
        code = getattr(error, "code", None)
        if isinstance(code, str):
            await log.record_act(replace(entry, outcome=code))
        raise
