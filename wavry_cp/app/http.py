"""HTTP building blocks of both services: bodies, errors, bearer tokens, client addresses.

Every failure leaves as ``{"error": code, "message": text}``; what went wrong inside stays inside.
"""

import asyncio
import contextlib
import math
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import structlog
from aiohttp import hdrs, web

from wavry_cp.app.refusal import RefusedError
from wavry_peer.protocol.errors import ListenError, LocalError, MessageError
from wavry_peer.protocol.http.api import MAX_BODY_BYTES, decode_body
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.service.http_listener import ConnectionBounds, HttpListener
from wavry_peer.service.http_server import (
    BODY_TOO_LARGE,
    Handler,
    add_secure_headers,
    awaiting_client,
    error_response,
    errors_as_json,
    json_response,
    open_server,
    route_template,
    server_url,
)
from wavry_peer.service.listen_address import why_not_bound
from wavry_peer.service.systemd import Notifier

from .client_address import IpNetwork, client_address, is_within, parse_networks
from .store_errors import StoreUnavailableError
from .token_files import TokenFile, TokenFileError
from .transport.tls import TlsFiles

__all__ = [
    "CONNECTION_BOUNDS",
    "MAX_BODY_BYTES",
    "NOTE_REFUSAL",
    "TLS",
    "Handler",
    "IpNetwork",
    "ReadyFileError",
    "TokenFile",
    "TokenFileError",
    "bearer_token",
    "client_address",
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

BodyType = TypeVar("BodyType", bound=msgspec.Struct)

CONNECTION_BOUNDS: Final = web.AppKey("connection_bounds", ConnectionBounds)
"""Where an application says how many connections it takes."""

NOTE_REFUSAL: Final[web.AppKey[Callable[[web.Request, RefusedError], None]]] = web.AppKey(
    "note_refusal"
)
"""Told of every call that is refused, where an application sets it."""

TLS: Final = web.AppKey("tls", TlsFiles)
"""Where an application says with which certificate it is served; without it, by plain HTTP."""

BODY_TIMEOUT_S: Final = 15.0
"""A body of at most 64 KiB that takes longer is a client that holds connections open."""

SHUTDOWN_TIMEOUT_S: Final = 5.0
"""What a request under way gets on SIGTERM; longer than any call of ours takes."""

_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

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


async def read_body(request: web.Request, kind: type[BodyType]) -> BodyType:
    """Read and check a JSON body of at most 64 KiB.

    Raises:
        RefusedError: 413 ``body_too_large``, 400 ``invalid_body`` or ``invalid_json``,
            408 ``request_timeout``, 415 ``unsupported_encoding``.
    """
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise RefusedError(ErrorCode.UNSUPPORTED_ENCODING, "send the body without Content-Encoding")
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise RefusedError(*BODY_TOO_LARGE)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            with awaiting_client(request):
                raw = await request.read()
        return decode_body(kind, raw)
    except TimeoutError as error:
        raise RefusedError(ErrorCode.REQUEST_TIMEOUT, "body did not arrive in time") from error
    except web.HTTPRequestEntityTooLarge as error:
        raise RefusedError(*BODY_TOO_LARGE) from error
    except web.RequestPayloadError as error:
        raise RefusedError(
            ErrorCode.INVALID_BODY, "body has a broken transfer or content coding"
        ) from error
    except MessageError as error:
        raise RefusedError(error.code, str(error)) from error


async def read_optional_body(request: web.Request, kind: type[BodyType]) -> BodyType:
    """Read as `read_body` does a body whose fields all have defaults and that may be left out."""
    if not request.body_exists:
        return kind()
    return await read_body(request, kind)


def bearer_token(request: web.Request) -> str | None:
    """Return the token of ``Authorization: Bearer …``, or None where there is none."""
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and token else None


# -- Errors --------------------------------------------------------------------------------


@web.middleware
async def _refusals_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a rule refuses, and what the store cannot do now, into the error form."""
    try:
        return await handler(request)
    except RefusedError as error:
        refusal = error
        if NOTE_REFUSAL in request.app:
            request.app[NOTE_REFUSAL](request, error)
    except StoreUnavailableError as error:
        _log.error("store_unavailable", route=route_template(request), cause=str(error))
        refusal = RefusedError(
            ErrorCode.STORE_UNAVAILABLE, "the store cannot answer now; try again"
        )
    return error_response(refusal.status, refusal.code, str(refusal), refusal.headers())


def new_application(*middlewares: Any) -> web.Application:
    """Return an application with bounded bodies, the error form and secure headers.

    Args:
        middlewares: run inside the error middleware, the first one outermost; may raise
            RefusedError.
    """
    app = web.Application(
        middlewares=[errors_as_json, _refusals_as_json, *middlewares],
        client_max_size=MAX_BODY_BYTES,
    )
    app.on_response_prepare.append(add_secure_headers)
    return app


# -- Running as a service ------------------------------------------------------------------


class ReadyFileError(LocalError):
    """The file of ``--ready-file`` cannot be written."""


@asynccontextmanager
async def listening(
    app: web.Application, host: str, port: int, variable: str = "another address"
) -> AsyncIterator[str]:
    """Serve an application inside the block; gives its URL.

    At the end of the block it listens no more, requests under way get 5 seconds, and the
    application's own clean-up has run.

    Args:
        app: from `new_application`.
        host: address to listen on.
        port: 0 takes a free one; any other is taken or refused.
        variable: the setting that names the address.

    Raises:
        ListenError: the address cannot be listened on.
    """
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
    server: HttpListener | None = None
    try:
        try:
            bounds, tls = app.get(CONNECTION_BOUNDS, ConnectionBounds()), app.get(TLS)
            server = await open_server(
                runner, (host, port), bounds, None if tls is None else tls.context
            )
        except OSError as error:
            reason = why_not_bound(error, host, port, variable)
            raise ListenError(f"cannot listen: {reason}") from error
        yield server_url(server.sock, tls=tls is not None)
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
        role: of the log, and of the setting that names the address.

    Raises:
        ListenError: the address cannot be listened on.
        ReadyFileError: `ready_file` cannot be written.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    notifier = Notifier.from_environ(os.environ, os.getpid())
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    feeding: asyncio.Task[None] | None = None
    try:
        variable = f"WAVRY_{role.upper()}_LISTEN"
        async with listening(app, host, port, variable) as url:
            if ready_file is not None:
                _write_ready_file(ready_file, url)
            _log.info("serving", service=role, url=url)
            notifier.ready(f"Serving {url}")
            feeding = asyncio.create_task(notifier.keep_watchdog())
            await stop.wait()
            _log.info("stopping", service=role)
            notifier.stopping("Stopping")
    finally:
        if feeding is not None:  # Only now: the requests under way have their time too.
            feeding.cancel()
        if ready_file is not None:
            with contextlib.suppress(OSError):  # gone, or never to be written at all
                ready_file.unlink()
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)


def _write_ready_file(path: Path, url: str) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(msgspec.json.encode({"url": url, "pid": os.getpid()}))
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise ReadyFileError(f"--ready-file {path}: {error.strerror}") from error
