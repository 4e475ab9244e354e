"""HTTP building blocks of both services: bodies, errors, bearer tokens, client addresses.

Every failure leaves as ``{"error": code, "message": text}``; what went wrong inside stays inside.
"""

import asyncio
import contextlib
import math
import os
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import structlog
from aiohttp import hdrs, web

from wavry_cp.app.refusal import RefusedError
from wavry_peer.protocol.errors import LocalError, MessageError
from wavry_peer.protocol.http.api import MAX_BODY_BYTES, ErrorBody, decode_body
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.service.systemd import Notifier

from .client_address import IpNetwork, client_address, is_within, parse_networks
from .store_errors import StoreUnavailableError
from .token_files import TokenFile, TokenFileError

__all__ = [
    "MAX_BODY_BYTES",
    "Handler",
    "HttpListenError",
    "IpNetwork",
    "ReadyFileError",
    "TokenFile",
    "TokenFileError",
    "add_secure_headers",
    "bearer_token",
    "client_address",
    "error_middleware",
    "error_response",
    "is_within",
    "json_response",
    "listening",
    "new_application",
    "parse_networks",
    "rate_limited",
    "read_body",
    "read_optional_body",
    "route_template",
    "serve",
    "unauthorized",
]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
BodyType = TypeVar("BodyType", bound=msgspec.Struct)

BODY_TIMEOUT_S: Final = 15.0
"""A body of at most 64 KiB that takes longer is a client that holds connections open."""

FIRST_REQUEST_TIMEOUT_S: Final = 20.0
"""A connection that brings no complete request head by then is closed (slow-header attack)."""

KEEPALIVE_TIMEOUT_S: Final = 75.0
LINGERING_S: Final = 2.0
"""How long the rest of a refused body is read, so that the client sees the answer."""

SHUTDOWN_TIMEOUT_S: Final = 5.0
"""What a request under way gets on SIGTERM; longer than any call of ours takes."""

LISTEN_BACKLOG: Final = 1024
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

STORE_RETRY_AFTER_S: Final = 2

_SECURE_HEADERS: Final = {
    "Server": "wavry",  # aiohttp would tell its version and Python's
    "Cache-Control": "no-store",  # answers hold tokens and leases
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_HTTP_ERRORS: Final = {
    404: (ErrorCode.NOT_FOUND, "there is nothing at this path"),
    405: (ErrorCode.METHOD_NOT_ALLOWED, "this path does not know this method"),
    413: (ErrorCode.BODY_TOO_LARGE, f"body is over {MAX_BODY_BYTES} bytes"),
    417: (ErrorCode.EXPECTATION_FAILED, "only the expectation 100-continue is known"),
}

_log = structlog.get_logger(__name__)


def rate_limited(retry_after_s: float) -> RefusedError:
    """Return the 429 answer; Retry-After is in whole seconds, rounded up."""
    seconds = max(1, math.ceil(retry_after_s))
    return RefusedError(
        ErrorCode.RATE_LIMITED,
        f"too many requests; retry in {seconds} s",
        retry_after_s=seconds,
    )


def unauthorized(message: str = "a valid bearer token is required") -> RefusedError:
    """Return the 401 answer."""
    return RefusedError(ErrorCode.UNAUTHORIZED, message)


def json_response(body: msgspec.Struct, status: int = 200) -> web.Response:
    """A struct as JSON."""
    return web.Response(
        body=msgspec.json.encode(body), status=status, content_type="application/json"
    )


def error_response(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> web.Response:
    """The error form as a response."""
    response = json_response(ErrorBody(code, message), status)
    response.headers.update(headers or {})
    return response


async def read_body(request: web.Request, kind: type[BodyType]) -> BodyType:
    """Read and check a JSON body of at most 64 KiB.

    Raises:
        RefusedError: 413 ``body_too_large``, 400 ``invalid_body`` or ``invalid_json``,
            408 ``request_timeout``, 415 ``unsupported_encoding``.
    """
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise RefusedError(ErrorCode.UNSUPPORTED_ENCODING, "send the body without Content-Encoding")
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise RefusedError(*_HTTP_ERRORS[413])
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            raw = await request.read()
        return decode_body(kind, raw)
    except TimeoutError as error:
        raise RefusedError(ErrorCode.REQUEST_TIMEOUT, "body did not arrive in time") from error
    except web.HTTPRequestEntityTooLarge as error:
        raise RefusedError(*_HTTP_ERRORS[413]) from error
    except web.RequestPayloadError as error:
        raise RefusedError(
            ErrorCode.INVALID_BODY, "body has a broken transfer or content coding"
        ) from error
    except MessageError as error:
        raise RefusedError(error.code, str(error)) from error


async def read_optional_body(request: web.Request, kind: type[BodyType]) -> BodyType:
    """As `read_body`, for a body whose fields all have defaults and that may be left out."""
    if not request.body_exists:
        return kind()
    return await read_body(request, kind)


def bearer_token(request: web.Request) -> str | None:
    """The token of ``Authorization: Bearer …``, or None where there is none."""
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and token else None


def route_template(request: web.Request) -> str:
    """The path template of the matched route, e.g. ``/v1/relays/{relay_id}``.

    It is a metric label: an outsider cannot mint one, all unknown paths are ``"unmatched"``.
    """
    resource = request.match_info.route.resource
    return "unmatched" if resource is None else resource.canonical


# -- Errors --------------------------------------------------------------------------------


def _from_http_exception(error: web.HTTPException) -> web.Response:
    known = _HTTP_ERRORS.get(error.status)
    code, message = known or (f"http_{error.status}", error.reason)
    kept = {"Allow": error.headers[hdrs.ALLOW]} if hdrs.ALLOW in error.headers else {}
    return error_response(error.status, code, message, kept)


@web.middleware
async def error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into the error form."""
    try:
        return await handler(request)
    except RefusedError as error:
        return error_response(error.status, error.code, str(error), error.headers())
    except MessageError as error:
        return error_response(error.code.status, error.code, str(error))
    except StoreUnavailableError as error:
        _log.error("store_unavailable", route=route_template(request), cause=str(error))
        return error_response(
            503,
            ErrorCode.STORE_UNAVAILABLE,
            "the store cannot answer now; try again",
            {"Retry-After": str(STORE_RETRY_AFTER_S)},
        )
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _from_http_exception(error)
    except ConnectionError:
        raise  # The client is gone: aiohttp ends the connection, and nobody reads an answer.
    except Exception as error:  # noqa: BLE001  # last resort: the client gets an id, the log the rest
        error_id = secrets.token_hex(4)
        _log.error(
            "unhandled_error", error_id=error_id, route=route_template(request), exc_info=error
        )
        return error_response(
            500,
            ErrorCode.INTERNAL_ERROR,
            f"this is our fault; quote error id {error_id} to the operator",
        )


async def add_secure_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Put secure headers on an answer that does not set them (signal ``on_response_prepare``)."""
    if isinstance(request.protocol, HttpConnection):
        request.protocol.request_arrived()
    for name, value in _SECURE_HEADERS.items():
        if name == hdrs.SERVER:  # aiohttp has set its own by now
            response.headers[name] = value
        else:
            response.headers.setdefault(name, value)


def new_application(*middlewares: Any, observers: Sequence[Any] = ()) -> web.Application:
    """An application with bounded bodies, the error form and secure headers.

    Args:
        middlewares: run inside the error middleware, the first one outermost; may raise
            RefusedError.
        observers: middlewares that run outside of it and see every answer as it is sent.
    """
    app = web.Application(
        middlewares=[*observers, error_middleware, *middlewares], client_max_size=MAX_BODY_BYTES
    )
    app.on_response_prepare.append(add_secure_headers)
    return app


# -- Running as a service ------------------------------------------------------------------


class HttpListenError(LocalError):
    """The address cannot be listened on; no other port is ever taken in its place."""


class ReadyFileError(LocalError):
    """The file of ``--ready-file`` cannot be written."""


class HttpConnection(web.RequestHandler):
    """A client connection: aiohttp's, with our error form and a deadline for the first request."""

    def __init__(self, server: web.Server, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock of the first request."""
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(FIRST_REQUEST_TIMEOUT_S, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the clock."""
        self.request_arrived()
        super().connection_lost(exc)

    def request_arrived(self) -> None:
        """The first request is being answered; from now on the keep-alive time-out counts."""
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
        if request.writer.output_size > 0:
            raise ConnectionError("answer was already begun")
        if isinstance(exc, ConnectionError):  # It went away while it sent; nobody reads this.
            _log.debug("client_left")
            response = error_response(400, ErrorCode.BAD_REQUEST, "the request ends in its middle")
        elif status < 500:
            _log.debug("bad_http", status=status, cause=type(exc).__name__)
            response = error_response(
                status, ErrorCode.BAD_REQUEST, "this is not a valid HTTP request"
            )
        else:
            _log.error("unhandled_error", status=status, detail=message, exc_info=exc)
            response = error_response(status, ErrorCode.INTERNAL_ERROR, "this is our fault")
        response.headers.update(_SECURE_HEADERS)
        response.force_close()
        return response


def _expectations_refused(handler: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Answer unknown Expect headers ourselves.

    aiohttp does it before any middleware, in plain text, and fails where the header is no UTF-8.
    """

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        expected = request.headers.get(hdrs.EXPECT, "")
        if expected and expected.lower() != "100-continue":
            response = error_response(417, *_HTTP_ERRORS[417])
            response.headers.update(_SECURE_HEADERS)
            response.force_close()
            return response
        answer: web.StreamResponse = await handler(request)
        return answer

    return handle


@asynccontextmanager
async def listening(app: web.Application, host: str, port: int) -> AsyncIterator[str]:
    """Serve an application inside the block; gives its URL.

    At the end of the block it listens no more, requests under way get 5 seconds, and the
    application's own clean-up has run.

    Args:
        app: from `new_application`.
        host: address to listen on.
        port: 0 takes a free one; any other is taken or refused.

    Raises:
        ListenError: the address cannot be listened on.
    """
    loop = asyncio.get_running_loop()
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
    server: asyncio.Server | None = None
    try:
        await runner.setup()
        handler = runner.server
        assert handler is not None  # noqa: S101  # setup() made it; for the type checker
        handler.request_handler = _expectations_refused(handler.request_handler)
        try:
            server = await loop.create_server(
                lambda: HttpConnection(
                    handler,
                    loop=loop,
                    access_log=None,
                    auto_decompress=False,  # a 64 KiB body may not unpack to gigabytes
                    keepalive_timeout=KEEPALIVE_TIMEOUT_S,
                    lingering_time=LINGERING_S,
                ),
                host,
                port,
                backlog=LISTEN_BACKLOG,
            )
        except OSError as error:
            raise HttpListenError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        yield _url(server.sockets[0].getsockname())
    finally:
        if server is not None:
            server.close()
        await runner.cleanup()


async def serve(
    app: web.Application, host: str, port: int, ready_file: Path | None, role: str
) -> None:
    """Serve until SIGTERM or SIGINT, then end as `listening` does; a service manager is told.

    Args:
        app: from `new_application`.
        host: address to listen on.
        port: 0 takes a free one; any other is taken or refused.
        ready_file: where ``{"url", "pid"}`` is written once serving; removed at the end.
        role: for the log.

    Raises:
        ListenError: the address cannot be listened on.
        ReadyFileError: `ready_file` cannot be written.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    notifier = Notifier.from_environ(os.environ, os.getpid())
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    try:
        async with listening(app, host, port) as url:
            if ready_file is not None:
                _write_ready_file(ready_file, url)
            _log.info("serving", service=role, url=url)
            notifier.ready(f"Serving {url}")
            feeding = asyncio.create_task(notifier.keep_watchdog())
            await stop.wait()
            feeding.cancel()
            _log.info("stopping", service=role)
            notifier.stopping("Stopping")
    finally:
        if ready_file is not None:
            with contextlib.suppress(OSError):  # gone, or never to be written at all
                ready_file.unlink()
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)


def _url(address: tuple[Any, ...]) -> str:
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"http://{host}:{address[1]}"


def _write_ready_file(path: Path, url: str) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(msgspec.json.encode({"url": url, "pid": os.getpid()}))
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise ReadyFileError(f"--ready-file {path}: {error.strerror}") from error
