"""Who a peer is: an Ed25519 key that its leases are bound to, an X25519 key for the channel.

Both are made once and kept in one file, so that a peer is the same after each start: others
pin the channel's key on first use.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import msgspec

from wavry_peer.errors import PrivateFileError
from wavry_peer.protocol import base64url
from wavry_peer.protocol.channel.noise import KEY_BYTES, KeyPair
from wavry_peer.protocol.ed25519 import SEED_BYTES, SigningKey

from .private_files import create_private, read_private

__all__ = [
    "HOME_VARIABLE",
    "IDENTITY_FILE",
    "Identity",
    "default_home",
    "fingerprint",
    "load_identity",
]

HOME_VARIABLE: Final = "WAVRY_PEER_HOME"
IDENTITY_FILE: Final = "identity.json"


@dataclass(frozen=True, slots=True)
class Identity:
    """The two key pairs of a peer; `repr` never shows a secret.

    Attributes:
        signing: Ed25519; signs LEASE_PRESENT and LEASE_RENEW.
        noise: X25519; the static key of every end-to-end channel.
    """

    signing: SigningKey
    noise: KeyPair

    @classmethod
    def generate(cls, random_bytes: Callable[[int], bytes] = os.urandom) -> Self:
        """Make a new identity that is stored nowhere."""
        return cls(
            SigningKey.from_seed(random_bytes(SEED_BYTES)),
            KeyPair.from_private(random_bytes(KEY_BYTES)),
        )

    @property
    def identity_key(self) -> str:
        """Public Ed25519 key as signaling writes it."""
        return base64url.encode(self.signing.public_key)

    @property
    def noise_key(self) -> str:
        """Public X25519 key as signaling writes it."""
        return base64url.encode(self.noise.public)


class _IdentityFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    identity_seed: str
    noise_private: str


def default_home(environ: Mapping[str, str] | None = None) -> Path:
    """Return ``WAVRY_PEER_HOME``, or ``~/.config/wavry`` (``$XDG_CONFIG_HOME/wavry`` where set)."""
    variables = os.environ if environ is None else environ
    if home := variables.get(HOME_VARIABLE):
        return Path(home).expanduser()
    if config := variables.get("XDG_CONFIG_HOME"):
        return Path(config) / "wavry"
    return Path("~/.config/wavry").expanduser()


def load_identity(home: Path, random_bytes: Callable[[int], bytes] = os.urandom) -> Identity:
    """Read the identity of this user, or make it on first use.

    Args:
        home: directory of the peer's files.
        random_bytes: for a new identity.

    Raises:
        PrivateFileError: the file is open to others, damaged, or cannot be written.  It is
            never replaced: a new identity would look like an attack to everyone who
            pinned the old one.
    """
    path = home / IDENTITY_FILE
    content = read_private(path)
    if content is None:
        create_private(path, _encode(Identity.generate(random_bytes)))
        # Read again even if we made it: of two processes that start at once, both must end up
        # with the one file that won.
        content = read_private(path)
    try:
        stored = msgspec.json.decode(content or b"", type=_IdentityFile)
        if stored.version != 1:
            raise PrivateFileError(f"{path} was written by a later version of wavry")
        return Identity(
            SigningKey.from_seed(base64url.decode(stored.identity_seed, size=SEED_BYTES)),
            KeyPair.from_private(base64url.decode(stored.noise_private, size=KEY_BYTES)),
        )
    except (msgspec.MsgspecError, ValueError):
        # Without the cause: its text could quote a piece of the key.
        raise PrivateFileError(
            f"{path} is damaged; restore it from a backup, or move it away to get a new "
            "identity (others will have to forget the old one)"
        ) from None


def fingerprint(public_key: bytes) -> str:
    """Return a public key for people to compare: 16 groups of 4 hex digits (SHA-256)."""
    digest = hashlib.sha256(b"wavry-fingerprint-v1" + public_key).hexdigest()
    return ":".join(digest[at : at + 4] for at in range(0, 64, 4))


def _encode(identity: Identity) -> bytes:
    return msgspec.json.format(
        msgspec.json.encode(
            _IdentityFile(
                1,
                base64url.encode(identity.signing.seed),
                base64url.encode(identity.noise.private),
            )
        )
    )
