"""The id of a request: one name for one question, in every answer and log line that it causes.

Who asks first makes it; a service takes it over where it has the form, passes it on in what it
asks of others, and says it in its answer.  An id is a name and proves nothing: a stranger who
repeats one finds only his own lines under it.
"""

import re
import secrets
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

__all__ = [
    "REQUEST_ID_HEADER",
    "adopt_request_id",
    "current_request_id",
    "log_request_id",
    "new_request_id",
    "quoted",
    "request_id_of",
    "under_request_id",
]

REQUEST_ID_HEADER: Final = "X-Request-ID"
_FORM: Final = re.compile(r"[A-Za-z0-9-]{8,24}")
_current: Final = ContextVar("request_id", default="")


def new_request_id() -> str:
    """Return an id that nobody else makes: 16 hexadecimal digits."""
    return secrets.token_hex(8)


def request_id_of(header: str | None) -> str:
    """Return the id that a header names, empty where it names none or one of another form."""
    return header if header and _FORM.fullmatch(header) else ""


def adopt_request_id(header: str | None) -> str:
    """Put this task under the id of a request, or under a new one; returns it."""
    request_id = request_id_of(header) or new_request_id()
    _current.set(request_id)
    return request_id


@contextmanager
def under_request_id(request_id: str) -> Iterator[None]:
    """Put what runs inside the block under an id."""
    token = _current.set(request_id)
    try:
        yield
    finally:
        _current.reset(token)


def current_request_id() -> str:
    """Return the id of the request that this task serves, empty where it serves none."""
    return _current.get()


def log_request_id(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Put the id into a log line (a structlog processor)."""
    request_id = _current.get()
    if request_id:
        event.setdefault("request_id", request_id)
    return event


def quoted(message: str, request_id: str) -> str:
    """Return what a person is told, with the id that an operator can look for."""
    return f"{message} (request {request_id})" if request_id else message
