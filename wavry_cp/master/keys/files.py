"""Key files of the master.

The directory (mode 0700) holds ``root.key`` and ``signing-<kid>.key`` (base64url seeds, mode 0600)
and ``keys.json``, the root-signed public document.  The master needs the document and the signing
keys; ``root.key`` may be carried away to a safe place after `init_keys`, it is only needed to
change the document.  Nothing makes a key but `init_keys` and a rotation, which a person calls.

The document decides.  A change writes the keys that the next document needs under a name for keys
that wait (``new-<kid>.key``, ``root.next.key``), then replaces the document in one step, then gives
the keys their names and removes what is named no more.  So the directory loads whenever the change
is cut off, as the old document or the new one, and the same change can be made again.
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

__all__ = [
    "KeyFileError",
    "KeysSummary",
    "SigningKeyRing",
    "change_document",
    "init_keys",
    "load_keys",
    "read_root",
    "read_seed",
    "tidy",
    "waiting_key",
    "waiting_root",
    "write_private",
    "write_seed",
]

ROOT_FILE: Final = "root.key"
NEXT_ROOT_FILE: Final = "root.next.key"
DOCUMENT_FILE: Final = "keys.json"
FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
_MAX_SEED_FILE_BYTES: Final = 256
_PARTIAL_SUFFIX: Final = ".tmp"


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
class SigningKeyRing:
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


def load_keys(directory: Path) -> SigningKeyRing:
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
    read_root(directory, keyset)
    signing_keys: dict[str, ed25519.SigningKey] = {}
    for key in keyset.keys:
        key_path = directory / _signing_file(key.kid)
        if not _exists(key_path):
            key_path = directory / _waiting_file(key.kid)
        if key.status == "revoked" or not _exists(key_path):
            continue
        signing_key = read_seed(key_path)
        if base64url.encode(signing_key.public_key) != key.public_key:
            raise KeyFileError(f"{key_path} does not hold the key that {path} publishes")
        signing_keys[key.kid] = signing_key
    active = [key.kid for key in keyset.keys if key.status == "active"]
    if len(active) != 1:
        raise KeyFileError(f"{path} must name exactly one active key, it names {len(active)}")
    if active[0] not in signing_keys:
        raise KeyFileError(f"{directory / _signing_file(active[0])} is missing: restore a backup")
    return SigningKeyRing(keyset, document.strip(), active[0], signing_keys)


def read_root(directory: Path, keyset: KeySet) -> ed25519.SigningKey | None:
    """Return the root key that signed a document, or None where it was carried away.

    After a change of root that was cut off it has still the name of the next one.

    Raises:
        KeyFileError: its file is open to others, damaged, or another key.
    """
    path = directory / ROOT_FILE
    for name in (ROOT_FILE, NEXT_ROOT_FILE):
        if _exists(directory / name):
            root = read_seed(directory / name)
            if base64url.encode(root.public_key) == keyset.root_public_key:
                return root
    if _exists(path):
        raise KeyFileError(f"{path} is not the root key that signed {directory / DOCUMENT_FILE}")
    return None


def waiting_key(
    directory: Path, keyset: KeySet, random_bytes: Callable[[int], bytes]
) -> ed25519.SigningKey:
    """Return the key pair of the next signing key, on disk before any document can name it.

    One that waits since a change was cut off is used again.

    Raises:
        KeyFileError: a file cannot be read or written.
    """
    published = {key.kid for key in keyset.keys}
    for path in sorted(directory.glob(_waiting_file("*"))):
        key = read_seed(path)
        if path.name == _waiting_file(key_id(key.public_key)) and (
            key_id(key.public_key) not in published
        ):
            return key
    key = ed25519.SigningKey.from_seed(random_bytes(ed25519.SEED_BYTES))
    write_private(directory / _waiting_file(key_id(key.public_key)), _seed_text(key))
    return key


def waiting_root(directory: Path, random_bytes: Callable[[int], bytes]) -> ed25519.SigningKey:
    """Return the next root key, on disk before any document is signed by it; see `waiting_key`."""
    path = directory / NEXT_ROOT_FILE
    if _exists(path):
        return read_seed(path)
    root = ed25519.SigningKey.from_seed(random_bytes(ed25519.SEED_BYTES))
    write_private(path, _seed_text(root))
    return root


def change_document(directory: Path, keyset: KeySet) -> SigningKeyRing:
    """Put a checked document in the place of the one before; the new ring.

    Raises:
        KeyFileError: it cannot be written, or the keys that it needs are not here; then the
            document before is in use still.
    """
    for key in keyset.keys:
        here = _exists(directory / _signing_file(key.kid)) or _exists(
            directory / _waiting_file(key.kid)
        )
        if key.status == "active" and not here:
            raise KeyFileError(f"the private key of {key.kid} is not in {directory}")
    write_private(directory / DOCUMENT_FILE, encode_keyset(keyset) + b"\n")
    tidy(directory, delete=True)
    return load_keys(directory)


def tidy(directory: Path, *, delete: bool = False) -> None:
    """Bring the names of the key files in line with the document, after a change or a crash.

    Args:
        directory: of the key files.
        delete: remove the private keys that the document does not name any more, or that it
            revokes: nobody shall sign with them again.  Only right after a change; at a start the
            document may be an old backup, and what looks superfluous the newest key.

    Raises:
        KeyFileError: the document is damaged, or a file cannot be renamed or removed.
    """
    document = directory / DOCUMENT_FILE
    keyset = _check_document(document, _read_private(document, MAX_DOCUMENT_BYTES))
    usable = {key.kid for key in keyset.keys if key.status != "revoked"}
    try:
        for path in sorted(directory.iterdir()):
            name = path.name
            if name.startswith(".") and name.endswith(_PARTIAL_SUFFIX):
                path.unlink()
            elif name.startswith("new-") and name[len("new-") : -len(".key")] in usable:
                path.replace(directory / _signing_file(name[len("new-") : -len(".key")]))
            elif (
                delete
                and name.startswith("signing-")
                and name.endswith(".key")
                and name[len("signing-") : -len(".key")] not in usable
            ):
                path.unlink()
        following = directory / NEXT_ROOT_FILE
        if _exists(following) and (
            base64url.encode(read_seed(following).public_key) == keyset.root_public_key
        ):
            following.replace(directory / ROOT_FILE)
        _sync_directory(directory)
    except OSError as error:
        raise KeyFileError(f"{error.filename or directory}: {error.strerror}") from error


def write_private(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 so that it is there whole or not at all, also after power loss.

    Raises:
        KeyFileError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}{_PARTIAL_SUFFIX}")
    try:
        partial.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(partial, flags, FILE_MODE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from error


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def _waiting_file(kid: str) -> str:
    return f"new-{kid}.key"


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


def read_seed(path: Path) -> ed25519.SigningKey:
    """Return a key pair from a file of mode 0600 with its base64url seed.

    Raises:
        KeyFileError: the file is missing, open to others, or holds no key.
    """
    raw = _read_private(path, _MAX_SEED_FILE_BYTES)
    try:
        seed = base64url.decode(raw.strip().decode("ascii"), size=ed25519.SEED_BYTES)
    except ValueError:
        # `from None`: the cause may quote what it could not read.
        raise KeyFileError(f"{path} holds no key: restore a backup") from None
    return ed25519.SigningKey.from_seed(seed)


def write_seed(path: Path, key: ed25519.SigningKey) -> None:
    """Write the seed of a key pair with mode 0600; raises `KeyFileError`."""
    write_private(path, _seed_text(key))
