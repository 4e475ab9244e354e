"""The file of a backup: an encrypted stream with a head that says how, and a checksum.

::

    "WAVRYBAK" · version u8 · head length u32 · head (JSON) · stream header 24 ·
    chunks of 65 536 + 17 bytes, the last one shorter · SHA-256 of all before it

The chunks are libsodium's secretstream (XChaCha20-Poly1305): each is authenticated in its order,
and the last one says that it is the last, so that a file that was cut or altered is noticed before
anything of it is used.  The head is authenticated with every chunk.  Its key comes from a
passphrase (Argon2id), or is sealed for the X25519 key of a recipient, who need not be at hand.  The
checksum needs no secret: it tells damage from a wrong passphrase.
"""

import functools
import hashlib
import hmac
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, Literal, Self

import msgspec
import nacl.bindings as sodium
import nacl.exceptions
from nacl.public import PrivateKey, PublicKey, SealedBox
from nacl.pwhash import argon2id

from wavry_peer.protocol import base64url
from wavry_peer.protocol.errors import LocalError

__all__ = [
    "BackupFileError",
    "SealedReader",
    "SealedWriter",
    "Secret",
    "new_identity",
    "parse_recipient",
    "recipient_of",
]

MAGIC: Final = b"WAVRYBAK"
VERSION: Final = 1
CHUNK_BYTES: Final = 65_536
_LENGTHS: Final = struct.Struct(">BI")
_MAX_HEAD_BYTES: Final = 4096
_DIGEST_BYTES: Final = 32
_STREAM_HEADER_BYTES: Final = sodium.crypto_secretstream_xchacha20poly1305_HEADERBYTES
_SEALED_BYTES: Final = CHUNK_BYTES + sodium.crypto_secretstream_xchacha20poly1305_ABYTES
_FINAL: Final = sodium.crypto_secretstream_xchacha20poly1305_TAG_FINAL
_MESSAGE: Final = sodium.crypto_secretstream_xchacha20poly1305_TAG_MESSAGE
_MAX_MEMORY_BYTES: Final = 1 << 30
_MAX_PASSES: Final = 16
"""What a file may demand for its passphrase: it may be a stranger's."""
_RECIPIENT_PREFIX: Final = "wavrybak-"
_CHECK_BYTES: Final = 4


class BackupFileError(LocalError):
    """A backup cannot be read: damaged, another format, or not this secret's."""


class _Head(msgspec.Struct, frozen=True):
    method: Literal["passphrase", "recipient"]
    salt: str = ""
    passes: int = 0
    memory_bytes: int = 0
    recipient: str = ""
    sealed_key: str = ""


@dataclass(frozen=True, slots=True)
class Secret:
    """What opens a backup: a passphrase, or the private half of a recipient's key."""

    passphrase: str | None = None
    identity: PrivateKey | None = None

    def __repr__(self) -> str:
        """Tell the kind only."""
        return f"Secret({'passphrase' if self.identity is None else 'identity'})"


def new_identity() -> tuple[PrivateKey, str]:
    """Make a recipient's key pair: the private half, and the public one as people write it."""
    identity = PrivateKey.generate()
    return identity, recipient_of(identity.public_key)


def recipient_of(public: PublicKey) -> str:
    """Return a public key as people write it, with a few bytes against slips of the hand."""
    raw = bytes(public)
    return _RECIPIENT_PREFIX + base64url.encode(raw + hashlib.sha256(raw).digest()[:_CHECK_BYTES])


def parse_recipient(text: str) -> PublicKey:
    """Read what `recipient_of` wrote.

    Raises:
        LocalError: it has another form, or a character of it is wrong.
    """
    try:
        raw = base64url.decode(
            text.removeprefix(_RECIPIENT_PREFIX), size=PublicKey.SIZE + _CHECK_BYTES
        )
    except ValueError:
        raw = b""
    key, check = raw[: PublicKey.SIZE], raw[PublicKey.SIZE :]
    if (
        not text.startswith(_RECIPIENT_PREFIX)
        or hashlib.sha256(key).digest()[:_CHECK_BYTES] != check
    ):
        raise LocalError(
            "this is no recipient: `wavryctl backup keygen` prints one, all of it must be given"
        )
    return PublicKey(key)


class SealedWriter:
    """Writes one backup into an open file; `close` ends it and is due."""

    def __init__(self, file: BinaryIO, passphrase: str | None, recipient: PublicKey | None) -> None:
        """Begin; one of `passphrase` and `recipient` is given."""
        head, key = _new_head(passphrase, recipient)
        raw = msgspec.json.encode(head)
        self._file = file
        self._digest = hashlib.sha256()
        self._waiting = bytearray()
        self._state = sodium.crypto_secretstream_xchacha20poly1305_state()
        stream_header = sodium.crypto_secretstream_xchacha20poly1305_init_push(self._state, key)
        before = MAGIC + _LENGTHS.pack(VERSION, len(raw)) + raw
        self._bound = hashlib.sha256(before).digest()
        self._put(before + stream_header)

    def write(self, content: bytes) -> None:
        """Add bytes."""
        self._waiting += content
        while len(self._waiting) > CHUNK_BYTES:  # The last chunk is never known before `close`.
            self._seal(bytes(self._waiting[:CHUNK_BYTES]), _MESSAGE)
            del self._waiting[:CHUNK_BYTES]

    def close(self) -> None:
        """Write what waits and the checksum; the file stays open."""
        self._seal(bytes(self._waiting), _FINAL)
        self._file.write(self._digest.digest())

    def _seal(self, plain: bytes, tag: int) -> None:
        self._put(
            sodium.crypto_secretstream_xchacha20poly1305_push(self._state, plain, self._bound, tag)
        )

    def _put(self, raw: bytes) -> None:
        self._digest.update(raw)
        self._file.write(raw)


class SealedReader:
    """Reads one backup; made by `open`, which has checked the whole file against its checksum."""

    def __init__(
        self,
        file: BinaryIO,
        state: sodium.crypto_secretstream_xchacha20poly1305_state,
        bound: bytes,
        left: int,
    ) -> None:
        self._file = file
        self._state = state
        self._bound = bound
        self._left = left

    @classmethod
    def open(cls, file: BinaryIO, ask_secret: Callable[[str], Secret]) -> Self:
        """Check the file and find its key.

        Args:
            file: open, at its beginning.
            ask_secret: called with the method, ``"passphrase"`` or ``"recipient"``.

        Raises:
            BackupFileError: no backup, a newer one, damaged; the secret is tried by `chunks`.
        """
        size = os.fstat(file.fileno()).st_size
        start = file.read(len(MAGIC) + _LENGTHS.size)
        if len(start) < len(MAGIC) + _LENGTHS.size or not start.startswith(MAGIC):
            raise BackupFileError("this is no backup of Wavry")
        version, head_bytes = _LENGTHS.unpack_from(start, len(MAGIC))
        if version > VERSION:
            raise BackupFileError(
                f"this backup has format {version}, and this version reads up to {VERSION}: use "
                "the version that made it, or a newer one"
            )
        _check_digest(file, size)
        file.seek(len(start))
        raw = file.read(min(head_bytes, _MAX_HEAD_BYTES))
        stream_header = file.read(_STREAM_HEADER_BYTES)
        try:
            head = msgspec.json.decode(raw, type=_Head)
            key = _key_of(head, ask_secret)
            state = sodium.crypto_secretstream_xchacha20poly1305_state()
            sodium.crypto_secretstream_xchacha20poly1305_init_pull(state, stream_header, key)
        except (msgspec.MsgspecError, nacl.exceptions.CryptoError, ValueError) as error:
            raise BackupFileError("the head of this backup cannot be read") from error
        return cls(
            file, state, hashlib.sha256(start + raw).digest(), size - file.tell() - _DIGEST_BYTES
        )

    def chunks(self) -> Iterator[bytes]:
        """Give the content, up to 64 KiB at a time.

        Raises:
            BackupFileError: the secret is not this backup's, or somebody altered the file.
        """
        tag = _MESSAGE
        while self._left > 0:
            raw = self._file.read(min(_SEALED_BYTES, self._left))
            self._left -= len(raw) or self._left
            try:
                plain, tag = sodium.crypto_secretstream_xchacha20poly1305_pull(
                    self._state, raw, self._bound
                )
            except (nacl.exceptions.CryptoError, ValueError):
                raise BackupFileError(
                    "the passphrase or key is not the one of this backup, or somebody altered it"
                ) from None
            if tag == _FINAL and self._left > 0:
                break
            yield plain
        if tag != _FINAL or self._left > 0:
            raise BackupFileError("this backup is cut off, or something was put behind it")


def _new_head(passphrase: str | None, recipient: PublicKey | None) -> tuple[_Head, bytes]:
    if recipient is not None:
        key = sodium.crypto_secretstream_xchacha20poly1305_keygen()
        sealed = SealedBox(recipient).encrypt(key)
        return _Head(
            "recipient", recipient=recipient_of(recipient), sealed_key=base64url.encode(sealed)
        ), key
    if passphrase is None:
        raise LocalError("a backup needs a passphrase or a recipient")
    salt = os.urandom(argon2id.SALTBYTES)
    head = _Head(
        "passphrase",
        salt=base64url.encode(salt),
        passes=argon2id.OPSLIMIT_MODERATE,
        memory_bytes=argon2id.MEMLIMIT_MODERATE,
    )
    return head, _stretched(passphrase, head)


def _key_of(head: _Head, ask_secret: Callable[[str], Secret]) -> bytes:
    secret = ask_secret(head.method)
    if head.method == "passphrase":
        if secret.passphrase is None:
            raise BackupFileError("this backup is for a passphrase: give --passphrase-file FILE")
        if not (head.passes <= _MAX_PASSES and head.memory_bytes <= _MAX_MEMORY_BYTES):
            raise BackupFileError("this backup demands more memory than any of ours")
        return _stretched(secret.passphrase, head)
    if secret.identity is None:
        raise BackupFileError(
            f"this backup is for {head.recipient}: give --identity-file FILE with its private half"
        )
    try:
        return SealedBox(secret.identity).decrypt(base64url.decode(head.sealed_key))
    except nacl.exceptions.CryptoError:
        raise BackupFileError(
            f"this backup is for {head.recipient}, not for the given key"
        ) from None


@functools.lru_cache(maxsize=1)  # A restore reads the file twice; this takes a second.
def _stretched(passphrase: str, head: _Head) -> bytes:
    return argon2id.kdf(
        sodium.crypto_secretstream_xchacha20poly1305_KEYBYTES,
        passphrase.encode(),
        base64url.decode(head.salt),
        opslimit=head.passes,
        memlimit=head.memory_bytes,
    )


def _check_digest(file: BinaryIO, size: int) -> None:
    file.seek(0)
    digest, left = hashlib.sha256(), size - _DIGEST_BYTES
    while left > 0:
        block = file.read(min(1 << 20, left))
        if not block:
            break
        digest.update(block)
        left -= len(block)
    if not hmac.compare_digest(digest.digest(), file.read(_DIGEST_BYTES)):
        raise BackupFileError("this backup is damaged or cut off: its checksum is wrong")
