"""What a rule of the master raises when a call cannot be granted."""

from wavry_peer.protocol.errors import WavryError

__all__ = ["RefusedError"]


class RefusedError(WavryError):
    """A call that the rules refuse.

    Attributes:
        code: stable code of the answer; the table in `app` gives each its HTTP status.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
