"""A call to the master that failed."""

from typing import Final

from wavry_peer.protocol.errors import ProtocolError
from wavry_peer.protocol.http.codes import ErrorCode

__all__ = ["MasterCallError"]

_NEXT_STEPS: Final[dict[str, str]] = {code.value: code.next_step for code in ErrorCode}


class MasterCallError(ProtocolError):
    """The master is unreachable or answers something else than it should.

    Attributes:
        status: HTTP status, 0 without an answer.
        code: the master's error code, empty without one.
        retry_after_s: how long the master asks to wait, 0.0 where it says nothing.
    """

    def __init__(
        self, message: str, status: int = 0, code: str = "", retry_after_s: float = 0.0
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def next_step(self) -> str:
        """What to do about it, empty where the code is none that we know."""
        return _NEXT_STEPS.get(self.code, "")
