"""An account of the gateway: registered, logged in, bound to a WebSocket."""

import contextlib
import secrets
from typing import Final

from loadtest.run.load_run import LoadFailure, LoadRun
from wavry_peer.home.identity import Identity
from wavry_peer.protocol.http import api
from wavry_peer.protocol.http import signaling as s

from .service_calls import ServiceCalls, answer, nothing
from .signaling_socket import SignalingSocket

__all__ = ["OnlineUser"]

RUN_NAME: Final = secrets.token_hex(4)
"""Of this process: names of accounts must be new each time."""


class OnlineUser:
    """One account and the identity of its peer.

    Args:
        load: where to measure.
        calls: of the gateway.
        name: different from that of every other account of this process.

    Attributes:
        username: of the account.
        identity: keys of the peer.
    """

    def __init__(self, load: LoadRun, calls: ServiceCalls, name: str) -> None:
        self.username = f"load-{RUN_NAME}-{name}"
        self.identity = Identity.generate()
        self._load = load
        self._calls = calls
        self._password = secrets.token_urlsafe(18)
        self._is_registered = False
        self._token: str | None = None
        self._socket: SignalingSocket | None = None

    @property
    def token(self) -> str:
        """Bearer token of the login.

        Raises:
            LoadFailure: not logged in.
        """
        if self._token is None:
            raise LoadFailure("not logged in")
        return self._token

    @property
    def socket(self) -> SignalingSocket:
        """The bound WebSocket.

        Raises:
            LoadFailure: not bound.
        """
        if self._socket is None:
            raise LoadFailure("not bound")
        return self._socket

    def come_online(self) -> None:
        """Register (once), log in, connect, BIND.

        Raises:
            LoadFailure: one of them failed.
        """
        credentials = api.UserCredentials(username=self.username, password=self._password)
        if not self._is_registered:
            self._calls.call("POST", "/auth/register", answer(api.LoginResponse), body=credentials)
            self._is_registered = True
        login = self._calls.call("POST", "/auth/login", answer(api.LoginResponse), body=credentials)
        self._token = login.token
        with self._load.measuring("WS connect"):
            self._socket = SignalingSocket(self._load.target.need_gateway())
        with self._load.measuring("WS BIND"):
            self._socket.send(s.Bind(token=self.token))
            self._socket.expect(s.Bound)

    def go_offline(self) -> None:
        """Close the WebSocket and log out; never raises, and again it does nothing."""
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.close()
        token, self._token = self._token, None
        if token is not None:
            with contextlib.suppress(LoadFailure):  # counted
                self._calls.call("POST", "/auth/logout", nothing, token=token)
