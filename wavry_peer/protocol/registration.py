"""What a relay signs to prove its key at registration."""

from typing import Final

from .ed25519 import SigningKey, verify

__all__ = ["sign_challenge", "verify_challenge"]

_LABEL: Final = b"wavry-relay-register-v1"


def sign_challenge(key: SigningKey, challenge: bytes) -> bytes:
    """Sign the master's 32-byte challenge with the relay's identity; 64 bytes."""
    return key.sign(_LABEL + challenge)


def verify_challenge(public_key: bytes, challenge: bytes, signature: bytes) -> bool:
    """Return True where the relay with `public_key` signed `challenge`."""
    return verify(public_key, _LABEL + challenge, signature)
