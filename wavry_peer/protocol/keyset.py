"""Key-set document: signing keys, serial, root signature (protocol: trust and keys).

The offline root key signs the document; a relay pins the root's public key and refuses a
document with a lower serial than one it has seen.  The signature covers the PASETO
pre-authentication encoding of the fields, so that no JSON canonical form is needed:
PAE(label, serial, issued_at, kid₁, public_key₁, status₁, not_before₁, not_after₁, …), numbers as
decimal text.
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec

from . import base64url, ed25519
from .errors import KeySetError
from .lease import KeyId, Name, PublicKeyText, RelayId, TrustedKey
from .paseto import pre_authentication_encoding
from .redaction import fault_text

__all__ = [
    "KeySet",
    "PublishedKey",
    "decode_keyset",
    "encode_keyset",
    "key_id",
    "relay_id",
    "sign_keyset",
    "trusted_keys",
]

LABEL: Final = b"wavry-keyset-v1"
MAX_KEYS: Final = 16
"""A rotation needs three keys at a time; 16 leaves room for emergencies and bounds the memory
that a document can ask for."""
MAX_DOCUMENT_BYTES: Final = 16 * 1024

UnixSeconds = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Serial = Annotated[int, msgspec.Meta(ge=1, le=2**53)]


class PublishedKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One signing key; `not_before` and `not_after` are unix seconds (0 = no end)."""

    kid: Name
    public_key: PublicKeyText
    status: Literal["pending", "active", "retiring", "revoked"]
    not_before: UnixSeconds = 0
    not_after: UnixSeconds = 0


class KeySet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The document of ``/.well-known/wavry-keys.json``."""

    serial: Serial
    issued_at: UnixSeconds
    keys: Annotated[tuple[PublishedKey, ...], msgspec.Meta(max_length=MAX_KEYS)]
    root_public_key: PublicKeyText
    signature: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{86}\Z")]


_DECODER: Final = msgspec.json.Decoder(KeySet)


def key_id(public_key: bytes) -> KeyId:
    """Key id of a signing key: 16 hex digits of BLAKE2b over the public key."""
    return KeyId(hashlib.blake2b(public_key, digest_size=8, person=b"wavry-kid").hexdigest())


def relay_id(public_key: bytes) -> RelayId:
    """Id of a relay, derived from its 32-byte public key.

    It survives restarts, and nobody without the key can take it.
    """
    digest = hashlib.blake2b(public_key, digest_size=12, person=b"wavry-relay").hexdigest()
    return RelayId(f"rly-{digest}")


def _signed_bytes(serial: int, issued_at: int, keys: Sequence[PublishedKey]) -> bytes:
    pieces = [LABEL, str(serial).encode(), str(issued_at).encode()]
    for key in keys:
        pieces += (
            key.kid.encode(),
            key.public_key.encode(),
            key.status.encode(),
            str(key.not_before).encode(),
            str(key.not_after).encode(),
        )
    return pre_authentication_encoding(*pieces)


def sign_keyset(
    keys: Sequence[PublishedKey], *, serial: int, issued_at: int, root: ed25519.SigningKey
) -> KeySet:
    """Make a document signed by the root key; `issued_at` in unix seconds."""
    return KeySet(
        serial=serial,
        issued_at=issued_at,
        keys=tuple(keys),
        root_public_key=base64url.encode(root.public_key),
        signature=base64url.encode(root.sign(_signed_bytes(serial, issued_at, keys))),
    )


def encode_keyset(keyset: KeySet) -> bytes:
    """JSON of a document."""
    return msgspec.json.encode(keyset)


def decode_keyset(raw: bytes, *, root_public_key: bytes, min_serial: int = 0) -> KeySet:
    """Read a document and check it against the pinned root.

    Args:
        raw: JSON, at most 16 KiB.
        root_public_key: 32 bytes, pinned by configuration, never taken from the document.
        min_serial: highest serial seen so far; the same serial is accepted again.

    Raises:
        KeySetError: shape, another root, signature, doubled key id, or a lower serial.
    """
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise KeySetError("key-set document is over 16 KiB")
    try:
        keyset = _DECODER.decode(raw)
        signature = base64url.decode(keyset.signature, size=ed25519.SIGNATURE_BYTES)
        root = base64url.decode(keyset.root_public_key, size=ed25519.PUBLIC_KEY_BYTES)
        for key in keyset.keys:
            base64url.decode(key.public_key, size=ed25519.PUBLIC_KEY_BYTES)
    except msgspec.ValidationError as error:
        raise KeySetError(f"key-set document does not fit: {fault_text(error)}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise KeySetError("key-set document is not valid JSON") from error
    except ValueError as error:
        raise KeySetError(f"key-set document does not fit: {error}") from error
    if root != root_public_key:
        raise KeySetError("key set is signed by another root than the pinned one")
    signed = _signed_bytes(keyset.serial, keyset.issued_at, keyset.keys)
    if not ed25519.verify(root_public_key, signed, signature):
        raise KeySetError("root signature of the key set does not verify")
    if len({key.kid for key in keyset.keys}) != len(keyset.keys):
        raise KeySetError("key set names a key id twice")
    if keyset.serial < min_serial:
        raise KeySetError(f"key set has serial {keyset.serial}, below {min_serial} seen before")
    return keyset


def trusted_keys(keyset: KeySet) -> dict[KeyId, TrustedKey]:
    """Keys of a checked document in the form that `lease.open_lease` takes."""
    return {
        KeyId(key.kid): TrustedKey(base64url.decode(key.public_key), key.status)
        for key in keyset.keys
    }
