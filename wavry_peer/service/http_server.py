"""The HTTP server of every role: one error form, one set of headers, one patience with clients.

aiohttp alone answers broken HTTP in plain text, quotes what it was sent, names its version, and
logs a traceback for it; anybody who reaches the port could fill the log.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import structlog
from aiohttp import hdrs, web

from wavry_peer.protocol.errors import MessageError
from wavry_peer.protocol.http.api import MAX_BODY_BYTES, ErrorBody
from wavry_peer.protocol.http.codes import ERROR_HEADER, ErrorCode

from .http_listener import ConnectionBounds, HttpListener, TlsContext
from .listen_address import bound_to, format_endpoint
from .request_ids import (
    REQUEST_ID_HEADER,
    adopt_request_id,
    current_request_id,
    new_request_id,
)

__all__ = [
    "BODY_TOO_LARGE",
    "Handler",
    "add_secure_headers",
    "awaiting_client",
    "error_response",
    "errors_as_json",
    "json_response",
    "open_server",
    "route_template",
    "server_url",
]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

FIRST_REQUEST_TIMEOUT_S: Final = 10.0
"""A connection that brings no complete request head by then is closed (slow-header attack)."""

KEEPALIVE_TIMEOUT_S: Final = 75.0
"""Less where connections run short: see `HttpListener`."""
STALLED_S: Final = 30.0
"""A client that takes nothing of its answer for so long is gone, or holds the connection open."""
LINGERING_S: Final = 2.0
"""How long the rest of a refused body is read, so that the client sees the answer."""

BODY_TOO_LARGE: Final = (ErrorCode.BODY_TOO_LARGE, f"body is over {MAX_BODY_BYTES} bytes")
_EXPECTATION_FAILED: Final = (
    ErrorCode.EXPECTATION_FAILED,
    "only the expectation 100-continue is known",
)
_HTTP_ERRORS: Final = {
    404: (ErrorCode.NOT_FOUND, "there is nothing at this path"),
    405: (ErrorCode.METHOD_NOT_ALLOWED, "this path does not know this method"),
    413: BODY_TOO_LARGE,
    417: _EXPECTATION_FAILED,
}
_SECURE_HEADERS: Final = {
    hdrs.SERVER: "wavry",  # aiohttp would tell its version and Python's
    hdrs.CACHE_CONTROL: "no-store",  # answers hold tokens and leases
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

_log = structlog.get_logger(__name__)


def json_response(body: object, status: int = 200) -> web.Response:
    """Return a body as JSON."""
    return web.Response(
        body=msgspec.json.encode(body), status=status, content_type="application/json"
    )


def error_response(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return the error form as a response.

    The code is a header too: who opens a WebSocket gets to read no body.
    """
    response = json_response(ErrorBody(code, message), status)
    response.headers[ERROR_HEADER] = code
    response.headers.update(headers or {})
    return response


def route_template(request: web.Request) -> str:
    """Return the path template of the matched route, e.g. ``/v1/relays/{relay_id}``.

    It is a metric label: an outsider cannot mint one, all unknown paths are ``"unmatched"``.
    """
    resource = request.match_info.route.resource
    return "unmatched" if resource is None else resource.canonical


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into the error form."""
    try:
        return await handler(request)
    except MessageError as error:
        return error_response(error.code.status, error.code, str(error))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        known = _HTTP_ERRORS.get(error.status)
        code, message = known or (f"http_{error.status}", error.reason)
        kept = {"Allow": error.headers[hdrs.ALLOW]} if hdrs.ALLOW in error.headers else {}
        return error_response(error.status, code, message, kept)
    except ConnectionError:
        raise  # The client is gone: aiohttp ends the connection, and nobody reads an answer.
    except Exception as error:  # noqa: BLE001  # last resort: the client gets an id, the log the rest
        _log.error("unhandled_error", route=route_template(request), exc_info=error)
        return error_response(
            500,
            ErrorCode.INTERNAL_ERROR,
            f"this is our fault; quote request {current_request_id()} to the operator",
        )


async def add_secure_headers(_request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Put secure headers on an answer that does not set them (signal ``on_response_prepare``).

    And the id of its request.
    """
    response.headers[REQUEST_ID_HEADER] = current_request_id()
    for name, value in _SECURE_HEADERS.items():
        if name == hdrs.SERVER:  # aiohttp has set its own by now
            response.headers[name] = value
        else:
            response.headers.setdefault(name, value)


async def open_server(
    runner: web.AppRunner,
    where: socket.socket | tuple[str, int],
    bounds: ConnectionBounds,
    tls: TlsContext | None = None,
) -> HttpListener:
    """Serve an application.

    Args:
        runner: of the application, not yet set up.
        where: a socket that listens already, or host and port.
        bounds: of what is open at once.
        tls: gives what the next connection is served with; None where there is no TLS.

    Raises:
        OSError: the address cannot be listened on.
    """
    await runner.setup()
    server = runner.server
    assert server is not None  # noqa: S101  # setup() made it; for the type checker
    server.request_handler = _begun(server.request_handler)
    loop = asyncio.get_running_loop()

    def connect() -> _HttpConnection:
        return _HttpConnection(
            server,
            listener.forget,
            loop=loop,
            access_log=None,
            auto_decompress=False,  # a 64 KiB body may not unpack to gigabytes
            keepalive_timeout=KEEPALIVE_TIMEOUT_S,
            lingering_time=LINGERING_S,
        )

    if isinstance(where, tuple):
        listener = HttpListener.on(*where, connect, bounds, tls)
    else:
        listener = HttpListener(where, connect, bounds, tls)
    return listener


@contextmanager
def awaiting_client(request: web.Request) -> Iterator[None]:
    """Let the connection of a request go for another inside the block: only its client can act."""
    connection = request.protocol
    assert isinstance(connection, _HttpConnection)  # noqa: S101  # of open_server; for the type checker
    connection.is_held_up = True
    try:
        yield
    finally:
        connection.is_held_up = False


def server_url(sock: socket.socket, *, tls: bool = False) -> str:
    """Return the URL of a listening socket."""
    return f"{'https' if tls else 'http'}://{format_endpoint(*bound_to(sock))}"


class _HttpConnection(web.RequestHandler):
    """A client connection: aiohttp's, with our error form and deadlines for its client.

    Attributes:
        is_held_up: whether a request waits for its client; set by `awaiting_client`.
    """

    def __init__(
        self, server: web.Server, ended: Callable[["_HttpConnection"], None], **kwargs: Any
    ) -> None:
        super().__init__(server, **kwargs)
        self.is_held_up = False
        self._ended = ended
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock of the first request."""
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(FIRST_REQUEST_TIMEOUT_S, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the clock."""
        self.request_arrived()
        self._ended(self)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the clock of an answer that its client does not read."""
        super().pause_writing()
        self.request_arrived()
        self._deadline = asyncio.get_running_loop().call_later(STALLED_S, self.give_up)

    def resume_writing(self) -> None:
        """Stop the clock."""
        self.request_arrived()
        super().resume_writing()

    @property
    def awaits_client(self) -> bool:
        """Whether it waits for a request or the rest of one, or for its client to read."""
        if self._waiter is not None and not self._waiter.done():
            return True
        is_websocket = self._payload_parser is not None  # its writer has a time-out of its own
        return self.is_held_up or (self.writing_paused and not is_websocket)

    def give_up(self) -> None:
        """Close it at once, whether or not its client reads what was answered before."""
        transport = self.transport
        self.force_close()
        if transport is not None:
            transport.abort()

    def request_arrived(self) -> None:
        """Stop the clock: a request head is complete, and its answer may take as long as it needs.

        From now on the keep-alive time-out counts.
        """
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
        if isinstance(exc, ConnectionError):  # It went away while it sent; nobody reads this.
            _log.debug("client_left")
            return _last(400, ErrorCode.BAD_REQUEST, "the request ends in its middle")
        if status < 500:
            _log.debug("bad_http", status=status, cause=type(exc).__name__)
            return _last(status, ErrorCode.BAD_REQUEST, "this is not a valid HTTP request")
        _log.error("unhandled_error", status=status, detail=message, exc_info=exc)
        return _last(status, ErrorCode.INTERNAL_ERROR, "this is our fault")


def _last(status: int, code: ErrorCode, message: str) -> web.Response:
    """Return an error after which the connection ends; it passes no application."""
    request_id = {REQUEST_ID_HEADER: current_request_id() or new_request_id()}
    response = error_response(status, code, message, {**_SECURE_HEADERS, **request_id})
    response.force_close()
    return response


def _begun(handler: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what aiohttp calls for each request head; from here on the request has its id.

    Unknown Expect headers are answered here: aiohttp does it before any middleware, in plain text,
    and fails where the header is no UTF-8.
    """

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if isinstance(request.protocol, _HttpConnection):
            request.protocol.request_arrived()
        adopt_request_id(request.headers.get(REQUEST_ID_HEADER))
        expected = request.headers.get(hdrs.EXPECT, "")
        if expected and expected.lower() != "100-continue":
            return _last(417, *_EXPECTATION_FAILED)
        answer: web.StreamResponse = await handler(request)
        return answer

    return handle
