"""Keys of other users, pinned on first use, as SSH does with hosts.

The gateway names each user's channel key.  It is believed once; from then on the gateway
cannot put itself (or anybody) between two peers that have met before.
"""

import hmac
from pathlib import Path
from typing import Final, Self

import msgspec

from wavry_peer.errors import PeerKeyChangedError, PrivateFileError
from wavry_peer.protocol import base64url

from .identity import fingerprint
from .private_files import locked, read_private, write_private

__all__ = ["KnownPeers"]

KNOWN_PEERS_FILE: Final = "known_peers.json"


class _KnownPeersFile(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    gateways: dict[str, dict[str, str]]


class KnownPeers:
    """Pinned keys by gateway and user name.

    Args:
        path: file to keep them in, or None to keep them in memory only.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._memory: dict[str, dict[str, str]] = {}

    @classmethod
    def in_home(cls, home: Path) -> Self:
        """Return the pins of this user."""
        return cls(home / KNOWN_PEERS_FILE)

    def pinned(self, gateway_url: str, username: str) -> bytes | None:
        """Return the 32-byte key pinned for a user, or None.

        Raises:
            PrivateFileError: the file is open to others or damaged.
        """
        text = self._read().get(gateway_url, {}).get(username)
        return None if text is None else self._decode(text)

    def check(self, gateway_url: str, username: str, noise_key: bytes) -> None:
        """Refuse a key that is not the pinned one; a user without a pin passes.

        Raises:
            PeerKeyChangedError: another key is pinned.
            PrivateFileError: the file is open to others or damaged.
        """
        known = self.pinned(gateway_url, username)
        if known is not None and not hmac.compare_digest(known, noise_key):
            raise PeerKeyChangedError(username, fingerprint(known), fingerprint(noise_key))

    def pin(self, gateway_url: str, username: str, noise_key: bytes) -> None:
        """Pin a key that the user has proved to hold; the same key again changes nothing.

        Raises:
            PeerKeyChangedError: another key is pinned.
            PrivateFileError: the file cannot be read or written.
        """
        if self._path is None:
            self.check(gateway_url, username, noise_key)
            self._memory.setdefault(gateway_url, {})[username] = base64url.encode(noise_key)
            return
        with locked(self._path):
            self.check(gateway_url, username, noise_key)
            gateways = self._read()
            pins = gateways.setdefault(gateway_url, {})
            if username not in pins:
                pins[username] = base64url.encode(noise_key)
                self._write(gateways)

    def forget(self, gateway_url: str, username: str) -> bool:
        """Remove a pin; False if there was none.

        Raises:
            PrivateFileError: the file cannot be read or written.
        """
        if self._path is None:
            return self._memory.get(gateway_url, {}).pop(username, None) is not None
        with locked(self._path):
            gateways = self._read()
            if gateways.get(gateway_url, {}).pop(username, None) is None:
                return False
            self._write(gateways)
            return True

    def _read(self) -> dict[str, dict[str, str]]:
        if self._path is None:
            return self._memory
        content = read_private(self._path)
        if content is None:
            return {}
        try:
            return msgspec.json.decode(content, type=_KnownPeersFile).gateways
        except msgspec.MsgspecError as error:
            raise self._damaged() from error

    def _write(self, gateways: dict[str, dict[str, str]]) -> None:
        if self._path is not None:
            content = msgspec.json.encode(_KnownPeersFile(1, gateways))
            write_private(self._path, msgspec.json.format(content))

    def _decode(self, text: str) -> bytes:
        try:
            return base64url.decode(text, size=32)
        except ValueError as error:
            raise self._damaged() from error

    def _damaged(self) -> PrivateFileError:
        return PrivateFileError(
            f"{self._path} is damaged; restore it, or remove it to trust every user anew"
        )
