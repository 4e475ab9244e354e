"""The keys that a running master signs with; a change swaps them whole."""

import asyncio
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Self

from wavry_peer.protocol import base64url, ed25519
from wavry_peer.protocol.keyset import KeySet, PublishedKey, key_id

from . import files as keys
from .files import SigningKeyRing

__all__ = ["LiveKeys"]


class LiveKeys:
    """The present `SigningKeyRing`, read from anywhere, changed by `KeyDesk` only.

    Args:
        directory: of the key files.
        ring: what `load_keys` read there.
        random_bytes: source of new keys.
    """

    def __init__(
        self,
        directory: Path,
        ring: SigningKeyRing,
        *,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._directory = directory
        self._random_bytes = random_bytes
        self.ring = ring
        self.forced_kids: set[str] = set()
        """Keys that were activated although live relays lacked them, by order of an operator."""

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Load the directory, and finish what a crash cut off.

        Raises:
            KeyFileError: see `load_keys`.
        """
        keys.load_keys(directory)  # A clear refusal first: nothing is tidied in a damaged place.
        keys.tidy(directory)
        return cls(directory, keys.load_keys(directory))

    @property
    def keyset(self) -> KeySet:
        """The published document."""
        return self.ring.keyset

    @property
    def document(self) -> bytes:
        """Its JSON."""
        return self.ring.document

    @property
    def active_kid(self) -> str:
        """Key that signs new leases."""
        return self.ring.active_kid

    @property
    def active(self) -> ed25519.SigningKey:
        """Its key pair."""
        return self.ring.active

    @property
    def signing_keys(self) -> dict[str, ed25519.SigningKey]:
        """Key pairs by key id."""
        return self.ring.signing_keys

    @property
    def is_forced(self) -> bool:
        """Whether the active key signs also for relays that lack it."""
        return self.active_kid in self.forced_kids

    def active_age_s(self, now_s: int) -> int:
        """Return the seconds since the active key began to sign."""
        begun = next(key.not_before for key in self.keyset.keys if key.kid == self.active_kid)
        return max(0, now_s - begun)

    def active_end_s(self, lifetime_s: int) -> int:
        """Return unix seconds at which the planned life of the active key is over; it signs on."""
        key = next(key for key in self.keyset.keys if key.kid == self.active_kid)
        return key.not_after or key.not_before + lifetime_s

    def retiring_end_s(self) -> int:
        """Return when (unix s) the first retiring key has no valid lease left, 0 without one."""
        ends = [key.not_after for key in self.keyset.keys if key.status == "retiring"]
        return min(ends, default=0)

    def root(self) -> ed25519.SigningKey | None:
        """Return the root key, where it lies beside the others; raises `KeyFileError`."""
        return keys.read_root(self._directory, self.keyset)

    def next_root(self) -> ed25519.SigningKey:
        """Return the root key to rotate to, on disk; raises `KeyFileError`."""
        return keys.waiting_root(self._directory, self._random_bytes)

    def next_key(self) -> PublishedKey:
        """Return the signing key to create, its private half on disk; raises `KeyFileError`."""
        pair = keys.waiting_key(self._directory, self.keyset, self._random_bytes)
        return PublishedKey(
            kid=key_id(pair.public_key),
            public_key=base64url.encode(pair.public_key),
            status="pending",
        )

    async def publish(self, keyset: KeySet) -> None:
        """Make a checked document the present one: on disk first, then here.

        Raises:
            KeyFileError: the disk does not take it; the keys in use stay.
        """
        self.ring = await asyncio.to_thread(keys.change_document, self._directory, keyset)
