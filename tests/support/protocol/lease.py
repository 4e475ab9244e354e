"""One set of keys and one good lease, to be changed in one place by a test."""

from typing import Any, Final

import msgspec

from wavry_peer.protocol import base64url, lease, paseto
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.ed25519 import SigningKey
from wavry_peer.protocol.lease import KeyId, LeaseClaims, RelayId, TrustedKey
from wavry_peer.protocol.packets import SessionId

NOW_S: Final = 1_750_000_000
NOW_MS: Final = NOW_S * 1000
SIGNING: Final = SigningKey.from_seed(b"s" * 32)
STRANGER: Final = SigningKey.from_seed(b"x" * 32)
PEER: Final = SigningKey.from_seed(b"p" * 32)
KID: Final = KeyId("kid-1")
RID: Final = RelayId("rly-1")
SID_TEXT: Final = "11111111-2222-3333-4444-555555555555"
SID: Final = SessionId(bytes.fromhex(SID_TEXT.replace("-", "")))
OTHER_SID: Final = SessionId(b"\x77" * 16)
KEYS: Final = {KID: TrustedKey(SIGNING.public_key)}
PEER_CNF: Final = base64url.encode(PEER.public_key)


def make_claims(**changes: Any) -> LeaseClaims:
    wanted: dict[str, Any] = {
        "jti": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
        "sub": "alice",
        "sid": SID_TEXT,
        "role": c.Role.CLIENT,
        "rid": RID,
        "kid": KID,
        "now_s": NOW_S,
        "ttl_s": 300,
        "soft_kbps": 50_000,
        "hard_kbps": 100_000,
        "cnf": PEER_CNF,
    }
    return lease.make_claims(**{**wanted, **changes})


def claims_dict(**changes: Any) -> dict[str, Any]:
    """Claims as JSON values; a change to None takes the claim away."""
    values: dict[str, Any] = msgspec.to_builtins(make_claims())
    values.update(changes)
    return {name: value for name, value in values.items() if value is not None}


def sign_json(
    claims: bytes | dict[str, Any], *, kid: str = KID, key: SigningKey = SIGNING
) -> bytes:
    """Token over any bytes, as a master that makes mistakes would sign it."""
    message = claims if isinstance(claims, bytes) else msgspec.json.encode(claims)
    return paseto.sign(message, key, footer=msgspec.json.encode({"kid": kid})).encode()
