"""The label of a call that failed, for the counters."""

from wavry_cp.app.http import ApiError
from wavry_cp.app.store_errors import StoreUnavailableError

from .refusal import RefusedError

__all__ = ["outcome_of"]


def outcome_of(error: BaseException) -> str:
    """Return the label value of a call that failed."""
    if isinstance(error, RefusedError | ApiError):
        return error.code
    if isinstance(error, StoreUnavailableError):
        return "store_unavailable"
    return "client_left" if isinstance(error, ConnectionError) else "internal_error"
