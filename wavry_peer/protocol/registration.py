"""What a relay signs to prove its key at registration.

The signature covers the challenge, the master that it is meant for and the endpoints that the relay
advertises, each with its length: a master that got one cannot use it at another master, and nobody
on the way can put other addresses under it.  The master is named by its root public key, which the
relay has pinned and does not believe from the wire.
"""

from collections.abc import Sequence
from typing import Final

from .ed25519 import SigningKey, verify
from .paseto import pre_authentication_encoding

__all__ = ["sign_registration", "verify_registration"]

_LABEL: Final = b"wavry-relay-register-v2"


def sign_registration(
    key: SigningKey, challenge: bytes, master_id: bytes, endpoints: Sequence[str]
) -> bytes:
    """Sign a registration with the relay's identity; 64 bytes.

    Args:
        key: of the relay.
        challenge: 32 bytes of the master.
        master_id: root public key of the master, 32 bytes.
        endpoints: as the registration names them, in that order.
    """
    return key.sign(_signed_bytes(challenge, master_id, endpoints))


def verify_registration(
    public_key: bytes,
    signature: bytes,
    challenge: bytes,
    master_id: bytes,
    endpoints: Sequence[str],
) -> bool:
    """Return True where the relay with `public_key` signed all this."""
    return verify(public_key, _signed_bytes(challenge, master_id, endpoints), signature)


def _signed_bytes(challenge: bytes, master_id: bytes, endpoints: Sequence[str]) -> bytes:
    pieces = (endpoint.encode() for endpoint in endpoints)
    return pre_authentication_encoding(_LABEL, challenge, master_id, *pieces)
