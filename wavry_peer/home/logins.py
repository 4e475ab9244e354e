"""Login tokens by gateway, kept between commands of ``wavry-peer``."""

from pathlib import Path
from typing import Final, Self

import msgspec

from wavry_peer.errors import PrivateFileError

from .private_files import locked, read_private, write_private

__all__ = ["LoginStore", "SavedLogin"]

LOGINS_FILE: Final = "logins.json"


class SavedLogin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One login.

    Attributes:
        username: who is logged in.
        token: bearer token of the gateway; a secret.
        expires_at: unix seconds, or None if the gateway did not say.
    """

    username: str
    token: str
    expires_at: int | None = None

    def __repr__(self) -> str:
        return f"Login(username={self.username!r}, expires_at={self.expires_at!r})"


class _LoginsFile(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    gateways: dict[str, SavedLogin]


class LoginStore:
    """The logins of this user, one for each gateway.

    Args:
        path: the file, mode 0600.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def in_home(cls, home: Path) -> Self:
        """Return the store in the peer's directory."""
        return cls(home / LOGINS_FILE)

    def get(self, gateway_url: str) -> SavedLogin | None:
        """Return the login at a gateway, or None.

        Raises:
            PrivateFileError: the file is open to others or damaged.
        """
        return self._read().get(gateway_url)

    def put(self, gateway_url: str, login: SavedLogin) -> None:
        """Keep a login in place of an earlier one.

        Raises:
            PrivateFileError: the file cannot be read or written.
        """
        with locked(self._path):
            self._write({**self._read(), gateway_url: login})

    def remove(self, gateway_url: str) -> None:
        """Forget the login at a gateway.

        Raises:
            PrivateFileError: the file cannot be read or written.
        """
        with locked(self._path):
            logins = self._read()
            if logins.pop(gateway_url, None) is not None:
                self._write(logins)

    def _read(self) -> dict[str, SavedLogin]:
        content = read_private(self._path)
        if content is None:
            return {}
        try:
            return msgspec.json.decode(content, type=_LoginsFile).gateways
        except msgspec.MsgspecError:
            # Without the cause: its text could quote a token.
            raise PrivateFileError(
                f"{self._path} is damaged; remove it and run: wavry-peer login"
            ) from None

    def _write(self, logins: dict[str, SavedLogin]) -> None:
        write_private(self._path, msgspec.json.format(msgspec.json.encode(_LoginsFile(1, logins))))
