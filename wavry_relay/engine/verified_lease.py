"""A verified lease as a slot keeps it: keyed tags in place of names."""

from typing import Final

import msgspec

from wavry_peer.protocol import constants as c
from wavry_peer.protocol.lease import LeaseClaims
from wavry_peer.protocol.packets import Header, LeasePresent, Proof
from wavry_relay.shm.tags import Tags

__all__ = ["VerifiedLease", "tagged_lease"]

_U32: Final = 0xFFFFFFFF


class VerifiedLease(msgspec.Struct, frozen=True, gc=False):
    """Tags are `Tags.tag` (`kid`: `Tags.key_id`); `counter` is the proof's.

    `proves`: its cookie is good at the packet's source; `size_bytes` of the packet.
    """

    role: c.Role
    jti: int
    sub: int
    cnf: int
    kid: int
    issued_s: int
    counter: int
    releases: bool
    proves: bool
    size_bytes: int
    expires_ms: int
    soft_kbps: int
    hard_kbps: int
    renews: bool


def tagged_lease(
    tags: Tags,
    header: Header,
    present: LeasePresent,
    claims: LeaseClaims,
    *,
    proof: Proof,
    proves: bool,
) -> VerifiedLease:
    """Return a lease that was verified as a slot keeps it."""
    tag = tags.tag
    return VerifiedLease(
        present.role,
        tag(b"jti", claims.jti.encode()),
        tag(b"sub", claims.sub.encode()),
        tag(b"cnf", claims.proof_key) & _U32 or 1,
        tags.key_id(claims.kid),
        claims.issued_s,
        proof.counter,
        proof.cookie == c.RELEASE_COOKIE,
        proves,
        len(present.signed_bytes) - len(c.PRESENT_SIGNATURE_LABEL) + c.SIGNATURE_BYTES,
        claims.expires_ms,
        claims.slimit,
        claims.hlimit,
        header.type is c.PacketType.LEASE_RENEW,
    )
