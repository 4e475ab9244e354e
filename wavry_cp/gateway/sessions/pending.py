"""What a caller may send to somebody who has not accepted his call: little."""

from collections import OrderedDict
from typing import Final

from wavry_cp.app.refusal import RefusedError
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.http.signaling import Message, encode_message

from .rules import SessionKey

__all__ = ["PendingAllowances"]

MAX_MESSAGES: Final = 16
"""The offer, ten candidates (protocol.md section 4), and some more."""
MAX_BYTES: Final = 16 * 1024
MAX_CALLS: Final = 65_536
"""Calls remembered, about 10 MB; the oldest goes, which is answered or over by then."""


class PendingAllowances:
    """Messages and bytes of each call that waits for its answer."""

    def __init__(self) -> None:
        self._used: OrderedDict[SessionKey, tuple[int, int]] = OrderedDict()

    def take(self, session_id: SessionKey, message: Message) -> None:
        """Count a message of the caller.

        Raises:
            RefusedError: ``rate_limited``: it would be one too many.
        """
        messages, size = self._used.get(session_id, (0, 0))
        messages, size = messages + 1, size + len(encode_message(message))
        if messages > MAX_MESSAGES or size > MAX_BYTES:
            raise RefusedError(
                ErrorCode.RATE_LIMITED,
                f"before the call is accepted it may bring {MAX_MESSAGES} messages of together "
                f"{MAX_BYTES // 1024} KiB: wait for the answer",
            )
        if session_id not in self._used and len(self._used) >= MAX_CALLS:
            self._used.popitem(last=False)
        self._used[session_id] = messages, size

    def forget(self, session_id: SessionKey) -> None:
        """Forget a call that was answered or has ended."""
        self._used.pop(session_id, None)
