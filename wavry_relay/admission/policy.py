"""The seam for refusals that do not depend on the lease itself: load, bans, revocations."""

from typing import Protocol

from wavry_peer.protocol.constants import RejectReason
from wavry_peer.protocol.errors import LeaseError
from wavry_peer.protocol.lease import LeaseClaims
from wavry_peer.service.clock import Instant
from wavry_relay.shm.address import Address
from wavry_relay.shm.blocks import Blocks

from .revocation_view import RevocationView
from .verify_load import VerifyLoad

__all__ = ["AdmissionPolicy", "OpenPolicy", "RelayPolicy"]


class AdmissionPolicy(Protocol):
    """Refusals that come from outside the lease: load, bans, revocations."""

    def wants_cookie(self, now: Instant) -> bool:
        """Return whether load is so high that a peer must prove its path before its signature.

        Asked once for each lease that comes.
        """

    def check_source(self, source: Address, now: Instant) -> None:
        """Refuse a source, before a signature is checked or anything else is answered.

        Raises:
            LeaseError: BANNED.
        """

    def check_claims(self, claims: LeaseClaims, now: Instant) -> None:
        """Refuse claims, after the checks of the lease itself and before its proof.

        Raises:
            LeaseError: REVOKED or BANNED.
        """


class OpenPolicy:
    """Refuses nothing."""

    def wants_cookie(self, now: Instant) -> bool:  # noqa: ARG002  # of the seam
        """Return False: never under load."""
        return False

    def check_source(self, source: Address, now: Instant) -> None:
        """Let every source ask."""

    def check_claims(self, claims: LeaseClaims, now: Instant) -> None:
        """Let every lease pass: none is revoked."""


class RelayPolicy:
    """Refuses what was revoked or blocked, and wants cookies under load.

    Args:
        view: revocations of this worker.
        blocks: blocked hosts; without them none is.
        load: of this worker; without it no cookie is ever wanted.
    """

    def __init__(
        self,
        view: RevocationView,
        blocks: Blocks | None = None,
        load: VerifyLoad | None = None,
    ) -> None:
        self._view = view
        self._blocks = blocks
        self._load = load

    def step(self, now: Instant) -> None:
        """Look at the load where nothing comes."""
        if self._load is not None:
            self._load.step(now)

    def wants_cookie(self, now: Instant) -> bool:
        """Count a lease that came; whether there are too many."""
        return self._load is not None and self._load.count(now)

    def check_source(self, source: Address, now: Instant) -> None:
        """Look for a block of the source's host.

        Raises:
            LeaseError: BANNED.
        """
        if self._blocks is not None and self._blocks.has(source, now.wall_ms):
            raise LeaseError(RejectReason.BANNED, "the address is blocked")

    def check_claims(self, claims: LeaseClaims, now: Instant) -> None:  # noqa: ARG002  # of the seam
        """Compare a lease with the revocations of this moment.

        Raises:
            LeaseError: REVOKED.
        """
        self._view.refresh()
        if self._view.hits_claims(claims):
            raise LeaseError(RejectReason.REVOKED, "lease, session, identity or key was revoked")
