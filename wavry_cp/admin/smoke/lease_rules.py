"""What a lease that a user was handed must say."""

import time
from collections.abc import Mapping
from typing import Final

import msgspec

from wavry_peer.protocol import base64url, paseto
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.errors import KeySetError, LeaseError
from wavry_peer.protocol.http.api import Credentials
from wavry_peer.protocol.keyset import KeySet, decode_keyset, trusted_keys
from wavry_peer.protocol.lease import KeyId, LeaseClaims, TrustedKey, open_lease

from .report import StepFailedError

__all__ = ["check_credentials", "published_keys"]

CLOCK_TOLERANCE_S: Final = c.NOT_BEFORE_SKEW_S
_CLAIMS: Final = msgspec.json.Decoder(LeaseClaims)


def published_keys(document: bytes) -> Mapping[KeyId, TrustedKey]:
    """Return the keys of the document that the master publishes, whichever root it names.

    The relays pin the root; here it is only asked whether leases fit what is published.

    Raises:
        StepFailedError: it is no key-set document, or not signed by the root that it names.
    """
    try:
        named = msgspec.json.decode(document, type=KeySet).root_public_key
        root = base64url.decode(named, size=32)
        return trusted_keys(decode_keyset(document, root_public_key=root))
    except (msgspec.MsgspecError, ValueError, KeySetError) as error:
        raise StepFailedError(f"the master's key-set document does not fit: {error}") from error


def check_credentials(
    own: Credentials,
    *,
    username: str,
    role: c.Role,
    session_id: str,
    identity_key: str,
    keys: Mapping[KeyId, TrustedKey] | None,
) -> LeaseClaims:
    """Check the lease of one user against what it was asked for.

    Args:
        own: what the user was handed.
        username: of the user.
        role: caller is client.
        session_id: of the call.
        identity_key: that the lease must be bound to.
        keys: published ones, to check the signature with; None leaves that out.

    Raises:
        StepFailedError: what does not fit.
    """
    try:
        if keys is None:
            claims = _CLAIMS.decode(paseto.parse(own.token).message)
        else:
            claims = open_lease(own.token.encode(), keys)
    except (LeaseError, paseto.PasetoError, msgspec.MsgspecError) as error:
        raise StepFailedError(f"the lease of {username} does not verify: {error}") from error
    now_s = time.time()
    lifetime_s = (claims.exp - claims.iat).total_seconds()
    wrong = [
        name
        for name, fits in (
            ("sub", claims.sub == username),
            ("role", claims.role == own.role == c.ROLE_NAMES[role]),
            ("sid", claims.sid == own.session_id == session_id),
            ("rid", claims.rid == own.relay_id),
            ("cnf", claims.cnf == identity_key),
            ("exp", int(claims.exp.timestamp()) == own.expires_at),
            ("lifetime", c.LEASE_TTL_MIN_S <= lifetime_s <= c.LEASE_TTL_MAX_S),
            ("active key", keys is None or keys[KeyId(claims.kid)].status == "active"),
        )
        if not fits
    ]
    if wrong:
        raise StepFailedError(f"the lease of {username} is wrong in: {', '.join(wrong)}")
    skew_s = claims.iat.timestamp() - now_s
    if abs(skew_s) > CLOCK_TOLERANCE_S:
        raise StepFailedError(
            f"the lease of {username} was issued {skew_s:+.0f} s from now by this machine's clock",
            "set the clocks; `wavryctl doctor` says whose is off",
        )
    return claims
