"""Key files of the master.

The directory (mode 0700) holds ``root.key`` and ``signing-<kid>.key`` (base64url seeds, mode 0600)
and ``keys.json``, the root-signed public document.  The master needs the document and the signing
keys; ``root.key`` may be carried away to a safe place after `init_keys`, it is only needed to
change the document.  Nothing here ever makes a key except `init_keys`, which a person calls.
"""

import contextlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from wavry_peer.protocol import base64url, ed25519
from wavry_peer.protocol.errors import KeySetError, LocalError
from wavry_peer.protocol.keyset import (
    MAX_DOCUMENT_BYTES,
    KeySet,
    PublishedKey,
    decode_keyset,
    encode_keyset,
    key_id,
    sign_keyset,
)

__all__ = ["KeyFileError", "KeyRing", "KeysSummary", "init_keys", "load_keys"]

ROOT_FILE: Final = "root.key"
DOCUMENT_FILE: Final = "keys.json"
FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
_MAX_SEED_FILE_BYTES: Final = 256


class KeyFileError(LocalError):
    """A key file is missing, open to others, damaged, or would be overwritten."""


@dataclass(frozen=True, slots=True)
class KeysSummary:
    """What `init_keys` made; all of it is public.

    Attributes:
        directory: where the files are.
        root_public_key: base64url; relays pin it.
        key_id: of the signing key.
        serial: of the key-set document.
    """

    directory: Path
    root_public_key: str
    key_id: str
    serial: int


@dataclass(frozen=True, slots=True)
class KeyRing:
    """What the master signs with.

    Attributes:
        keyset: the published document, its root signature checked.
        document: its JSON.
        active_kid: key that signs new leases.
        signing_keys: key pairs by key id, the active one among them.
    """

    keyset: KeySet
    document: bytes
    active_kid: str
    signing_keys: dict[str, ed25519.SigningKey]

    @property
    def active(self) -> ed25519.SigningKey:
        """The key pair that signs new leases."""
        return self.signing_keys[self.active_kid]


def init_keys(directory: Path, *, now_s: int, random_bytes: Callable[[int], bytes]) -> KeysSummary:
    """Make a root key, one active signing key and the first key-set document.

    Args:
        directory: made with mode 0700 where missing; must not hold keys.
        now_s: unix seconds, written into the document.
        random_bytes: usually ``secrets.token_bytes``.

    Raises:
        KeyFileError: keys are there already, or a file cannot be written.
    """
    root = ed25519.SigningKey.from_seed(random_bytes(ed25519.SEED_BYTES))
    signing = ed25519.SigningKey.from_seed(random_bytes(ed25519.SEED_BYTES))
    kid = key_id(signing.public_key)
    published = PublishedKey(
        kid=kid,
        public_key=base64url.encode(signing.public_key),
        status="active",
        not_before=now_s,
    )
    document = sign_keyset([published], serial=1, issued_at=now_s, root=root)
    try:
        directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise KeyFileError(f"{directory}: {error.strerror}") from error
    _refuse_existing(directory)
    _check_mode(directory, _mode(directory), "chmod 700 it")
    _write_all(
        {
            directory / ROOT_FILE: _seed_text(root),
            directory / _signing_file(kid): _seed_text(signing),
            directory / DOCUMENT_FILE: encode_keyset(document) + b"\n",
        }
    )
    return KeysSummary(directory, document.root_public_key, kid, document.serial)


def load_keys(directory: Path) -> KeyRing:
    """Read and check what `init_keys` (or a rotation) left.

    Raises:
        KeyFileError: the directory holds no keys, a file is open to others or damaged, the key
            files do not fit the document, or no key of it is active.
    """
    path = directory / DOCUMENT_FILE
    if not _exists(path):
        raise KeyFileError(
            f"no keys in {directory}: make them once with "
            f"`wavryctl keys init --keys-dir {directory}`"
        )
    _check_mode(directory, _mode(directory), "chmod 700 it")
    document = _read_private(path, MAX_DOCUMENT_BYTES)
    keyset = _check_document(path, document)
    root_path = directory / ROOT_FILE
    if _exists(root_path):
        root = _read_seed(root_path)
        if base64url.encode(root.public_key) != keyset.root_public_key:
            raise KeyFileError(f"{root_path} is not the root key that signed {path}")
    signing_keys: dict[str, ed25519.SigningKey] = {}
    for key in keyset.keys:
        key_path = directory / _signing_file(key.kid)
        if key.status == "revoked" or not _exists(key_path):
            continue
        signing_key = _read_seed(key_path)
        if base64url.encode(signing_key.public_key) != key.public_key:
            raise KeyFileError(f"{key_path} does not hold the key that {path} publishes")
        signing_keys[key.kid] = signing_key
    active = [key.kid for key in keyset.keys if key.status == "active"]
    if len(active) != 1:
        raise KeyFileError(f"{path} must name exactly one active key, it names {len(active)}")
    if active[0] not in signing_keys:
        raise KeyFileError(f"{directory / _signing_file(active[0])} is missing: restore a backup")
    return KeyRing(keyset, document.strip(), active[0], signing_keys)


def _check_document(path: Path, raw: bytes) -> KeySet:
    """Check the document against the root that it names: finds damage (relays pin the root)."""
    try:
        claimed = msgspec.json.decode(raw, type=KeySet)
        root_public_key = base64url.decode(claimed.root_public_key, size=ed25519.PUBLIC_KEY_BYTES)
        return decode_keyset(raw, root_public_key=root_public_key)
    except (KeySetError, msgspec.MsgspecError, ValueError) as error:
        raise KeyFileError(f"{path} is damaged ({error}): restore a backup") from error


def _signing_file(kid: str) -> str:
    return f"signing-{kid}.key"


def _seed_text(key: ed25519.SigningKey) -> bytes:
    return base64url.encode(key.seed).encode() + b"\n"


def _refuse_existing(directory: Path) -> None:
    for name in (ROOT_FILE, DOCUMENT_FILE):
        if _exists(directory / name):
            raise KeyFileError(
                f"{directory / name} exists: keys are made once, and never overwritten; "
                "choose an empty directory"
            )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from error


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from error


def _write_all(files: dict[Path, bytes]) -> None:
    """Write every file or none: a lone root key would block the next try."""
    begun: list[Path] = []
    try:
        for path, content in files.items():
            _write_new(path, content, begun)
    except KeyFileError:
        for path in begun:
            with contextlib.suppress(OSError):
                path.unlink()
        raise


def _write_new(path: Path, content: bytes, begun: list[Path]) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
        begun.append(path)  # From here on the file is ours to remove.
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from error


def _check_mode(path: Path, mode: int, remedy: str) -> None:
    if stat.S_IMODE(mode) & 0o077:
        raise KeyFileError(f"{path} is open to others (mode {stat.S_IMODE(mode):04o}): {remedy}")


def _read_private(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            _check_mode(path, os.fstat(file.fileno()).st_mode, "chmod 600 it")
            return file.read(max_bytes + 1)
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from error


def _read_seed(path: Path) -> ed25519.SigningKey:
    raw = _read_private(path, _MAX_SEED_FILE_BYTES)
    try:
        seed = base64url.decode(raw.strip().decode("ascii"), size=ed25519.SEED_BYTES)
    except ValueError:
        # `from None`: the cause may quote what it could not read.
        raise KeyFileError(f"{path} holds no key: restore a backup") from None
    return ed25519.SigningKey.from_seed(seed)
