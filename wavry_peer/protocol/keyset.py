"""Key-set document: signing keys, serial, root signature (protocol: trust and keys).

The offline root key signs the document; a relay pins the root's public key and refuses a
document with a lower serial than one it has seen.  The signature covers the PASETO
pre-authentication encoding of the fields, so that no JSON canonical form is needed:
PAE(label, serial, issued_at, kid₁, public_key₁, status₁, not_before₁, not_after₁, …), numbers as
decimal text.

A root gives way to the next one by a link: PAE(label, old, new, issued_at) signed by the old root.
The document carries the links since the first root, so a relay that pins any of them finds the way
from its pin to the root that signs today.  The links need no other signature: each is good by
itself, and whoever cuts them off can only make a relay refuse the document.
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
    "RootLink",
    "decode_keyset",
    "encode_keyset",
    "key_id",
    "link_root",
    "relay_id",
    "sign_keyset",
    "trusted_keys",
]

LABEL: Final = b"wavry-keyset-v1"
ROOT_LABEL: Final = b"wavry-root-v1"
MAX_ROOT_LINKS: Final = 16
"""One root a year for 16 years in 4 KiB; relays that pin an older one need its successor."""
MAX_KEYS: Final = 16
"""A rotation needs three keys at a time; 16 leaves room for emergencies and bounds the memory
that a document can ask for."""
MAX_DOCUMENT_BYTES: Final = 16 * 1024

UnixSeconds = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Serial = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
SignatureText = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{86}\Z")]


class PublishedKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One signing key; `not_before` and `not_after` are unix seconds (0 = no end)."""

    kid: Name
    public_key: PublicKeyText
    status: Literal["pending", "active", "retiring", "revoked"]
    not_before: UnixSeconds = 0
    not_after: UnixSeconds = 0


class RootLink(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`previous` says that `public_key` is the root after it; `issued_at` in unix seconds."""

    previous: PublicKeyText
    public_key: PublicKeyText
    issued_at: UnixSeconds
    signature: SignatureText


class KeySet(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The document of ``/.well-known/wavry-keys.json``; `root_chain` oldest link first."""

    serial: Serial
    issued_at: UnixSeconds
    keys: Annotated[tuple[PublishedKey, ...], msgspec.Meta(max_length=MAX_KEYS)]
    root_public_key: PublicKeyText
    signature: SignatureText
    root_chain: Annotated[tuple[RootLink, ...], msgspec.Meta(max_length=MAX_ROOT_LINKS)] = ()


_DECODER: Final = msgspec.json.Decoder(KeySet)


def key_id(public_key: bytes) -> KeyId:
    """Return the key id of a signing key: 16 hex digits of BLAKE2b over the public key."""
    return KeyId(hashlib.blake2b(public_key, digest_size=8, person=b"wavry-kid").hexdigest())


def relay_id(public_key: bytes) -> RelayId:
    """Return the id of a relay, derived from its 32-byte public key.

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


def _link_bytes(previous: str, public_key: str, issued_at: int) -> bytes:
    return pre_authentication_encoding(
        ROOT_LABEL, previous.encode(), public_key.encode(), str(issued_at).encode()
    )


def link_root(old: ed25519.SigningKey, new_public_key: bytes, *, issued_at: int) -> RootLink:
    """Make the link by which a root names its successor; `issued_at` in unix seconds."""
    previous, following = base64url.encode(old.public_key), base64url.encode(new_public_key)
    signature = old.sign(_link_bytes(previous, following, issued_at))
    return RootLink(
        previous=previous,
        public_key=following,
        issued_at=issued_at,
        signature=base64url.encode(signature),
    )


def sign_keyset(
    keys: Sequence[PublishedKey],
    *,
    serial: int,
    issued_at: int,
    root: ed25519.SigningKey,
    root_chain: Sequence[RootLink] = (),
) -> KeySet:
    """Make a document signed by the root key; `issued_at` in unix seconds."""
    return KeySet(
        serial=serial,
        issued_at=issued_at,
        keys=tuple(keys),
        root_public_key=base64url.encode(root.public_key),
        signature=base64url.encode(root.sign(_signed_bytes(serial, issued_at, keys))),
        root_chain=tuple(root_chain),
    )


def encode_keyset(keyset: KeySet) -> bytes:
    """Return the JSON of a document."""
    return msgspec.json.encode(keyset)


def decode_keyset(raw: bytes, *, root_public_key: bytes, min_serial: int = 0) -> KeySet:
    """Read a document and check it against the pinned root.

    Args:
        raw: JSON, at most 16 KiB.
        root_public_key: 32 bytes, pinned by configuration, never taken from the document: the
            root that signs it, or one from which the document's chain leads there.
        min_serial: highest serial seen so far; the same serial is accepted again.

    Raises:
        KeySetError: shape, another root, a broken chain, signature, doubled key id, or a lower
            serial.
    """
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise KeySetError("key-set document is over 16 KiB")
    try:
        keyset = _DECODER.decode(raw)
        signature = base64url.decode(keyset.signature, size=ed25519.SIGNATURE_BYTES)
        root = base64url.decode(keyset.root_public_key, size=ed25519.PUBLIC_KEY_BYTES)
        for key in keyset.keys:
            base64url.decode(key.public_key, size=ed25519.PUBLIC_KEY_BYTES)
        for link in keyset.root_chain:
            base64url.decode(link.public_key, size=ed25519.PUBLIC_KEY_BYTES)
    except msgspec.ValidationError as error:
        raise KeySetError(f"key-set document does not fit: {fault_text(error)}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise KeySetError("key-set document is not valid JSON") from error
    except ValueError as error:
        raise KeySetError(f"key-set document does not fit: {error}") from error
    if root != root_public_key:
        _follow_chain(keyset, root_public_key)
    signed = _signed_bytes(keyset.serial, keyset.issued_at, keyset.keys)
    if not ed25519.verify(root, signed, signature):
        raise KeySetError("root signature of the key set does not verify")
    if len({key.kid for key in keyset.keys}) != len(keyset.keys):
        raise KeySetError("key set names a key id twice")
    if keyset.serial < min_serial:
        raise KeySetError(f"key set has serial {keyset.serial}, below {min_serial} seen before")
    return keyset


def _follow_chain(keyset: KeySet, pinned: bytes) -> None:
    """Go from the pinned root to the document's, checking each link on the way.

    Raises:
        KeySetError: no way, or a link of it does not verify.
    """
    at = base64url.encode(pinned)
    begun = False
    for link in keyset.root_chain:
        if not begun and link.previous != at:
            continue  # Before our pin: no business of ours.
        begun = True
        signed = _link_bytes(link.previous, link.public_key, link.issued_at)
        try:
            signature = base64url.decode(link.signature, size=ed25519.SIGNATURE_BYTES)
        except ValueError as error:
            raise KeySetError(f"root chain does not fit: {error}") from error
        if link.previous != at or not ed25519.verify(base64url.decode(at), signed, signature):
            raise KeySetError("a link of the root chain does not verify")
        at = link.public_key
    if not begun or at != keyset.root_public_key:
        raise KeySetError("key set is signed by another root than the pinned one")


def trusted_keys(keyset: KeySet) -> dict[KeyId, TrustedKey]:
    """Return the keys of a checked document in the form that `lease.open_lease` takes."""
    return {
        KeyId(key.kid): TrustedKey(base64url.decode(key.public_key), key.status)
        for key in keyset.keys
    }
