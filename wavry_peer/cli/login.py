"""Who a command runs as: password sources and stored logins."""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import typer

from wavry_peer.errors import GatewayAuthError
from wavry_peer.gateway.client import GatewayClient, normalize_gateway_url
from wavry_peer.home.identity import HOME_VARIABLE
from wavry_peer.home.logins import LoginStore
from wavry_peer.home.private_files import read_private
from wavry_peer.peer import Peer
from wavry_peer.protocol.errors import LocalError

__all__ = ["VARIABLES", "CommandUser", "check_password", "check_username", "read_password"]

PASSWORD_VARIABLE: Final = "WAVRY_PASSWORD"
ALLOW_HTTP_VARIABLE: Final = "WAVRY_PEER_ALLOW_HTTP"
VARIABLES: Final = {
    "WAVRY_GATEWAY_URL": "URL of the gateway.",
    HOME_VARIABLE: "Directory of the key, logins and known peers; by default `~/.config/wavry`.",
    PASSWORD_VARIABLE: "The password of `--user`; `--password-file` is better where others look.",
    ALLOW_HTTP_VARIABLE: "1: send password and token by plain http to other hosts, too.",
}
"""What the commands read of the environment, and what it means."""


_USER_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,30}[a-z0-9])?")
MIN_PASSWORD_CHARS: Final = 10
MAX_PASSWORD_CHARS: Final = 256


def check_username(username: str) -> None:
    """Refuse a name that no gateway gives, before anything is asked or sent.

    Raises:
        LocalError: it does not fit.
    """
    if not _USER_NAME.fullmatch(username):
        raise LocalError(
            "a user name has 1 to 32 of a-z 0-9 . _ - and begins and ends with a letter or digit"
        )


def check_password(password: str) -> None:
    """Refuse a password that no gateway takes.

    Raises:
        LocalError: it is too short or too long.
    """
    if len(password) < MIN_PASSWORD_CHARS:
        raise LocalError(f"a password needs {MIN_PASSWORD_CHARS} characters or more")
    if len(password) > MAX_PASSWORD_CHARS:
        raise LocalError(f"a password has at most {MAX_PASSWORD_CHARS} characters")


def read_password(
    password_file: Path | None,
    *,
    username: str,
    confirm: bool = False,
    variable: str = PASSWORD_VARIABLE,
    question: str = "",
) -> str:
    """Get the password from a file, an environment variable or a prompt; never from an argument.

    Raises:
        LocalError: there is none, and nobody to ask; or it is too short or too long.
    """
    password = _given_password(
        password_file, question or f"Password of {username}", variable, confirm=confirm
    )
    check_password(password)
    return password


def _given_password(
    password_file: Path | None, question: str, variable: str, *, confirm: bool
) -> str:
    if password_file is not None:
        raw = read_private(password_file)
        if raw is None:
            raise LocalError(f"there is no file {password_file}")
        try:
            return raw.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise LocalError(f"{password_file} is not text") from None
    if given := os.environ.get(variable):
        return given
    if not sys.stdin.isatty():
        option = "--password-file" if variable == PASSWORD_VARIABLE else "--new-password-file"
        raise LocalError(f"no password: set {variable}, or use {option}")
    text: str = typer.prompt(question, hide_input=True, confirmation_prompt=confirm, err=True)
    return text


@dataclass(frozen=True, slots=True)
class CommandUser:
    """The gateway, and who we are there.

    Attributes:
        gateway_url: normalised.
        home: directory of the peer's files.
        username: from ``--as``, or None for the stored login.
        password_file: or None.
    """

    gateway_url: str
    home: Path
    username: str | None
    password_file: Path | None

    @classmethod
    def make(
        cls, gateway: str | None, home: Path, username: str | None, password_file: Path | None
    ) -> "CommandUser":
        """Make an account from options.

        Raises:
            LocalError: no gateway, or its URL or the user name does not fit.
        """
        if not gateway:
            raise LocalError("no gateway: use --gateway URL, or set WAVRY_GATEWAY_URL")
        if username is not None:
            check_username(username)
        allow_http = allows_http()
        url = normalize_gateway_url(gateway, allow_http=allow_http)
        return cls(url, home, username, password_file)

    def peer(self) -> Peer:
        """Make a peer, not started.

        Raises:
            GatewayAuthError: there is no login to use.
            LocalError: no password to log in with.
        """
        stored = LoginStore.in_home(self.home).get(self.gateway_url)
        has_password = self.password_file is not None or PASSWORD_VARIABLE in os.environ
        if self.username is None:
            if stored is None:
                text = f"not logged in at {self.gateway_url}; run: wavry-peer login USER"
                raise GatewayAuthError("not_logged_in", text)
            return Peer(self.gateway_url, token=stored.token, home=self.home, allow_http=True)
        if stored is not None and stored.username == self.username and not has_password:
            return Peer(self.gateway_url, token=stored.token, home=self.home, allow_http=True)
        password = read_password(self.password_file, username=self.username)
        return Peer(
            self.gateway_url,
            credentials=(self.username, password),
            home=self.home,
            allow_http=True,
        )

    def client(self, token: str | None = None) -> GatewayClient:
        """Return a client of the gateway, made inside a running loop."""
        return GatewayClient(self.gateway_url, token=token)


def allows_http() -> bool:
    """Return whether the user lets ``http://`` pass for other machines."""
    return os.environ.get(ALLOW_HTTP_VARIABLE, "").lower() in ("1", "true", "yes", "on")
