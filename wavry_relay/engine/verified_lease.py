"""A verified lease as a slot keeps it: keyed tags in place of names."""

from typing import Final

import msgspec

from wavry_peer.protocol import constants as c
from wavry_peer.protocol.lease import LeaseClaims, unix_ms
from wavry_peer.protocol.packets import Header, LeasePresent
from wavry_relay.shm.tags import Tags

__all__ = ["VerifiedLease", "tagged_lease"]

_U32: Final = 0xFFFFFFFF


class VerifiedLease(msgspec.Struct, frozen=True, gc=False):
    """Tags are `Tags.tag` (`kid`: `Tags.key_id`); `cnf` 0 is a bearer lease.

    `counter` is None for a bearer lease, and only then `datagram` is the packet's tag.
    """

    role: c.Role
    jti: int
    sub: int
    cnf: int
    kid: int
    issued_s: int
    counter: int | None
    datagram: int
    cookie: bytes
    expires_ms: int
    soft_kbps: int
    hard_kbps: int
    renews: bool


def tagged_lease(
    tags: Tags, header: Header, present: LeasePresent, claims: LeaseClaims, datagram: bytes
) -> VerifiedLease:
    """Return a lease that was verified as a slot keeps it; `datagram` is the whole packet."""
    proof, tag = present.proof, tags.tag
    key = None if claims.cnf is None else claims.proof_key
    jti, sub = tag(b"jti", claims.jti.encode()), tag(b"sub", claims.sub.encode())
    kid, renews = tags.key_id(claims.kid), header.type is c.PacketType.LEASE_RENEW
    if key is None or proof is None:
        cnf, counter, mark = 0, None, tag(b"datagram", datagram)
    else:
        cnf, counter, mark = tag(b"cnf", key) & _U32 or 1, proof.counter, 0
    return VerifiedLease(
        present.role,
        jti,
        sub,
        cnf,
        kid,
        claims.issued_s,
        counter,
        mark,
        c.NO_COOKIE if proof is None else proof.cookie,
        unix_ms(claims.exp),
        claims.slimit,
        claims.hlimit,
        renews,
    )
