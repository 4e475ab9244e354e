"""The life of a lease at the relay: its states and every step between them, as one table.

A peer's slot of a session is what has a state (protocol.md section 3).  The state is never kept by
itself: `state_of` reads it from the record, so a crash cannot leave a state that the record does
not have.  Whoever changes a record tells `LeaseTransitions` which step that
is.

Issued is the master's; a lease that the relay refuses takes no step, it is counted as a reject and
forgotten.  Presented and Renewed last for the time of one packet.
"""

from enum import StrEnum
from typing import Final

__all__ = ["TRANSITIONS", "LeaseState", "counter_name", "table_rows"]


class LeaseState(StrEnum):
    """State of a lease, or of the slot that it holds."""

    ISSUED = "issued"
    """Signed by the master; this relay holds nothing of it."""
    PRESENTED = "presented"
    """Good by itself: signature, claims, revocations and proof fit."""
    ACCEPTED = "accepted"
    """Holds a slot; the other peer's slot is empty, and nothing is forwarded."""
    ACTIVE = "active"
    """Holds a slot, and so does the other peer's lease."""
    RENEWED = "renewed"
    """Has just taken the place of an older lease of the same peer."""
    EXPIRED = "expired"
    REVOKED = "revoked"
    CLOSED = "closed"

    __hash__ = str.__hash__
    """Enum's own is a Python call, and steps are looked up for every lease."""


_S: Final = LeaseState

TRANSITIONS: Final[dict[tuple[LeaseState, LeaseState], str]] = {
    (_S.ISSUED, _S.PRESENTED): "a packet brings a lease that is good by itself",
    (_S.PRESENTED, _S.ACCEPTED): "it takes an empty slot",
    (_S.ACCEPTED, _S.ACTIVE): "the other slot is taken too",
    (_S.ACTIVE, _S.ACCEPTED): "the other peer gave its slot back",
    (_S.ACCEPTED, _S.RENEWED): "a newer lease of the same peer replaces it, before the other came",
    (_S.ACTIVE, _S.RENEWED): "a newer lease of the same peer replaces it; the old one is denied",
    (_S.RENEWED, _S.ACCEPTED): "the newer lease waits on",
    (_S.RENEWED, _S.ACTIVE): "the newer lease goes on forwarding until its own expiry",
    (_S.ACCEPTED, _S.EXPIRED): "its `exp` has passed when the session is swept",
    (_S.ACTIVE, _S.EXPIRED): "its `exp` has passed when the session is swept",
    (_S.ACCEPTED, _S.REVOKED): "the lease, its session, user or key was revoked, or the peer's was",
    (_S.ACTIVE, _S.REVOKED): "the lease, its session, user or key was revoked, or the peer's was",
    (_S.ACCEPTED, _S.CLOSED): "the other peer did not come, or the peer gave the slot back",
    (_S.ACTIVE, _S.CLOSED): "the session was idle, or the peer gave the slot back",
}
"""All steps there are, and when each is taken."""


def counter_name(before: LeaseState, after: LeaseState) -> str:
    """Return the name of the shared counter of a step."""
    return f"transition_{before}_{after}"


def table_rows() -> list[str]:
    """Return the rows of a Markdown table: docs/protocol.md is checked against them."""
    return [
        f"| {before.title()} | {after.title()} | {when} |"
        for (before, after), when in TRANSITIONS.items()
    ]
