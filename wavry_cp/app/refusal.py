"""The one way in which a service says no: a stable code, and a message that says what to do."""

import math
from typing import Final

from wavry_peer.protocol.errors import WavryError
from wavry_peer.protocol.http.codes import ErrorCode

__all__ = ["RefusedError"]

RETRY_AFTER_503_S: Final = 2
"""Where nobody knows better how long a service or relay stays away."""


class RefusedError(WavryError):
    """A call that is refused: HTTP answers with status and code, the WebSocket with an ERROR.

    Attributes:
        code: stable code of the answer.
        status: HTTP status, of the code unless it is given.
        retry_after_s: seconds after which the same call may work, 0.0 where waiting does not help.
        about: for the operator only: the account or token that it was about, where one is known.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        retry_after_s: float = 0.0,
        status: int = 0,
        about: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status or code.status
        self.retry_after_s = retry_after_s
        self.about = about

    def headers(self) -> dict[str, str]:
        """Return the headers that the answer needs beside its body."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        if self.retry_after_s > 0:
            return {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}
        return {"Retry-After": str(RETRY_AFTER_503_S)} if self.status == 503 else {}
