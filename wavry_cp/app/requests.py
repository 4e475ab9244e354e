"""What is noted of every request: metrics, and the access log where the operator wants one."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import structlog
from aiohttp import web

from wavry_peer.service.logs import mask_address
from wavry_peer.service.metrics import OTHER

from .client_address import IpNetwork, client_address
from .http import Handler, route_template

__all__ = ["ACCESS_LOG_DOC", "AccessLog", "AccessLogMode", "check_access_log", "observe_requests"]

ACCESS_LOG_DOC: Final = (
    "Access log: off, on, or sampled (one request in a hundred, and each that fails by our fault)."
)
SAMPLE: Final = 100
_METHODS: Final = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})
_STARTED_S: Final = web.RequestKey("started_s", float)

_log = structlog.get_logger(__name__)


class AccessLogMode(StrEnum):
    """Which requests leave a line."""

    OFF = "off"
    SAMPLED = "sampled"
    ON = "on"


def check_access_log(variable: str, text: str) -> list[str]:
    """Return the fault of a setting, none where it fits."""
    modes = tuple(AccessLogMode)
    return [] if text in modes else [f"{variable} must be {', '.join(modes)}"]


@dataclass(slots=True)
class AccessLog:
    """Writes a line when the head of an answer leaves; never a path, a token or a full address.

    Attributes:
        mode: which requests leave a line.
        trusted_proxies: whose word about a client's address counts.
    """

    mode: AccessLogMode
    trusted_proxies: tuple[IpNetwork, ...]
    _seen: int = 0

    def note(self, request: web.Request, method: str, status: int, seconds: float) -> None:
        """Write the line of a request, where it shall have one."""
        if self.mode is AccessLogMode.OFF:
            return
        self._seen += 1
        if self.mode is AccessLogMode.SAMPLED and status < 500 and self._seen % SAMPLE:
            return
        _log.info(
            "request",
            method=method,
            route=route_template(request),
            status=status,
            duration_ms=round(seconds * 1000, 1),
            client=mask_address(client_address(request, self.trusted_proxies)),
        )


def observe_requests(
    app: web.Application,
    count: Callable[[str, str, int, float], None],
    access_log: AccessLog,
    monotonic_s: Callable[[], float],
) -> None:
    """Tell of each request of an application when the head of its answer leaves.

    A WebSocket is told when it opens: how long it stays says nothing about the service.

    Args:
        app: not yet started.
        count: takes route template, method, status and seconds; an invented method is "other".
        access_log: where the line goes.
        monotonic_s: time.
    """

    @web.middleware
    async def begin(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[_STARTED_S] = monotonic_s()
        return await handler(request)

    async def note(request: web.Request, response: web.StreamResponse) -> None:
        method = request.method if request.method in _METHODS else OTHER
        seconds = monotonic_s() - request[_STARTED_S]
        count(route_template(request), method, response.status, seconds)
        access_log.note(request, method, response.status, seconds)

    app.middlewares.insert(0, begin)
    app.on_response_prepare.append(note)
