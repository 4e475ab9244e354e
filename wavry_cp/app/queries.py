"""Parameters of the query of a request."""

import re
from typing import Final

from aiohttp import web

from wavry_cp.app.refusal import RefusedError
from wavry_peer.protocol.http.codes import ErrorCode

__all__ = ["limit_of", "number_of"]

_NUMBER: Final = re.compile(r"[0-9]{1,15}")


def number_of(request: web.Request, name: str) -> int | None:
    """Return a whole number, None where the query has none of this name.

    Raises:
        RefusedError: ``invalid_query``.
    """
    text = request.query.get(name)
    if text is None:
        return None
    if _NUMBER.fullmatch(text) is None:
        raise RefusedError(ErrorCode.INVALID_QUERY, f"{name} must be a whole number")
    return int(text)


def limit_of(request: web.Request, default: int, most: int) -> int:
    """Return how many rows are wanted.

    Raises:
        RefusedError: ``invalid_query``.
    """
    limit = number_of(request, "limit")
    if limit is None:
        return default
    if not 1 <= limit <= most:
        raise RefusedError(ErrorCode.INVALID_QUERY, f"limit must be 1 to {most}")
    return limit
