"""Who may use the gateway at all: nobody in a lockdown, a banned user never."""

from prometheus_client import Counter

from wavry_cp.app.refusal import RefusedError
from wavry_cp.operators.bans import BanKind, BanTable
from wavry_cp.operators.switches import SwitchTable
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.service.clock import Clock

__all__ = ["UserAccess"]


class UserAccess:
    """Asked wherever a user shows himself; what it reads changes with the operator's order."""

    def __init__(
        self, switches: SwitchTable, bans: BanTable, clock: Clock, refused: Counter
    ) -> None:
        """Make it; `refused` counts calls of banned users."""
        self._switches = switches
        self._bans = bans
        self._clock = clock
        self._refused = refused

    def require(self, *usernames: str) -> None:
        """Refuse where one of the users may not come in.

        Raises:
            RefusedError: ``lockdown`` or ``banned``.
        """
        if self._switches.lockdown:
            raise RefusedError(
                ErrorCode.LOCKDOWN, "the operator has closed the service for now", retry_after_s=10
            )
        now_s = self._clock.now_s()
        for username in usernames:
            if self._bans.is_banned(BanKind.USER, username, now_s):
                self._refused.inc()
                raise RefusedError(ErrorCode.BANNED, "this user is banned; ask the operator")
