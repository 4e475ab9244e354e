"""Canonical base64url without padding, as PASETO, key documents and `cnf` write bytes."""

import binascii
from typing import Final

import msgspec

__all__ = ["decode", "encode"]

_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_FROM_STANDARD: Final = bytes.maketrans(b"+/", b"-_")
_TO_STANDARD: Final = bytes(
    byte if byte in _ALPHABET else ord("!") for byte in range(256)
).translate(bytes.maketrans(b"-_", b"+/"))
"""Every byte of another alphabet becomes one that strict decoding refuses."""
_DECODER: Final = msgspec.json.Decoder(bytes)
_PADDING: Final = (b"", b"", b"==", b"=")
_STANDARD: Final = _ALPHABET.translate(_TO_STANDARD)
_LAST: Final = (_STANDARD, b"", _STANDARD[::16], _STANDARD[::4])
"""By the length modulo 4: what the last character may be, so that the bits that no byte needs
are zero.  A single character left over holds no byte at all."""


def encode(data: bytes) -> str:
    """Return the Base64url of `data` without padding."""
    standard = binascii.b2a_base64(data, newline=False)
    return standard.translate(_FROM_STANDARD).rstrip(b"=").decode()


def decode(text: str | bytes, *, size: int | None = None) -> bytes:
    """Return the bytes of a canonical base64url text.

    Alphabet and last character are looked at instead of encoding the bytes again: a relay does
    this twice for each lease.  msgspec needs two thirds of `binascii`'s instructions.

    Args:
        text: without padding.
        size: exact number of bytes wanted, or None for any.

    Raises:
        ValueError: another alphabet, padding, set trailing bits, or another size.
    """
    try:
        raw = (text if isinstance(text, bytes) else text.encode("ascii")).translate(_TO_STANDARD)
        left_over = len(raw) % 4
        data = _DECODER.decode(b'"%b%b"' % (raw, _PADDING[left_over]))
    except (UnicodeEncodeError, msgspec.MsgspecError) as error:
        raise ValueError("not base64url") from error
    if raw and raw[-1] not in _LAST[left_over]:
        raise ValueError("not canonical base64url")
    if size is not None and len(data) != size:
        raise ValueError(f"must hold {size} bytes")
    return data
