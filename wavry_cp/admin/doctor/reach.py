"""One HTTP question to a service, and how far it got: the way a call fails names its cause."""

import asyncio
import email.utils
import errno
import time
from dataclasses import dataclass
from typing import Final, Self, TypeVar

import aiohttp
import msgspec

from wavry_cp.admin.client import MAX_ANSWER_BYTES
from wavry_peer.service.http_client import CallError, JsonCaller

__all__ = ["Asker", "HttpAnswer"]

CONNECT_TIMEOUT_S: Final = 2.0
ANSWER_TIMEOUT_S: Final = 4.0
"""Every call of a service that is well ends within 2 s."""

_TEXTS: Final = {
    "refused": "connection refused: its host answers, but nothing listens there",
    "no_connection": "no connection within 2 s: its host is down, or something drops the packets",
    "silent": "it takes the connection and says nothing: the process hangs",
    "no_name": "its host name is not known here",
    "no_route": "this machine has no route to it",
    "broken": "the connection broke off: is this really the service?",
    "too_large": "its answer is too large to be one of ours: is this really the service?",
    "bad_url": "the address is no URL",
}

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What came of a question.

    Attributes:
        reach: ``ok`` (there was an answer, of whatever status), or how it failed.
        status: HTTP status.
        raw: body.
        asked_s: unix seconds by our clock, in the middle between question and answer.
        date_s: the answer's Date header, unix seconds, or None.
        fault: why there was no answer, as every caller says it.
    """

    reach: str
    status: int = 0
    raw: bytes = b""
    asked_s: float = 0.0
    date_s: float | None = None
    fault: str = ""

    @property
    def is_reached(self) -> bool:
        """There was an answer."""
        return self.reach == "ok"

    @property
    def text(self) -> str:
        """For people: how it failed, or the status."""
        return _TEXTS.get(self.reach) or self.fault or f"status {self.status}"

    def read(self, kind: type[Kind], *statuses: int) -> Kind | None:
        """Return the body, where the status is one of these (200 if none is named) and it fits."""
        if not self.is_reached or self.status not in (statuses or (200,)):
            return None
        try:
            return msgspec.json.decode(self.raw, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None


class Asker:
    """Asks over one HTTP session; use it with ``async with``."""

    def __init__(self) -> None:
        self._http = JsonCaller(
            aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S),
            max_bytes=MAX_ANSWER_BYTES,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def get(self, base_url: str, path: str, token: str | None = None) -> HttpAnswer:
        """Ask; never raises for what the service does."""
        began_s, began_wall_s = time.monotonic(), time.time()
        try:
            answer = await self._http.call("GET", base_url.rstrip("/") + path, token=token)
        except CallError as error:
            return HttpAnswer(_reach_of(error.error), fault=str(error))
        took_s = time.monotonic() - began_s
        return HttpAnswer(
            "ok",
            answer.status,
            answer.raw,
            began_wall_s + took_s / 2,
            _date_s(answer.headers.get("Date", "")),
        )


def _reach_of(error: Exception | None) -> str:
    match error:
        case None:
            return "too_large"
        case aiohttp.ServerTimeoutError():
            return "no_connection"
        case asyncio.TimeoutError():
            return "silent"
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError():
            return "bad_url"
        case aiohttp.ClientSSLError():
            return "tls"
        case aiohttp.ClientConnectorDNSError():
            return "no_name"
        case aiohttp.ClientConnectorError():
            return _reach_of_errno(error.os_error.errno)
        case ValueError():
            return "bad_url"
    return "broken"


def _reach_of_errno(number: int | None) -> str:
    if number == errno.ECONNREFUSED:
        return "refused"
    if number in (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return "no_route"
    # The host's neighbours know no way to it: it is off, or unplugged.
    return "no_connection" if number in (errno.EHOSTUNREACH, errno.ETIMEDOUT) else "broken"


def _date_s(text: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None
