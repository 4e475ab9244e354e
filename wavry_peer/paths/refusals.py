"""What a relay's refusal means for a person, and what to do next.

A LEASE_REJECT is unauthenticated, so these are explanations of why a path failed, never a verdict
on the session; that one is the gateway's.
"""

from typing import Final

from wavry_peer.protocol.constants import RejectReason

__all__ = ["ENDED_BY_GATEWAY", "refusal_text"]

ENDED_BY_GATEWAY: Final = "the gateway ended the session; make a new call, or ask the operator"

_R: Final = RejectReason

_TEXTS: Final[dict[RejectReason, str]] = {
    _R.EXPIRED: "the lease is over; call again, and if it is over at once, the clock of relay or"
    " master is wrong",
    _R.INVALID_SIGNATURE: "the lease does not fit; call again, and tell the operator if it stays",
    _R.WRONG_RELAY: "the lease is for another relay; call again",
    _R.SESSION_FULL: "the relay has no room; try again shortly",
    _R.BANNED: "this address is blocked for repeated bad leases; try from another network, or ask"
    " the operator",
    _R.RATE_LIMITED: "too many leases at once; wait a few seconds and try again",
    _R.REPLAYED: "the lease was used before; call again",
    _R.REVOKED: "the operator revoked the lease; make a new call, or ask the operator",
    _R.NOT_YET_VALID: "the lease begins later; the clock of relay or master is wrong, tell the"
    " operator",
    _R.DRAINING: "the relay takes no new sessions; try again, another relay is named then",
    _R.UNKNOWN_KEY: "the relay does not know the lease's key yet; try again shortly, and tell the"
    " operator if it stays",
    _R.PROOF_REQUIRED: "the relay did not accept our proof; call again",
}


def refusal_text(reason: RejectReason | int | None) -> str:
    """Return how it failed, after "the relay"; None where it did not answer."""
    if reason is None:
        return "did not answer; check that UDP gets through, and try again"
    if not isinstance(reason, RejectReason):
        return f"refused with the unknown reason {reason}; update this peer"
    return f"refused with {reason.name}: {_TEXTS[reason]}"
