"""Bearer tokens that an operator keeps in files."""

import hashlib
import hmac
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from wavry_peer.protocol.errors import LocalError
from wavry_peer.service.secret_files import file_mark, is_open_to_others
from wavry_peer.service.settings import SettingsError

__all__ = ["TokenFile", "TokenFileError", "require_different"]

MIN_TOKEN_CHARS: Final = 32
MAX_TOKEN_FILE_BYTES: Final = 4096
MOST_TOKENS: Final = 2
LOOK_EVERY_S: Final = 1.0

_log = structlog.get_logger(__name__)


class TokenFileError(LocalError):
    """A token file is missing, readable by others, or holds no good token."""


class TokenFile:
    """The bearer tokens of one holder, in a file: one line, or two while one replaces the other.

    The file is read again when it changes, so that a token is replaced without a restart: the new
    line is added, then its clients are changed, then the old line is removed.  A file that does
    not fit any more changes nothing and is logged.

    Attributes:
        name: who holds it, for the audit log, e.g. ``"service"``.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        variable: str = "",
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the file.

        Args:
            path: of the file.
            name: who holds the token.
            variable: setting that names the file, for the messages.
            monotonic_s: seconds.

        Raises:
            TokenFileError: missing, group- or world-accessible, or a line under 32 characters.
        """
        self.name = name
        self._path = path
        self._where = " ".join(filter(None, (name, "token file", variable, str(path))))
        self._monotonic_s = monotonic_s
        self._look_at_s = monotonic_s() + LOOK_EVERY_S
        self._seen = file_mark(path)
        self._tokens = self._read()

    @property
    def token(self) -> str:
        """The first line: what a client of ours sends."""
        return self._now()[0]

    def matches(self, given: str | None) -> bool:
        """Return whether `given` is one of the tokens, compared in constant time."""
        tokens = self._now()
        if given is None:
            return False
        shown = _token_digest(given)
        fits = [hmac.compare_digest(_token_digest(token), shown) for token in tokens]
        return any(fits)

    def shares_a_token(self, other: "TokenFile") -> bool:
        """Return whether some token is in both files."""
        return any(other.matches(token) for token in self._now())

    def _now(self) -> tuple[str, ...]:
        """Return the tokens, read again where the file has changed."""
        if (now_s := self._monotonic_s()) < self._look_at_s:
            return self._tokens
        self._look_at_s = now_s + LOOK_EVERY_S
        mark = file_mark(self._path)
        if mark != self._seen:
            self._seen = mark
            try:
                self._tokens = self._read()
            except TokenFileError as error:
                _log.error(
                    "token_file_refused",
                    cause=str(error),
                    effect="the tokens that it had before stay valid",
                    next_step="write it again: the token, and a second line while it is replaced",
                )
            else:
                _log.info("token_file_read", holder=self.name, tokens=len(self._tokens))
        return self._tokens

    def _read(self) -> tuple[str, ...]:
        try:
            with self._path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                raw = file.read(MAX_TOKEN_FILE_BYTES)
        except OSError as error:
            raise TokenFileError(f"{self._where}: {error.strerror}") from error
        if is_open_to_others(self._path, mode):
            raise TokenFileError(f"{self._where} is open to others (mode {mode:04o}): chmod 600 it")
        tokens = tuple(raw.strip().decode("ascii", "replace").splitlines())
        if not 1 <= len(tokens) <= MOST_TOKENS or not all(map(_is_token, tokens)):
            raise TokenFileError(
                f"{self._where} must hold one line of at least {MIN_TOKEN_CHARS} printable "
                "characters without spaces, or two while one token replaces the other"
            )
        return tokens


def _is_token(text: str) -> bool:
    return len(text) >= MIN_TOKEN_CHARS and all("!" <= char <= "~" for char in text)


def require_different(service: TokenFile, admin: TokenFile, variables: tuple[str, str]) -> None:
    """Refuse one token for both: its holders could not be told apart.

    Args:
        service: token of services.
        admin: token of operators.
        variables: names of the two settings, for the message.

    Raises:
        SettingsError: a token is in both files.
    """
    if service.shares_a_token(admin):
        raise SettingsError(
            f"{variables[0]} and {variables[1]} must name files with different tokens"
        )


def _token_digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
