"""The exceptions of the protocol core.

::

    WavryError
    ├── LocalError        the caller asked for something that cannot be
    │   └── ListenError   an address cannot be listened on
    └── ProtocolError     bytes from the network (or a document) do not fit
        ├── PacketError   a relay datagram that does not fit
        ├── LeaseError    a lease that must be refused; carries the one named reason
        ├── KeySetError   a key-set document that must be refused
        └── MessageError  a JSON body or signaling frame that does not fit

Messages say what to do next and never carry a secret or a full peer address.
"""

from .constants import RejectReason
from .http.codes import ErrorCode

__all__ = [
    "KeySetError",
    "LeaseError",
    "ListenError",
    "LocalError",
    "MessageError",
    "PacketError",
    "ProtocolError",
    "WavryError",
]


class WavryError(Exception):
    """Base of every exception that Wavry raises on purpose."""


class LocalError(WavryError):
    """The caller's own fault: an argument or an order of calls that cannot work."""


class ListenError(LocalError):
    """An address cannot be listened on; no other port is ever taken in its place."""


class ProtocolError(WavryError):
    """A remote fault: what came from outside does not fit the protocol."""


class PacketError(ProtocolError):
    """A datagram that is dropped.

    Attributes:
        reason: short stable name for the drop counter, e.g. ``"bad_magic"``.
    """

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason


class LeaseError(ProtocolError):
    """A lease that must be refused.

    Attributes:
        reason: the wire reason that the relay answers with.
    """

    def __init__(self, reason: RejectReason, message: str) -> None:
        super().__init__(f"{reason.name}: {message}")
        self.reason = reason


class KeySetError(ProtocolError):
    """A key-set document that must be refused (shape, root signature or serial)."""


class MessageError(ProtocolError):
    """A JSON body or signaling frame that does not fit.

    Attributes:
        code: stable code, e.g. ``invalid_message``.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
