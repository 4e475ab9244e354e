"""What waits for one client: bounded in all, and by who sent it.

Strategy: messages of other users may fill three quarters of a queue, those of one sender a quarter,
and those of senders whose calls are not accepted yet a quarter together.  What does not fit is
refused to its sender, so nobody can use up what others need, or have the receiver cut off.  The
rest is the gateway's own.  Only that may overflow, and means a client that does not read.
"""

from collections import Counter, deque
from dataclasses import dataclass
from typing import Final

__all__ = ["ClientQueue", "Sender"]

SHARE_OF_ONE: Final = 1 / 4
SHARE_OF_STRANGERS: Final = 1 / 4
SHARE_OF_USERS: Final = 3 / 4
_STRANGERS: Final = ""
"""No user has this name."""


@dataclass(frozen=True, slots=True)
class Sender:
    """A user whose message is passed on; a stranger's call was not accepted yet."""

    username: str
    is_stranger: bool


class ClientQueue:
    """Texts in the order in which they came.

    Args:
        max_messages: in all.
        max_bytes: in all.
    """

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._texts: deque[tuple[str, Sender | None]] = deque()
        self._bytes = 0
        self._users: Counter[str | None] = Counter()
        self._user_bytes: Counter[str | None] = Counter()

    def __len__(self) -> int:
        return len(self._texts)

    def has_room(self, text: str, sender: Sender | None) -> bool:
        """Return whether a text fits; `sender` None is the gateway itself."""
        if not self._fits(len(self._texts), self._bytes, text, 1.0):
            return False
        if sender is None:
            return True
        keys = [(sender.username, SHARE_OF_ONE), (None, SHARE_OF_USERS)]
        if sender.is_stranger:
            keys.append((_STRANGERS, SHARE_OF_STRANGERS))
        return all(
            # A single message may be larger than its share, if it is alone.
            not self._users[key] or self._fits(self._users[key], self._user_bytes[key], text, share)
            for key, share in keys
        )

    def put(self, text: str, sender: Sender | None = None) -> None:
        """Add a text, whether it fits or not."""
        self._texts.append((text, sender))
        self._count(text, sender, 1)

    def take(self) -> str:
        """Take the oldest text."""
        text, sender = self._texts.popleft()
        self._count(text, sender, -1)
        return text

    def clear(self) -> None:
        """Forget all."""
        self._texts.clear()
        self._users.clear()
        self._user_bytes.clear()
        self._bytes = 0

    def _fits(self, messages: int, held_bytes: int, text: str, share: float) -> bool:
        return (
            messages + 1 <= max(1, share * self._max_messages)
            and held_bytes + len(text) <= share * self._max_bytes
        )

    def _count(self, text: str, sender: Sender | None, sign: int) -> None:
        self._bytes += sign * len(text)
        if sender is None:
            return
        keys: list[str | None] = [sender.username, None]
        if sender.is_stranger:
            keys.append(_STRANGERS)
        for key in keys:
            self._users[key] += sign
            self._user_bytes[key] += sign * len(text)
            if not self._users[key]:
                del self._users[key], self._user_bytes[key]
