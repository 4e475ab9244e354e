"""Bearer tokens that an operator keeps in files."""

import hashlib
import hmac
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from wavry_peer.protocol.errors import LocalError
from wavry_peer.service.secret_files import is_open_to_others
from wavry_peer.service.settings import SettingsError

__all__ = ["TokenFile", "TokenFileError", "require_different"]

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
    def load(cls, path: Path, name: str, variable: str = "") -> Self:
        """Read a token file (one line).

        Args:
            path: of the file.
            name: who holds the token.
            variable: setting that names the file, for the messages.

        Raises:
            TokenFileError: missing, group- or world-accessible, or under 32 characters.
        """
        where = f"{variable} {path}" if variable else f"{path}"
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                raw = file.read(MAX_TOKEN_FILE_BYTES)
        except OSError as error:
            raise TokenFileError(f"{name} token file {where}: {error.strerror}") from error
        if is_open_to_others(path, mode):
            raise TokenFileError(
                f"{name} token file {where} is open to others (mode {mode:04o}): chmod 600 it"
            )
        token = raw.strip().decode("ascii", "replace")
        if len(token) < MIN_TOKEN_CHARS or not all("!" <= char <= "~" for char in token):
            raise TokenFileError(
                f"{name} token file {where} must hold one line of at least {MIN_TOKEN_CHARS} "
                "printable characters without spaces"
            )
        return cls(name, token)

    def matches(self, given: str | None) -> bool:
        """Return whether `given` is the token, compared in constant time."""
        if given is None:
            return False
        return hmac.compare_digest(_token_digest(self.token), _token_digest(given))


def require_different(service: TokenFile, admin: TokenFile, variables: tuple[str, str]) -> None:
    """Refuse one token for both: its holders could not be told apart.

    Args:
        service: token of services.
        admin: token of operators.
        variables: names of the two settings, for the message.

    Raises:
        SettingsError: both files hold the same token.
    """
    if service.matches(admin.token):
        raise SettingsError(
            f"{variables[0]} and {variables[1]} must name files with different tokens"
        )


def _token_digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
