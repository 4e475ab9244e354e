"""Canonical base64url without padding, as PASETO, key documents and `cnf` write bytes."""

import base64
import binascii

__all__ = ["decode", "encode"]


def encode(data: bytes) -> str:
    """Base64url of `data` without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str, *, size: int | None = None) -> bytes:
    """Bytes of a canonical base64url text.

    Args:
        text: without padding.
        size: exact number of bytes wanted, or None for any.

    Raises:
        ValueError: another alphabet, padding, set trailing bits, or another size.
    """
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise ValueError("not base64url") from error
    if encode(data) != text:
        raise ValueError("not canonical base64url")
    if size is not None and len(data) != size:
        raise ValueError(f"must hold {size} bytes")
    return data
