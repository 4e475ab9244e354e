"""A lease as its holder reads it: is it ours, for how long, and what is its name.

A peer has no key to verify the signature with, and needs none: the gateway it trusts handed
the lease over, and the relay verifies.  What a peer does check is that the lease is *its own*,
bound to its key: one without a key, or the other side's, is never presented.
"""

import hmac
from dataclasses import dataclass, field
from typing import Final

import msgspec

from wavry_peer.errors import LeaseMismatchError
from wavry_peer.protocol import paseto
from wavry_peer.protocol.constants import MAX_TOKEN_BYTES, ROLE_NAMES, Role
from wavry_peer.protocol.lease import LeaseClaims, unix_ms

__all__ = ["OwnLease", "read_own_lease"]

_CLAIMS: Final = msgspec.json.Decoder(LeaseClaims)
_MS_NS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class OwnLease:
    """A lease that is ours.

    Attributes:
        token: what is presented.
        jti: its id, named when it is renewed.
        relay_id: the one relay it is good for.
        issued_ms: unix milliseconds by the master's clock.
        expires_ms: unix milliseconds by the master's clock.
        received_ns: own monotonic time when it was received.
    """

    token: bytes = field(repr=False)
    jti: str
    relay_id: str
    issued_ms: int
    expires_ms: int
    received_ns: int

    @property
    def lifetime_ns(self) -> int:
        """From issue to expiry."""
        return (self.expires_ms - self.issued_ms) * _MS_NS

    @property
    def expires_ns(self) -> int:
        """Expiry on our own monotonic clock.

        Counted from the receipt of a lease that was issued for us just then, so that a wrong
        wall clock on this machine does no harm.
        """
        return self.received_ns + self.lifetime_ns


def read_own_lease(
    token: str, *, session_id: bytes, role: Role, public_key: bytes, now_ns: int
) -> OwnLease:
    """Read a lease and check that it is ours.

    Args:
        token: as the gateway gave it.
        session_id: 16 bytes of the session it must be for.
        role: slot it must be for.
        public_key: 32 bytes, own Ed25519 key that it must be bound to.
        now_ns: monotonic time of its receipt.

    Raises:
        LeaseMismatchError: not a lease, or not ours.
    """
    try:
        raw = token.encode("ascii")
        claims = _CLAIMS.decode(paseto.parse(token).message)
        bound_to = b"" if claims.cnf is None else claims.proof_key
    except (paseto.PasetoError, msgspec.MsgspecError, ValueError) as error:
        raise LeaseMismatchError("what the gateway gave us is not a lease") from error
    if len(raw) > MAX_TOKEN_BYTES:
        raise LeaseMismatchError(f"the lease is over {MAX_TOKEN_BYTES} bytes")
    if claims.session_id != session_id:
        raise LeaseMismatchError("the lease is for another session")
    if claims.role != ROLE_NAMES[role]:
        raise LeaseMismatchError("the lease is for the other side of the session")
    if not hmac.compare_digest(bound_to, public_key):
        raise LeaseMismatchError("the lease is not bound to our key")
    if claims.rid is None:
        raise LeaseMismatchError("the lease names no relay")
    issued_ms = unix_ms(claims.iat)
    if claims.expires_ms <= issued_ms:
        raise LeaseMismatchError("the lease ends before it begins")
    return OwnLease(raw, claims.jti, claims.rid, issued_ms, claims.expires_ms, now_ns)
