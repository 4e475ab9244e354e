"""The exceptions of a peer.

::

    WavryError
    ├── LocalError
    │   └── PrivateFileError      a file with a secret is readable by others, or damaged
    └── PeerError
        ├── GatewayError          the gateway answered "no"; carries its code
        │   └── GatewayAuthError  ... because it does not know us (any more): log in again
        ├── GatewayUnreachableError  no answer from the gateway at all
        ├── PeerUnavailableError  the called user is offline, refused, or did not answer
        ├── PeerKeyChangedError   the user's key is not the one pinned on first use
        ├── LeaseMismatchError    the lease we were handed is not ours
        ├── SessionFailedError    the session could not be set up; says at which step
        ├── SessionClosedError    the session is over
        └── TransferError         a file did not get across

Every message says what to do next and carries no secret and no full peer address.
"""

from wavry_peer.protocol.errors import LocalError, WavryError

__all__ = [
    "GatewayAuthError",
    "GatewayError",
    "GatewayUnreachableError",
    "LeaseMismatchError",
    "PeerError",
    "PeerKeyChangedError",
    "PeerUnavailableError",
    "PrivateFileError",
    "SessionClosedError",
    "SessionFailedError",
    "TransferError",
]


class PrivateFileError(LocalError):
    """A file that holds a secret is open to others, damaged, or cannot be written."""


class PeerError(WavryError):
    """Base of what can go wrong with others: gateway, relay or the other peer."""


class GatewayError(PeerError):
    """The gateway answered with an error.

    Attributes:
        code: the gateway's stable code, e.g. ``"user_offline"``.
        status: HTTP status, or 0 for an error that came over the WebSocket.
        retry_after_s: seconds to wait before the next try, or None.
        request_id: what an operator can look for in the logs, empty where there is none.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int = 0,
        retry_after_s: float | None = None,
        request_id: str = "",
    ) -> None:
        known_as = f"; request {request_id}" if request_id else ""
        super().__init__(f"{message} ({code}{known_as})")
        self.code = code
        self.request_id = request_id
        self.status = status
        self.retry_after_s = retry_after_s


class GatewayAuthError(GatewayError):
    """Wrong password, or a login that has ended."""


class GatewayUnreachableError(PeerError):
    """The gateway cannot be reached, or what answers there is not a gateway."""


class PeerUnavailableError(PeerError):
    """The called user is offline, refused the call, or did not answer in time."""


class PeerKeyChangedError(PeerError):
    """The user presents another key than the one pinned on first use.

    Attributes:
        username: whose key changed.
    """

    def __init__(self, username: str, pinned: str, named: str) -> None:
        super().__init__(
            f"the key of {username} has changed: pinned {pinned}, now {named}. Either {username} "
            "has a new device, or somebody is in between. Ask over another way, and only if the "
            f"new key is confirmed run: wavry-peer forget {username}"
        )
        self.username = username


class LeaseMismatchError(PeerError):
    """A lease that is for another session, role or key than ours; it is not presented."""


class SessionFailedError(PeerError):
    """The session could not be set up."""


class SessionClosedError(PeerError):
    """The session is over; nothing can be sent or received any more.

    Attributes:
        by_remote: True if the other user ended it; False if this side did, an operator or the
            gateway did, or it failed.
    """

    def __init__(self, message: str, *, by_remote: bool) -> None:
        super().__init__(message)
        self.by_remote = by_remote


class TransferError(PeerError):
    """A file transfer failed; nothing is left under the file's name.

    Attributes:
        code: short stable name, e.g. ``"exists"`` or ``"stalled"``.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
