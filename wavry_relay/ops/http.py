"""HTTP of the ops surface: every failure leaves as ``{"error": code, "message": text}``.

aiohttp alone answers broken HTTP in plain text, quotes what it was sent, names its version, and
logs a traceback for it; anybody who reaches the port could fill the log.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import structlog
from aiohttp import hdrs, web

__all__ = ["Handler", "OpsConnection", "errors_as_json", "expectations_refused", "json_answer"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_HEADERS: Final = {
    hdrs.SERVER: "wavry",
    hdrs.CACHE_CONTROL: "no-store",
    "X-Content-Type-Options": "nosniff",
}
_HTTP_ERRORS: Final = {
    404: ("not_found", "use /health, /ready or /metrics"),
    405: ("method_not_allowed", "use GET"),
}
_FIRST_REQUEST_TIMEOUT_S: Final = 20.0
"""A connection that brings no complete request head by then is closed (slow-header attack)."""

_log = structlog.get_logger(__name__)


def json_answer(body: object, status: int = 200) -> web.Response:
    """A body as JSON, with the headers of every answer."""
    return web.Response(
        body=msgspec.json.encode(body),
        status=status,
        content_type="application/json",
        headers=_HEADERS,
    )


def _failure(status: int, code: str, message: str) -> web.Response:
    return json_answer({"error": code, "message": message}, status)


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into the error form."""
    try:
        response = await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        code, message = _HTTP_ERRORS.get(error.status, (f"http_{error.status}", error.reason))
        response = _failure(error.status, code, message)
        if hdrs.ALLOW in error.headers:
            response.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
    except ConnectionError:
        raise  # The client is gone: aiohttp ends the connection, and nobody reads an answer.
    except Exception as error:  # noqa: BLE001  # last resort: the client gets an id, the log the rest
        error_id = secrets.token_hex(4)
        _log.error("unhandled_error", error_id=error_id, exc_info=error)
        return _failure(500, "internal_error", f"this is our fault; look for {error_id} in the log")
    response.headers.update(_HEADERS)
    return response


class OpsConnection(web.RequestHandler):
    """A client connection: aiohttp's, with our error form and a deadline for the first request."""

    def __init__(self, server: web.Server, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock of the first request."""
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(_FIRST_REQUEST_TIMEOUT_S, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the clock."""
        self.request_arrived()
        super().connection_lost(exc)

    def request_arrived(self) -> None:
        """A request is being answered; from now on the keep-alive time-out counts."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Keep broken transfer codings (the client's fault) out of the errors that wake people."""
        error = kw.get("exc_info")
        if isinstance(error, web.RequestPayloadError):
            _log.debug("bad_http", cause=type(error).__name__)
        else:
            _log.error("unhandled_error", detail=args[0] if args else "", exc_info=error)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer bytes that are no HTTP in our error form; they are no error of ours."""
        self.request_arrived()
        if request.writer.output_size > 0:
            raise ConnectionError("answer was already begun")
        if status < 500:
            _log.debug("bad_http", status=status, cause=type(exc).__name__)
            response = _failure(status, "bad_request", "this is not a valid HTTP request")
        else:
            _log.error("unhandled_error", status=status, detail=message, exc_info=exc)
            response = _failure(status, "internal_error", "this is our fault")
        response.force_close()
        return response


def expectations_refused(handler: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Answer unknown Expect headers ourselves.

    aiohttp does it before any middleware, in plain text, and fails where the header is no UTF-8.
    """

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if isinstance(request.protocol, OpsConnection):
            request.protocol.request_arrived()
        expected = request.headers.get(hdrs.EXPECT, "")
        if expected and expected.lower() != "100-continue":
            response = _failure(
                417, "expectation_failed", "only the expectation 100-continue is known"
            )
            response.force_close()
            return response
        answer: web.StreamResponse = await handler(request)
        return answer

    return handle
