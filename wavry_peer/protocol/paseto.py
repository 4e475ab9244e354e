"""PASETO v4.public: sign and verify (Ed25519 over PAE).

Only the one purpose that leases need, over pynacl.  Proved with the published v4 vectors and
against the pyseto package (tests/unit/protocol/test_paseto.py).
"""

import struct
from functools import lru_cache
from typing import Final

import msgspec

from . import base64url, ed25519
from .errors import ProtocolError

__all__ = [
    "HEADER",
    "PasetoError",
    "UnverifiedToken",
    "parse",
    "parse_ascii",
    "pre_authentication_encoding",
    "sign",
    "signature_check",
    "verify",
]

HEADER: Final = "v4.public."
_SIGNATURE_BYTES: Final = 64
_HEADER_BYTES: Final = HEADER.encode()
_LENGTH: Final = struct.Struct("<Q")
_FOUR_PIECES: Final = _LENGTH.pack(4) + _LENGTH.pack(len(HEADER)) + HEADER.encode()
"""How every PAE of a v4.public token begins."""


class PasetoError(ProtocolError):
    """The token has not the shape of v4.public, or its signature does not verify."""


class UnverifiedToken(msgspec.Struct, frozen=True, gc=False):
    """A token taken apart; nothing of it may be believed before `verify`.

    The signature is not in `repr`: with it, a log line would hold the whole token.
    """

    message: bytes
    signature: bytes
    footer: bytes

    def __repr__(self) -> str:
        return f"UnverifiedToken(message={self.message!r}, footer={self.footer!r})"


def _decode(text: bytes) -> bytes:
    try:
        return base64url.decode(text)
    except ValueError as error:
        raise PasetoError(f"token is {error}") from error


@lru_cache(maxsize=64)
def _footer(text: bytes) -> bytes:
    """Decode a footer; remembered, as few keys sign all tokens."""
    return _decode(text)


def pre_authentication_encoding(*pieces: bytes) -> bytes:
    """Join byte strings unambiguously: PAE of the PASETO specification."""
    length = _LENGTH.pack
    parts = [length(len(pieces))]
    for piece in pieces:
        parts += (length(len(piece)), piece)
    return b"".join(parts)


def sign(
    message: bytes, key: ed25519.SigningKey, *, footer: bytes = b"", implicit_assertion: bytes = b""
) -> str:
    """Make a v4.public token.

    Args:
        message: payload, for a lease its claims as JSON.
        key: signs.
        footer: authenticated, not secret.
        implicit_assertion: authenticated, not in the token.
    """
    signed = pre_authentication_encoding(_HEADER_BYTES, message, footer, implicit_assertion)
    token = HEADER + base64url.encode(message + key.sign(signed))
    return f"{token}.{base64url.encode(footer)}" if footer else token


def parse(token: str) -> UnverifiedToken:
    """Take a token apart without believing it.

    Raises:
        PasetoError: not the shape of v4.public.
    """
    try:
        return parse_ascii(token.encode("ascii"))
    except UnicodeEncodeError as error:
        raise PasetoError("not a v4.public token") from error


def parse_ascii(token: bytes) -> UnverifiedToken:
    """Parse a token as it comes in a datagram.

    Raises:
        PasetoError: not the shape of v4.public.
    """
    if not token.startswith(_HEADER_BYTES):
        raise PasetoError("not a v4.public token")
    body_text, dot, footer_text = token[len(_HEADER_BYTES) :].partition(b".")
    if dot and not footer_text:
        raise PasetoError("not a v4.public token")
    body = _decode(body_text)
    if len(body) < _SIGNATURE_BYTES:
        raise PasetoError("token is too short for a signature")
    footer = _footer(footer_text)
    return UnverifiedToken(body[:-_SIGNATURE_BYTES], body[-_SIGNATURE_BYTES:], footer)


def signature_check(
    token: UnverifiedToken, public_key: bytes, *, implicit_assertion: bytes = b""
) -> ed25519.SignatureCheck:
    """Return the check that makes a token's message credible.

    Args:
        token: from `parse`.
        public_key: 32 bytes, Ed25519.
        implicit_assertion: must equal what was signed.
    """
    message, footer = token.message, token.footer
    length = _LENGTH.pack
    signed = b"".join(
        (
            _FOUR_PIECES,
            length(len(message)),
            message,
            length(len(footer)),
            footer,
            length(len(implicit_assertion)),
            implicit_assertion,
        )
    )
    return ed25519.SignatureCheck(public_key, signed, token.signature)


def verify(token: UnverifiedToken, public_key: bytes, *, implicit_assertion: bytes = b"") -> bytes:
    """Check the signature and return the message; see `signature_check` for the arguments.

    Raises:
        PasetoError: the signature does not verify.
    """
    if not signature_check(token, public_key, implicit_assertion=implicit_assertion).holds():
        raise PasetoError("signature does not verify")
    return token.message
