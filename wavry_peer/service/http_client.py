"""The JSON caller of every role: one question, one bounded answer, and failures that say why.

aiohttp's ``content.read(n)`` gives what is buffered, at most `n` bytes and often far fewer, so
whoever wants a whole body has to loop.  It is done here, once.
"""

from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from wavry_peer.protocol.errors import MessageError, ProtocolError
from wavry_peer.protocol.http.api import MAX_BODY_BYTES, ErrorBody
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.redaction import fault_text

from .connection_faults import connection_fault
from .listen_address import is_this_machine
from .request_ids import (
    REQUEST_ID_HEADER,
    current_request_id,
    new_request_id,
    request_id_of,
)

__all__ = ["CallError", "JsonAnswer", "JsonCaller", "is_readable_on_the_way"]

Kind = TypeVar("Kind")


def is_readable_on_the_way(url: str) -> bool:
    """Return whether a URL is plain ``http://`` to another machine.

    Tokens, passwords and leases that go there can be read and changed by everybody on the way.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return False  # No URL: whoever takes it says so.
    return parts.scheme == "http" and not is_this_machine(parts.hostname or "")


class CallError(ProtocolError):
    """The call brought no answer, or one that is too large.

    Attributes:
        error: what aiohttp raised; None where the answer was too large.
        request_id: under which the service may know the question.
    """

    def __init__(self, cause: str, error: Exception | None = None, request_id: str = "") -> None:
        super().__init__(cause)
        self.error = error
        self.request_id = request_id


@dataclass(frozen=True, slots=True)
class JsonAnswer:
    """One answer, of whatever status.

    Attributes:
        status: HTTP status.
        raw: body; of a failure it may be cut at the bound.
        headers: of the answer, by the names that HTTP gives them.
        asked_as: id that the question was sent under.
    """

    status: int
    raw: bytes
    headers: Any
    asked_as: str = ""

    @property
    def ok(self) -> bool:
        """Tell whether the status is 2xx."""
        return 200 <= self.status < 300

    @property
    def request_id(self) -> str:
        """Id that the service knows the question by."""
        return request_id_of(self.headers.get(REQUEST_ID_HEADER)) or self.asked_as

    def read(self, kind: type[Kind]) -> Kind:
        """Return the body as `kind`.

        Raises:
            MessageError: ``invalid_json`` or ``invalid_body``.
        """
        try:
            return msgspec.json.decode(self.raw, type=kind)
        except msgspec.ValidationError as error:
            # Without the cause: it repeats what the server sent, and causes are logged.
            raise MessageError(ErrorCode.INVALID_BODY, fault_text(error)) from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise MessageError(ErrorCode.INVALID_JSON, "body is not valid JSON") from None

    def error_body(self) -> ErrorBody | None:
        """Return the reason of a failure, None where the body is not one of ours."""
        try:
            return self.read(ErrorBody)
        except MessageError:
            return None

    def retry_after_s(self) -> float | None:
        """Return the seconds that the server asks us to wait."""
        text = self.headers.get("Retry-After", "")
        return float(text) if text.isdecimal() else None


class JsonCaller:
    """Makes calls; it needs a running event loop.

    It follows no redirect, takes no cookie and no proxy of the environment: a token is for one
    server and must not be carried elsewhere.

    Args:
        timeout: of each call.
        max_bytes: of an answer.
    """

    def __init__(self, timeout: aiohttp.ClientTimeout, *, max_bytes: int = MAX_BODY_BYTES) -> None:
        self._timeout = timeout
        self._max_bytes = max_bytes
        self.session: Final = aiohttp.ClientSession(
            timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self.session.close()

    async def call(
        self,
        method: str,
        url: str,
        body: msgspec.Struct | None = None,
        *,
        token: str | None = None,
        max_bytes: int | None = None,
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> JsonAnswer:
        """Make one call.

        Args:
            method: of HTTP.
            url: of server and path.
            body: sent as JSON.
            token: bearer token.
            max_bytes: of this answer.
            timeout: of this call.

        Raises:
            CallError: no answer, or a good one over the bound.
        """
        request_id = current_request_id() or new_request_id()
        headers = {REQUEST_ID_HEADER: request_id}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        limit = self._max_bytes if max_bytes is None else max_bytes
        try:
            async with self.session.request(
                method,
                url,
                data=None if body is None else msgspec.json.encode(body),
                headers=headers,
                allow_redirects=False,
                timeout=self._timeout if timeout is None else timeout,
            ) as response:
                raw = await _read_bounded(response.content, limit)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise CallError(connection_fault(error), error, request_id) from error
        if len(raw) > limit and response.status < 300:
            raise CallError(f"the answer is over {limit} bytes", None, request_id)
        return JsonAnswer(response.status, raw, response.headers, request_id)


async def _read_bounded(content: aiohttp.StreamReader, limit: int) -> bytes:
    """Return the whole body, or one byte more than `limit`: that shows one that is too long."""
    raw = bytearray()
    while len(raw) <= limit and (part := await content.read(limit + 1 - len(raw))):
        raw += part
    return bytes(raw)
