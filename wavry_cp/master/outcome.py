"""The label of a call that failed, for the counters."""

from wavry_cp.app.refusal import RefusedError
from wavry_cp.app.store_errors import StoreUnavailableError
from wavry_peer.protocol.http.codes import ErrorCode

__all__ = ["outcome_of"]


def outcome_of(error: BaseException) -> str:
    """Return the label value of a call that failed."""
    if isinstance(error, RefusedError):
        return error.code
    if isinstance(error, StoreUnavailableError):
        return ErrorCode.STORE_UNAVAILABLE
    return "client_left" if isinstance(error, ConnectionError) else ErrorCode.INTERNAL_ERROR
