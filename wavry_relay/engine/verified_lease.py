"""A verified lease as a slot keeps it: keyed tags in place of names."""

from typing import Final

import msgspec

from wavry_peer.protocol import constants as c
from wavry_peer.protocol.lease import LeaseClaims
from wavry_peer.protocol.packets import Header, Proof
from wavry_relay.shm.tags import Tags

__all__ = ["VerifiedLease", "tagged_lease"]

_U32: Final = 0xFFFFFFFF


class VerifiedLease(msgspec.Struct, frozen=True, gc=False):
    """Tags are `Tags.tag` (`kid`: `Tags.key_id`); `counter` is the proof's."""

    role: c.Role
    jti: int
    sub: int
    cnf: int
    kid: int
    issued_s: int
    counter: int
    cookie: bytes
    expires_ms: int
    soft_kbps: int
    hard_kbps: int
    renews: bool


def tagged_lease(
    tags: Tags, header: Header, role: c.Role, proof: Proof, claims: LeaseClaims
) -> VerifiedLease:
    """Return a lease that was verified as a slot keeps it."""
    tag = tags.tag
    return VerifiedLease(
        role,
        tag(b"jti", claims.jti.encode()),
        tag(b"sub", claims.sub.encode()),
        tag(b"cnf", claims.proof_key) & _U32 or 1,
        tags.key_id(claims.kid),
        claims.issued_s,
        proof.counter,
        proof.cookie,
        claims.expires_ms,
        claims.slimit,
        claims.hlimit,
        header.type is c.PacketType.LEASE_RENEW,
    )
