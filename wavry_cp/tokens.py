"""Bearer tokens that an operator keeps in files."""

import hashlib
import hmac
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from wavry_peer.protocol.errors import LocalError

__all__ = ["TokenFile", "TokenFileError"]

MIN_TOKEN_CHARS: Final = 32
MAX_TOKEN_FILE_BYTES: Final = 4096


class TokenFileError(LocalError):
    """A token file is missing, readable by others, or holds no good token."""


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A bearer token that an operator put into a file.

    Attributes:
        name: who holds it, for the audit log, e.g. ``"service"``.
        token: what a client of ours sends; never shown by repr.
    """

    name: str
    token: str = field(repr=False)

    @classmethod
    def load(cls, path: Path, name: str) -> Self:
        """Read a token file (one line).

        Raises:
            TokenFileError: missing, group- or world-accessible, or under 32 characters.
        """
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                raw = file.read(MAX_TOKEN_FILE_BYTES)
        except OSError as error:
            raise TokenFileError(f"{name} token file {path}: {error.strerror}") from error
        if mode & 0o077:
            raise TokenFileError(
                f"{name} token file {path} is open to others (mode {mode:04o}): chmod 600 it"
            )
        token = raw.strip().decode("ascii", "replace")
        if len(token) < MIN_TOKEN_CHARS or not all("!" <= char <= "~" for char in token):
            raise TokenFileError(
                f"{name} token file {path} must hold one line of at least {MIN_TOKEN_CHARS} "
                "printable characters without spaces"
            )
        return cls(name, token)

    def matches(self, given: str | None) -> bool:
        """True where `given` is the token, compared in constant time."""
        if given is None:
            return False
        return hmac.compare_digest(_token_digest(self.token), _token_digest(given))


def _token_digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
