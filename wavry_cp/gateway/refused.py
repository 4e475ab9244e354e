"""The one way in which a rule of the gateway says no: a stable code and what to do next.

HTTP answers it with the status of `STATUS`, the WebSocket with an ERROR message of the same code.
"""

from typing import Final

from wavry_peer.protocol.errors import WavryError

__all__ = ["STATUS", "RefusedError"]

STATUS: Final[dict[str, int]] = {
    "invalid_target": 400,
    "invalid_message": 400,
    "invalid_credentials": 401,
    "invalid_token": 401,
    "admin_disabled": 403,
    "banned": 403,
    "forbidden": 403,
    "not_called_user": 403,
    "origin_not_allowed": 403,
    "user_offline": 404,
    "unknown_session": 404,
    "key_mismatch": 409,
    "not_accepted": 409,
    "not_on_relay": 409,
    "relay_gone": 409,
    "revoked": 409,
    "session_closed": 409,
    "stale_jti": 409,
    "username_taken": 409,
    "rate_limited": 429,
    "too_many_attempts": 429,
    "too_many_connections": 429,
    "admin_check_unavailable": 503,
    "busy": 503,
    "lockdown": 503,
    "no_relay_available": 503,
    "relay_mode_off": 503,
    "relay_unavailable": 503,
}


class RefusedError(WavryError):
    """A call that a rule of the gateway refuses.

    Attributes:
        code: a key of `STATUS`.
        retry_after_s: seconds after which the same call may work, 0.0 where waiting does not help.
    """

    def __init__(self, code: str, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        """HTTP status of the answer."""
        return STATUS[self.code]
