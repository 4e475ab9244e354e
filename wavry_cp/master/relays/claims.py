"""What a relay that registers claims: its addresses, and a place among the strangers.

An address belongs to the enrolled relay that has it, for as long as that one is registered; against
a stranger also afterwards.  An enrolled relay takes it from strangers.  A stranger holds one only
once it is in PROBATION, so that nobody keeps others out by naming their addresses first.
"""

from collections.abc import Callable
from dataclasses import dataclass

from wavry_cp.app.refusal import RefusedError
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.relay_terms import Enrolment, RelayState

from .strangers import to_evict
from .table import KnownRelay, RelayTable

__all__ = ["KEPT", "Claim", "displaced_by"]

KEPT = frozenset({RelayState.BANNED, RelayState.DRAINING})
"""Recorded states that an operator ordered: a relay does not lose them by going away."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A relay that registers: its (canonical) endpoints and the network that it calls from."""

    relay_id: str
    is_stranger: bool
    endpoints: tuple[str, ...]
    network: str


def displaced_by(
    claim: Claim, table: RelayTable, state_of: Callable[[KnownRelay], RelayState]
) -> tuple[str, ...]:
    """Return the strangers that must go for a relay.

    Raises:
        RefusedError: ``endpoint_taken`` or ``too_many_strangers``.
    """
    gone = set()
    for endpoint in claim.endpoints:
        for holder in table.holders(endpoint):
            if holder.record.relay_id == claim.relay_id:
                continue
            if _holds(holder, state_of(holder), claim):
                who = "another relay" if claim.is_stranger else f"the relay {holder.record.name}"
                raise RefusedError(ErrorCode.ENDPOINT_TAKEN, f"{endpoint} is the address of {who}")
            if holder.record.is_stranger and not claim.is_stranger:
                gone.add(holder.record.relay_id)
    if claim.is_stranger and table.get(claim.relay_id) is None:
        kept = [r for r in table if r.record.is_stranger and r.record.state not in KEPT]
        evicted = to_evict(
            kept, claim.network, lambda relay: state_of(relay) is not RelayState.OFFLINE
        )
        if evicted is not None:
            gone.add(evicted)
    return tuple(sorted(gone))


def _holds(holder: KnownRelay, state: RelayState, claim: Claim) -> bool:
    if holder.record.is_stranger:
        return claim.is_stranger and state is RelayState.PROBATION
    if claim.is_stranger:
        return True
    if holder.record.token_hash is None or state is RelayState.BANNED:
        return False
    return holder.record.enrolment is not Enrolment.POOL or state is not RelayState.OFFLINE
