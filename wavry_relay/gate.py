"""The seam for refusals that do not depend on the lease itself: load, bans, revocations."""

from typing import Protocol

from wavry_peer.protocol.constants import RejectReason
from wavry_peer.protocol.errors import LeaseError
from wavry_peer.protocol.lease import LeaseClaims
from wavry_peer.protocol.packets import LeasePresent

from .address import Address
from .clock import Instant
from .revocation_view import RevocationView

__all__ = ["Gate", "OpenGate", "RelayGate"]


class Gate(Protocol):
    """Refusals that come from outside the lease: load, bans, revocations."""

    def wants_cookie(self) -> bool:
        """Whether load is so high that a peer must prove its path before its signature."""

    def check_source(self, source: Address, present: LeasePresent, now: Instant) -> None:
        """Before any signature is checked.

        Raises:
            LeaseError: BANNED.
        """

    def check_claims(self, claims: LeaseClaims, now: Instant) -> None:
        """After the checks of the lease itself, before its proof.

        Raises:
            LeaseError: REVOKED or BANNED.
        """


class OpenGate:
    """Refuses nothing."""

    def wants_cookie(self) -> bool:
        """Never under load."""
        return False

    def check_source(self, source: Address, present: LeasePresent, now: Instant) -> None:
        """Every source may ask."""

    def check_claims(self, claims: LeaseClaims, now: Instant) -> None:
        """No lease is revoked."""


class RelayGate:
    """Refuses what was revoked.

    Args:
        view: revocations of this worker.
    """

    def __init__(self, view: RevocationView) -> None:
        self._view = view

    def wants_cookie(self) -> bool:
        """Never under load."""
        return False

    def check_source(self, source: Address, present: LeasePresent, now: Instant) -> None:
        """Every source may ask."""

    def check_claims(self, claims: LeaseClaims, now: Instant) -> None:  # noqa: ARG002  # of the seam
        """Compare a lease with the revocations of this moment.

        Raises:
            LeaseError: REVOKED.
        """
        self._view.refresh()
        if self._view.hits_claims(claims):
            raise LeaseError(RejectReason.REVOKED, "lease, session, identity or key was revoked")
