"""Labels of HTTP requests, for both services of the control plane."""

from typing import Final

from wavry_peer.protocol.http.codes import ErrorCode as Code

from .spec import OTHER, Label, closed

__all__ = ["ADMIN_AUTH_CAUSE", "BODY_FAULTS", "HTTP_METHOD", "HTTP_STATUS", "UNMATCHED", "route"]

UNMATCHED: Final = "unmatched"
"""The route of every path that there is not."""

HTTP_METHOD: Final = closed(
    "method", "GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH", OTHER
)
HTTP_STATUS: Final = closed(
    "status",
    "101", "200", "201", "204",
    "400", "401", "403", "404", "405", "408", "409", "413", "415", "417", "429",
    "500", "503", OTHER,
)  # fmt: skip
ADMIN_AUTH_CAUSE: Final = closed("cause", "wrong_token", "limited", Code.FORBIDDEN)
BODY_FAULTS: Final = (
    Code.BODY_TOO_LARGE, Code.INVALID_BODY, Code.INVALID_JSON, Code.REQUEST_TIMEOUT,
    Code.UNSUPPORTED_ENCODING,
)  # fmt: skip
"""Codes of `wavry_cp.app.http.read_body`."""


def route(*templates: str) -> Label:
    """Make the label of route templates; ids in paths never show."""
    return closed("route", *templates, UNMATCHED)
