"""The route table: one row for each call, and the only way in which a call reaches its function.

A row says who may call, which body is read and which answer leaves.  `bind` makes aiohttp's routes
of the rows: it asks the service's `Guard` before anything else, reads the body and writes the
answer.  A function can therefore not forget its check, and docs/http.md and /openapi.json, which
are made of the same rows, cannot differ from what the service does.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from enum import StrEnum
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec
from aiohttp import web

from wavry_peer.protocol.http.codes import ErrorCode

from .http import Handler, json_response, read_body, read_optional_body

__all__ = ["Admitted", "CallerKind", "Guard", "Route", "bind", "caller_of"]

Service = TypeVar("Service")
_FIXED: Final = re.compile(r"\{\w+:([\w-]+)\}")


class CallerKind(StrEnum):
    """Who may call; a row that names several lets each of them in."""

    ANYONE = "anyone"
    """Alone: no token is looked at.  Beside another: a caller who shows none."""
    NETWORK = "metrics network"
    USER = "user"
    LOGIN = "login"
    """Who shows a user's token, whether or not he may do anything with it: to log out."""
    RELAY = "relay"
    """The relay that path or query names."""
    RELAY_IN_BODY = "relay of the body"
    """Shows a relay token; the body names the relay, and the registry compares."""
    SERVICE = "service"
    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Admitted:
    """Who calls: `name` is the user's, the relay's or the admin token's."""

    kind: CallerKind
    name: str = ""


class Guard(Protocol):
    """Asked before every call of a service."""

    async def admit(self, request: web.Request, callers: Sequence[CallerKind]) -> Admitted:
        """Return who calls, where he is one of `callers`; else raise what the service answers."""
        ...


_CALLER: Final = web.RequestKey("caller", Admitted)


def caller_of(request: web.Request) -> Admitted:
    """Return whom the guard let in."""
    return request[_CALLER]


@dataclass(frozen=True)  # A generic class with slots cannot be frozen in Python 3.11.
class Route(Generic[Service]):
    """One call.

    Attributes:
        method: HTTP method.
        path: aiohttp's; ``{switch:lockdown}`` matches that word only.
        callers: who may call.
        function: of (service, request), and of the body where there is one; gives `answer`, or a
            response of its own.
        sentence: what the call does.
        body: struct of the request.
        body_optional: the body may be left out; all its fields have defaults.
        query: names of the parameters.
        answer: struct of the answer; without one the answer is 204 or of `media_type`.
        status: of the answer.
        media_type: of an answer that is not a struct of ours.
        errors: codes beside those that `callers` and `body` imply.
        in_lockdown: stays open in a lockdown.
        websocket: the call becomes a WebSocket; ``answer`` is then the answer to who asks for none.
        before: run after the guard and before the body is read, e.g. a rate limit.
        refused: told of every error, the guard's too, e.g. to count it.
    """

    method: str
    path: str
    callers: tuple[CallerKind, ...]
    function: Callable[..., Awaitable[Any]]
    sentence: str
    _: KW_ONLY
    body: type[msgspec.Struct] | None = None
    body_optional: bool = False
    query: tuple[str, ...] = ()
    answer: type[msgspec.Struct] | None = None
    status: int = 200
    media_type: str = ""
    errors: tuple[ErrorCode, ...] = ()
    in_lockdown: bool = False
    websocket: bool = False
    before: Callable[[Service, web.Request], None] | None = None
    refused: Callable[[Service, Exception], None] | None = None

    @property
    def shown_path(self) -> str:
        """The path as a caller writes it: ``{switch:lockdown}`` is ``lockdown``."""
        return _FIXED.sub(r"\1", self.path)


def bind(
    routes: Sequence[Route[Service]], service: Service, guard: Guard
) -> list[web.AbstractRouteDef]:
    """Make aiohttp's routes of a table."""
    return [
        web.RouteDef(
            route.method,
            route.path,
            _handler(route, service, guard),
            {"allow_head": not route.websocket or route.answer is not None}
            if route.method == "GET"
            else {},
        )
        for route in routes
    ]


def _handler(route: Route[Service], service: Service, guard: Guard) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            request[_CALLER] = await guard.admit(request, route.callers)
            if route.before is not None:
                route.before(service, request)
            if route.body is None:
                answer = await route.function(service, request)
            else:
                read = read_optional_body if route.body_optional else read_body
                answer = await route.function(service, request, await read(request, route.body))
        except Exception as error:
            if route.refused is not None:
                route.refused(service, error)
            raise
        return _response(route, answer)

    return handle


def _response(route: Route[Any], answer: object) -> web.StreamResponse:
    if isinstance(answer, web.StreamResponse):
        return answer
    if route.answer is None or not isinstance(answer, route.answer):
        if answer is None and route.answer is None:
            return web.Response(status=204)
        raise TypeError(f"{route.method} {route.path} gives {type(answer).__name__}")
    return json_response(answer, route.status)
