"""Bearer tokens of users: 256 random bits, of which only the SHA-256 is stored.

A plain hash is enough here: there is nothing to guess in 256 random bits.
"""

import hashlib
import re
from collections.abc import Callable
from typing import Final, NewType

from wavry_peer.protocol import base64url

__all__ = ["TOKEN_BYTES", "TokenHash", "make_token", "token_hash"]

TokenHash = NewType("TokenHash", str)
TOKEN_BYTES: Final = 32
_SHAPE: Final = re.compile(r"[A-Za-z0-9_-]{43}")


def make_token(random_bytes: Callable[[int], bytes]) -> tuple[str, TokenHash]:
    """Return a new token, 43 characters of base64url, and what the store keeps of it."""
    token = base64url.encode(random_bytes(TOKEN_BYTES))
    return token, _hash(token)


def token_hash(token: str) -> TokenHash | None:
    """Return what the store knows of a token; None for a text that cannot be one."""
    if _SHAPE.fullmatch(token) is None:
        return None
    return _hash(token)


def _hash(token: str) -> TokenHash:
    return TokenHash(hashlib.sha256(token.encode()).hexdigest())
