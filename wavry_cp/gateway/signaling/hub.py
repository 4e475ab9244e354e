"""Who is online: at most one connection per user, the newest.

A connection is registered under its token *before* the token is looked up, so that a logout between
look-up and BIND still finds it.  Removal compares the connection itself: the end of a displaced one
never removes the newer.
"""

from collections import defaultdict
from collections.abc import Iterable

from wavry_cp.app.refusal import RefusedError
from wavry_cp.gateway.accounts.tokens import TokenHash
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.http.signaling import Error, Message

from .connection import CLOSE_AUTH, CLOSE_DISPLACED, CLOSE_GOING_AWAY, SignalingConnection
from .queue import Sender

__all__ = ["Hub"]


class Hub:
    """All WebSockets of this gateway."""

    def __init__(self) -> None:
        self._all: set[SignalingConnection] = set()
        self._bound: dict[str, SignalingConnection] = {}
        self._by_token: defaultdict[TokenHash, set[SignalingConnection]] = defaultdict(set)

    def add(self, connection: SignalingConnection) -> None:
        """Take a new connection, not bound yet."""
        self._all.add(connection)

    def claim(self, connection: SignalingConnection, token: TokenHash) -> None:
        """Note that the connection says it holds `token`; nothing is believed yet."""
        connection.token = token
        self._by_token[token].add(connection)

    def bind(self, connection: SignalingConnection, username: str) -> None:
        """Make this the connection of `username`, whose token was good; an older one ends."""
        if connection.cause is not None:
            return
        connection.username = username
        older = self._bound.get(username)
        self._bound[username] = connection
        if older is not None and older is not connection:
            older.end(
                CLOSE_DISPLACED,
                "displaced",
                Error(
                    code=ErrorCode.DISPLACED, message="a newer connection of this user took over"
                ),
            )

    def remove(self, connection: SignalingConnection) -> None:
        """Forget a connection that is over."""
        self._all.discard(connection)
        if connection.token is not None:
            holders = self._by_token[connection.token]
            holders.discard(connection)
            if not holders:
                del self._by_token[connection.token]
        if connection.username is not None and self._bound.get(connection.username) is connection:
            del self._bound[connection.username]

    def end_tokens(self, tokens: Iterable[TokenHash]) -> None:
        """Close every connection that was opened with one of these tokens."""
        for token in tokens:
            for connection in tuple(self._by_token.get(token, ())):
                end_for_token(connection)

    def end_all(self) -> None:
        """End every connection: the gateway stops, and clients come back to the next one."""
        for connection in tuple(self._all):
            connection.end(
                CLOSE_GOING_AWAY,
                "shutdown",
                Error(code=ErrorCode.SHUTTING_DOWN, message="the gateway stops; connect again"),
            )

    def end_user(self, username: str) -> None:
        """Close the connection of a user who has just been banned."""
        connection = self._bound.get(username)
        if connection is not None:
            end_for_ban(connection)

    def end_for_lockdown(self) -> None:
        """End every connection: the operator closes the service."""
        for connection in tuple(self._all):
            connection.end(
                CLOSE_GOING_AWAY,
                ErrorCode.LOCKDOWN,
                Error(
                    code=ErrorCode.LOCKDOWN, message="the operator has closed the service for now"
                ),
            )

    def pass_on(self, username: str, message: Message, sender: Sender) -> None:
        """Queue a message of one user for another.

        Raises:
            RefusedError: ``user_offline``; ``rate_limited`` where what waits for him is all that
                may wait of this sender.
        """
        connection = self._bound.get(username)
        if connection is None or connection.cause is not None:
            raise RefusedError(ErrorCode.USER_OFFLINE, "this user is not online or does not exist")
        if not connection.pass_on(message, sender):
            raise RefusedError(
                ErrorCode.RATE_LIMITED,
                "this user does not read as fast as you write; try again in a moment",
                retry_after_s=1.0,
            )

    def deliver(self, username: str, message: Message) -> bool:
        """Queue a message of the gateway for a user; False where he is offline."""
        connection = self._bound.get(username)
        return connection is not None and connection.send(message)

    def is_online(self, username: str) -> bool:
        """Return whether a user is bound."""
        connection = self._bound.get(username)
        return connection is not None and connection.cause is None

    @property
    def online(self) -> int:
        """Number of bound users."""
        return len(self._bound)


def end_for_ban(connection: SignalingConnection) -> None:
    """Close the connection of a banned user."""
    connection.end(
        CLOSE_AUTH,
        ErrorCode.BANNED,
        Error(code=ErrorCode.BANNED, message="this user is banned; ask the operator"),
    )


def end_for_token(connection: SignalingConnection) -> None:
    """Close a connection whose token is not good (any more)."""
    connection.end(
        CLOSE_AUTH,
        ErrorCode.INVALID_TOKEN,
        Error(
            code=ErrorCode.INVALID_TOKEN, message="the token is not valid (any more); log in again"
        ),
    )
