"""Leases: claims, signing, and the checks that need no memory (protocol: leases).

A relay asks in this order, cheapest first, and the first "no" names the one reason:
token shape → `kid` known → signature (`open_lease`) → `rid` → `sid`, `role` → `nbf`, `exp`,
horizon (`check_claims`) → key not revoked (`check_key`) → proof of possession (`check_proof`).
Who checks many leases at once takes `begin_lease` and `finish_lease`, and `proof_check`, instead:
they leave the signatures, which are nearly all of the work, to the caller.
What needs memory (per-IP limit, ban, revoked, replay, identity limit, capacity, identity lock) is
the relay's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Final, NewType

import msgspec

from . import base64url, ed25519, paseto
from . import constants as c
from .errors import LeaseError
from .packets import LeasePresent, Proof, SessionId

__all__ = [
    "IdentityName",
    "KeyId",
    "KeyStatus",
    "LeaseClaims",
    "LeaseId",
    "RelayId",
    "TrustedKey",
    "UnopenedLease",
    "begin_lease",
    "check_claims",
    "check_key",
    "check_proof",
    "finish_lease",
    "make_claims",
    "open_lease",
    "proof_check",
    "require_proof",
    "sign_lease",
    "unix_ms",
]

KeyId = NewType("KeyId", str)
RelayId = NewType("RelayId", str)
LeaseId = NewType("LeaseId", str)
IdentityName = NewType("IdentityName", str)
KeyStatus = str
"""``pending``, ``active``, ``retiring`` or ``revoked``."""

ISSUER: Final = "wavry-master"
MAX_KBPS: Final = 2**32 - 1

Uuid = Annotated[
    str,
    msgspec.Meta(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z"),
]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Instant = Annotated[datetime, msgspec.Meta(tz=True)]
Kbps = Annotated[int, msgspec.Meta(ge=0, le=MAX_KBPS)]
_RequestId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9-]{8,24}\Z")]
PublicKeyText = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{43}\Z")]
_ProofKeyText = Annotated[str, msgspec.Meta(min_length=43, max_length=43)]
"""A `PublicKeyText` whose alphabet is looked at where it is decoded: once for each lease."""


@lru_cache(maxsize=256)
def _public_key(text: str) -> bytes:
    """Return the bytes of `cnf`; remembered, as one presented lease asks for them three times."""
    return base64url.decode(text, size=32)


class LeaseClaims(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Claims of a lease.  Limits are kbit/s; instants carry a time zone.

    Claims that this version does not know are ignored, as registered claims may grow.
    `req` is the id of the request that the lease was issued for: for the logs, it decides nothing.
    `rid` and `cnf` are optional here because a lease without them gets the answers WRONG_RELAY and
    PROOF_REQUIRED.
    """

    iss: Name
    iat: Instant
    nbf: Instant
    exp: Instant
    jti: Uuid
    sub: Name
    sid: Uuid
    role: str
    rid: Name | None = None
    kid: Name
    slimit: Kbps
    hlimit: Kbps
    cnf: _ProofKeyText | None = None
    iat_rfc3339: str | None = None
    nbf_rfc3339: str | None = None
    exp_rfc3339: str | None = None
    req: _RequestId | None = None

    @property
    def expires_ms(self) -> int:
        """`exp` in unix milliseconds, rounded down."""
        return unix_ms(self.exp)

    @property
    def issued_s(self) -> int:
        """`iat` in unix seconds, rounded down, never below 0."""
        return max(0, unix_ms(self.iat) // 1000)

    @property
    def session_id(self) -> SessionId:
        """`sid` as 16 bytes."""
        return SessionId(bytes.fromhex(self.sid.replace("-", "")))

    @property
    def proof_key(self) -> bytes:
        """`cnf` as 32 bytes.

        Raises:
            ValueError: there is none, or it is not canonical base64url.
        """
        return _public_key(self.cnf or "")


class _Footer(msgspec.Struct, frozen=True):
    kid: Name


@lru_cache(maxsize=64)
def _key_id(footer: bytes) -> KeyId:
    """Return the key id that a footer names; remembered, as few keys sign all leases."""
    return KeyId(_FOOTER_DECODER.decode(footer).kid)


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A signing key that a relay holds: 32 bytes of public key and its status."""

    public_key: bytes
    status: KeyStatus = "active"


_CLAIMS_DECODER: Final = msgspec.json.Decoder(LeaseClaims)
_FOOTER_DECODER: Final = msgspec.json.Decoder(_Footer)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def unix_ms(instant: datetime) -> int:
    """Return unix milliseconds of an instant with a time zone, rounded down, without floats."""
    delta = instant - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1000 + delta.microseconds // 1000


def _bad(message: str) -> LeaseError:
    return LeaseError(c.RejectReason.INVALID_SIGNATURE, message)


def make_claims(
    *,
    jti: str,
    sub: str,
    sid: str,
    role: c.Role,
    rid: str,
    kid: str,
    now_s: int,
    ttl_s: int,
    soft_kbps: int,
    hard_kbps: int,
    cnf: str,
    issuer: str = ISSUER,
    request_id: str = "",
) -> LeaseClaims:
    """Return the claims of a new lease good from `now_s` (unix seconds) for `ttl_s` seconds."""
    issued = datetime.fromtimestamp(now_s, UTC)
    expires = datetime.fromtimestamp(now_s + ttl_s, UTC)
    issued_text = issued.isoformat().replace("+00:00", "Z")
    return LeaseClaims(
        iss=issuer,
        iat=issued,
        nbf=issued,
        exp=expires,
        jti=jti,
        sub=sub,
        sid=sid,
        role=c.ROLE_NAMES[role],
        rid=rid,
        kid=kid,
        slimit=soft_kbps,
        hlimit=hard_kbps,
        cnf=cnf,
        iat_rfc3339=issued_text,
        nbf_rfc3339=issued_text,
        exp_rfc3339=expires.isoformat().replace("+00:00", "Z"),
        req=request_id or None,
    )


def sign_lease(claims: LeaseClaims, key: ed25519.SigningKey) -> str:
    """Sign claims; the footer carries the key id.

    Raises:
        LeaseError: the token would be over 1100 bytes.
    """
    footer = msgspec.json.encode(_Footer(claims.kid))
    token = paseto.sign(msgspec.json.encode(claims), key, footer=footer)
    if len(token) > c.MAX_TOKEN_BYTES:
        raise _bad(f"token has {len(token)} bytes, at most {c.MAX_TOKEN_BYTES} are allowed")
    return token


def _proof_key(claims: LeaseClaims) -> bytes:
    try:
        return claims.proof_key
    except ValueError as error:
        raise _bad(f"cnf is {error}") from error


class UnopenedLease(msgspec.Struct, frozen=True, gc=False):
    """A token of the right shape under a known key; nothing of it may be believed yet.

    `payload` is not in `repr`: it may never become credible.
    """

    kid: KeyId
    payload: bytes
    signature: ed25519.SignatureCheck

    def __repr__(self) -> str:
        return f"UnopenedLease(kid={self.kid!r})"


def begin_lease(token: bytes, keys: Mapping[KeyId, TrustedKey]) -> UnopenedLease:
    """Check shape and key id of a token.

    Args:
        token: as it came in LEASE_PRESENT.
        keys: the relay's key set.  A `pending` key verifies too: the master may activate it
            before this relay hears of that, and no valid lease may be rejected.  A `revoked` one
            verifies as well: whether it counts is asked behind the claims, by `check_key`.

    Raises:
        LeaseError: INVALID_SIGNATURE (shape) or UNKNOWN_KEY.
    """
    if len(token) > c.MAX_TOKEN_BYTES:
        raise _bad(f"token has {len(token)} bytes, at most {c.MAX_TOKEN_BYTES} are allowed")
    try:
        parts = paseto.parse_ascii(token)
        kid = _key_id(parts.footer)
    except (paseto.PasetoError, UnicodeDecodeError, msgspec.MsgspecError, RecursionError) as error:
        raise _bad("token has not the shape of a lease") from error
    key = keys.get(kid)
    if key is None:
        raise LeaseError(c.RejectReason.UNKNOWN_KEY, "signing key is not in the key set")
    return UnopenedLease(kid, parts.message, paseto.signature_check(parts, key.public_key))


def finish_lease(unopened: UnopenedLease, *, signature_holds: bool) -> LeaseClaims:
    """Return the claims of a token whose signature was checked.

    Raises:
        LeaseError: INVALID_SIGNATURE (signature or claims).
    """
    if not signature_holds:
        raise _bad("signature does not verify")
    try:
        claims = _CLAIMS_DECODER.decode(unopened.payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _bad("claims do not fit") from error
    if claims.kid != unopened.kid:
        raise _bad("kid of claims and footer differ")
    if claims.cnf is not None:
        _proof_key(claims)
    return claims


def open_lease(token: bytes, keys: Mapping[KeyId, TrustedKey]) -> LeaseClaims:
    """Check shape, key id and signature of a token; see `begin_lease` for the arguments.

    Raises:
        LeaseError: INVALID_SIGNATURE (shape, claims or signature) or UNKNOWN_KEY.
    """
    unopened = begin_lease(token, keys)
    return finish_lease(unopened, signature_holds=unopened.signature.holds())


def check_claims(
    claims: LeaseClaims,
    *,
    relay_id: RelayId,
    session_id: SessionId,
    role: c.Role,
    now_ms: int,
    skew_s: int = c.NOT_BEFORE_SKEW_S,
) -> None:
    """Check that a verified lease is good here, for this packet, now.

    Args:
        claims: from `open_lease`.
        relay_id: of this relay.
        session_id: from the packet's header.
        role: from the packet.
        now_ms: wall clock, unix milliseconds.
        skew_s: tolerance for `nbf`; there is none for `exp`.

    Raises:
        LeaseError: WRONG_RELAY, INVALID_SIGNATURE (sid, role, horizon), NOT_YET_VALID or
            EXPIRED, in this order.
    """
    if claims.rid != relay_id:
        raise LeaseError(c.RejectReason.WRONG_RELAY, "lease is for another relay")
    if claims.session_id != session_id:
        raise _bad("sid is not the packet's session id")
    if claims.role != c.ROLE_NAMES[role]:
        raise _bad("role is not the packet's role")
    if unix_ms(claims.nbf) > now_ms + skew_s * 1000:
        raise LeaseError(c.RejectReason.NOT_YET_VALID, "nbf is ahead; check both clocks")
    expires_ms = unix_ms(claims.exp)
    if expires_ms <= now_ms:
        raise LeaseError(c.RejectReason.EXPIRED, "exp has passed")
    if expires_ms > now_ms + c.LEASE_HORIZON_S * 1000:
        raise _bad("exp is further ahead than one hour")


def check_key(claims: LeaseClaims, keys: Mapping[KeyId, TrustedKey]) -> None:
    """Check that the key of a verified lease is not revoked.

    Only now, behind the signature and the claims: a forger learns nothing about keys, and a lease
    that is wrong in itself is told so.

    Raises:
        LeaseError: REVOKED.
    """
    key = keys.get(KeyId(claims.kid))
    if key is None or key.status == "revoked":
        raise LeaseError(c.RejectReason.REVOKED, "signing key was revoked")


def proof_check(claims: LeaseClaims, present: LeasePresent) -> tuple[Proof, ed25519.SignatureCheck]:
    """Return the proof of possession and the check that it needs.

    Raises:
        LeaseError: PROOF_REQUIRED: there is no proof, or no key in the lease that it could be by.
    """
    proof = present.proof
    if proof is None or claims.cnf is None:
        raise LeaseError(c.RejectReason.PROOF_REQUIRED, "no proof, or no key that it could be by")
    key = _proof_key(claims)
    return proof, ed25519.SignatureCheck(key, present.signed_bytes, proof.signature)


def require_proof(*, holds: bool) -> None:
    """Refuse a proof that does not hold.

    Raises:
        LeaseError: PROOF_REQUIRED.
    """
    if not holds:
        raise LeaseError(c.RejectReason.PROOF_REQUIRED, "proof is not by the lease's key")


def check_proof(claims: LeaseClaims, present: LeasePresent) -> None:
    """Check the proof of possession of the lease's key.

    Raises:
        LeaseError: PROOF_REQUIRED: missing, or not by the `cnf` key.
    """
    require_proof(holds=proof_check(claims, present)[1].holds())
