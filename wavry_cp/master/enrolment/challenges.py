"""Registration challenges under way: single use, 60 seconds, bounded."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from wavry_cp.app.refusal import RefusedError
from wavry_peer.protocol.http.api import RegisterRequest
from wavry_peer.protocol.http.codes import ErrorCode

__all__ = ["CHALLENGE_BYTES", "Challenges", "PendingChallenge"]

CHALLENGE_BYTES: Final = 32
CHALLENGE_TTL_S: Final = 60.0
MAX_CHALLENGES: Final = 4096
"""When it is full the oldest goes: who floods must outrun a whole round trip of the honest relay,
which the per-address limit forbids; refusing new ones would lock out everyone for a minute."""


@dataclass(frozen=True, slots=True)
class PendingChallenge:
    """What a relay was asked to sign, and the registration that waits for it."""

    challenge: bytes
    body: RegisterRequest
    is_managed: bool = False
    """It showed the service token."""


class Challenges:
    """The open challenges by id; times are monotonic seconds."""

    def __init__(self, max_challenges: int = MAX_CHALLENGES) -> None:
        self._max_challenges = max_challenges
        self._pending: OrderedDict[str, tuple[PendingChallenge, float]] = OrderedDict()

    def __len__(self) -> int:
        """Return the challenges kept, expired ones included."""
        return len(self._pending)

    def add(self, challenge_id: str, pending: PendingChallenge, *, now_s: float) -> None:
        """Remember a challenge that is sent out now."""
        while self._pending and (
            len(self._pending) >= self._max_challenges
            or next(iter(self._pending.values()))[1] <= now_s
        ):
            self._pending.popitem(last=False)
        self._pending[challenge_id] = (pending, now_s + CHALLENGE_TTL_S)

    def take(self, challenge_id: str, *, now_s: float) -> PendingChallenge:
        """Take the challenge, for its only use: it is gone afterwards, however that ends.

        Raises:
            RefusedError: ``unknown_challenge``: never made, used, or expired.
        """
        pending, expires_at_s = self._pending.pop(challenge_id, (None, 0.0))
        if pending is None or expires_at_s <= now_s:
            raise RefusedError(
                ErrorCode.UNKNOWN_CHALLENGE, "challenge is used or expired; register again"
            )
        return pending
