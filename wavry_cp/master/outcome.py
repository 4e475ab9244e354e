"""What came of a call, for the counters."""

from typing import Self

from wavry_cp.app.http import ApiError
from wavry_cp.app.metric_families import LabelledCounter
from wavry_cp.app.store_errors import StoreUnavailableError

from .refusal import RefusedError

__all__ = ["counted", "outcome_of"]


def outcome_of(error: BaseException) -> str:
    """The label value of a call that failed."""
    if isinstance(error, RefusedError | ApiError):
        return error.code
    if isinstance(error, StoreUnavailableError):
        return "store_unavailable"
    return "client_left" if isinstance(error, ConnectionError) else "internal_error"


class counted:  # noqa: N801  # reads as a statement: ``with counted(counter)``
    """Counts what came of a call: `result`, or the code of the refusal."""

    def __init__(self, counter: LabelledCounter) -> None:
        self._counter = counter
        self.result = "internal_error"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, Exception):
            self._counter.labels(self.result if error is None else outcome_of(error)).inc()
