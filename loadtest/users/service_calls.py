"""HTTP calls of gateway and master by locust's own client, with the bodies of the protocol."""

import functools
import ssl
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec
from locust.contrib.fasthttp import FastHttpSession

from loadtest.run.load_run import LoadFailure
from wavry_peer.protocol.errors import MessageError
from wavry_peer.protocol.http import api

__all__ = ["ServiceCalls", "answer", "nothing", "tls_context"]

Answer = TypeVar("Answer")
Struct = TypeVar("Struct", bound=msgspec.Struct)
UNREACHABLE: Final = 0


@functools.cache
def tls_context(cafile: str | None = None) -> ssl.SSLContext:
    """Check certificates by the roots that this machine trusts.

    Made once, because reading the roots takes tens of ms.  ``SSL_CERT_FILE`` names other roots, as
    for every program that uses OpenSSL.

    Args:
        cafile: what the HTTP client would take, which brings its own roots; not used.
    """
    del cafile
    return ssl.create_default_context()


def answer(kind: type[Struct]) -> Callable[[int, bytes], Struct]:
    """Read a body of one kind."""
    return lambda _status, raw: api.decode_body(kind, raw)


def nothing(_status: int, _raw: bytes) -> None:
    """Read no body."""


class ServiceCalls:
    """Calls of one service; locust counts and times each of them under its `name`.

    Args:
        client: of the user.
    """

    def __init__(self, client: FastHttpSession) -> None:
        self._client = client

    def call(
        self,
        method: str,
        path: str,
        read: Callable[[int, bytes], Answer],
        *,
        body: msgspec.Struct | None = None,
        token: str | None = None,
        name: str | None = None,
    ) -> Answer:
        """Make a call.

        Args:
            method: of HTTP.
            path: on the service.
            read: makes the answer of status and body of a 2xx.
            body: to send as JSON.
            token: bearer token.
            name: for the statistics where the path holds an id.

        Raises:
            LoadFailure: refused (the reason is the service's code), or no answer.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        with self._client.request(
            method,
            path,
            name=name or path,
            data=None if body is None else msgspec.json.encode(body),  # type: ignore[arg-type]  # takes bytes
            headers=headers,
            catch_response=True,
            # A redirect would carry the token to wherever it points.
            allow_redirects=False,
        ) as response:
            failure = _failure(response)
            if failure is None:
                try:
                    result = read(int(response.status_code), response.content or b"")
                except MessageError as error:
                    failure = LoadFailure(f"answer does not fit: {error.code}")
                else:
                    response.success()
                    return result
            response.failure(failure)
        raise failure


def _failure(response: Any) -> LoadFailure | None:
    status = int(response.status_code)
    if 200 <= status < 300:
        return None
    if status == UNREACHABLE:
        return LoadFailure(f"no answer: {type(response.error).__name__}")
    try:
        code = msgspec.json.decode(response.content or b"", type=api.ErrorBody).error
    except msgspec.MsgspecError:
        code = f"http_{status}"
    wait = (response.headers or {}).get("Retry-After", "")
    return LoadFailure(code, retry_after_s=float(wait) if wait.isdecimal() else None)
