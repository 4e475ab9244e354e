"""Ed25519 keys as bytes: one narrow door to libsodium for every signature of the project."""

from dataclasses import dataclass, field
from typing import Self

import msgspec
from nacl import bindings
from nacl.exceptions import CryptoError

from .errors import LocalError

__all__ = [
    "PUBLIC_KEY_BYTES",
    "SEED_BYTES",
    "SIGNATURE_BYTES",
    "SignatureCheck",
    "SigningKey",
    "verify",
]

PUBLIC_KEY_BYTES = 32
SEED_BYTES = 32
SIGNATURE_BYTES = 64


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An Ed25519 key pair; `repr` never shows the secret.

    Attributes:
        public_key: 32 bytes.
        secret_key: 64 bytes, seed and public key (libsodium form).
    """

    public_key: bytes
    secret_key: bytes = field(repr=False)

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """Make the key pair of a 32-byte seed (randomness is the caller's).

        Raises:
            LocalError: the seed has not 32 bytes.
        """
        if len(seed) != SEED_BYTES:
            raise LocalError("Ed25519 seed must have 32 bytes")
        public, secret = bindings.crypto_sign_seed_keypair(seed)
        return cls(public, secret)

    @property
    def seed(self) -> bytes:
        """The 32 bytes to keep in a key file."""
        return self.secret_key[:SEED_BYTES]

    def sign(self, message: bytes) -> bytes:
        """Return a signature, 64 bytes."""
        return bindings.crypto_sign(message, self.secret_key)[:SIGNATURE_BYTES]


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Return True where `signature` (64 bytes) of `message` was made by `public_key` (32 bytes)."""
    if len(public_key) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        bindings.crypto_sign_open(signature + message, public_key)
    except CryptoError:
        return False
    return True


class SignatureCheck(msgspec.Struct, frozen=True, gc=False):
    """A check that is still to be made: who asks for it may go on later.

    Attributes:
        public_key: 32 bytes.
        message: what was signed.
        signature: 64 bytes.
    """

    public_key: bytes
    message: bytes
    signature: bytes

    def holds(self) -> bool:
        """Make it."""
        return verify(self.public_key, self.message, self.signature)
