"""The OpenAPI 3.1 document of a route table."""

import functools
import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from wavry_peer.protocol.http.api import ErrorBody
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.service.version import software_version

from .routes import CallerKind, Route

__all__ = ["PATH", "document", "with_document"]

PATH: Final = "/openapi.json"
SCHEMA_PATH: Final = "#/components/schemas/{name}"
BODY_ERRORS: Final = (
    ErrorCode.BODY_TOO_LARGE,
    ErrorCode.INVALID_BODY,
    ErrorCode.INVALID_JSON,
    ErrorCode.REQUEST_TIMEOUT,
    ErrorCode.UNSUPPORTED_ENCODING,
)
_SCHEMES: Final = {
    "userToken": "Of a user, from POST /auth/login of the gateway.",
    "serviceToken": "Of the gateways of a master.",
    "adminToken": "Of an operator, with the role viewer, operator or admin; each may do what the "
    "ones before it may.",
    "relayToken": "Of one relay, from its registration.",
}
_SCHEME_OF: Final = {
    CallerKind.USER: "userToken",
    CallerKind.LOGIN: "userToken",
    CallerKind.SERVICE: "serviceToken",
    CallerKind.VIEWER: "adminToken",
    CallerKind.OPERATOR: "adminToken",
    CallerKind.ADMIN: "adminToken",
    CallerKind.RELAY: "relayToken",
    CallerKind.RELAY_IN_BODY: "relayToken",
}
_NAME: Final = re.compile(r"\{(\w+)\}")
Service = TypeVar("Service")


def with_document(title: str, routes: Sequence[Route[Any]]) -> tuple[Route[Any], ...]:
    """Return a table with one more row, which serves the document of them all."""

    async def give(_service: object, _request: web.Request) -> web.Response:
        return web.Response(body=encoded(), content_type="application/json")

    @functools.cache
    def encoded() -> bytes:
        return msgspec.json.encode(document(title, table))

    table = (
        *routes,
        Route(
            "GET",
            PATH,
            (CallerKind.ANYONE,),
            give,
            "Describe every call of this service as an OpenAPI 3.1 document.",
            media_type="application/json",
        ),
    )
    return table


def document(title: str, routes: Sequence[Route[Any]]) -> dict[str, Any]:
    """Return the document of a table, as JSON values."""
    kinds = {kind for route in routes for kind in (route.body, route.answer) if kind is not None}
    structs = sorted(kinds | {ErrorBody}, key=lambda kind: kind.__name__)
    references, schemas = msgspec.json.schema_components(structs, ref_template=SCHEMA_PATH)
    schema_of = dict(zip(structs, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.shown_path, {})[route.method.lower()] = _operation(route, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": software_version()},
        "paths": paths,
        "components": {
            "schemas": _ecma_patterns(schemas),
            "securitySchemes": {
                name: {"type": "http", "scheme": "bearer", "description": text}
                for name, text in _SCHEMES.items()
            },
        },
    }


def _operation(route: Route[Any], schema_of: dict[type, dict[str, Any]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": "_".join(re.findall(r"\w+", f"{route.method.lower()} {route.shown_path}")),
        "summary": route.sentence,
        "security": _security(route.callers),
        "responses": _responses(route, schema_of),
    }
    if route.websocket:
        operation["x-websocket"] = True
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _NAME.findall(route.shown_path)
    ] + [{"name": name, "in": "query", "schema": {"type": "string"}} for name in route.query]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {
            "required": not route.body_optional,
            "content": {"application/json": {"schema": schema_of[route.body]}},
        }
    return operation


def _security(callers: Sequence[CallerKind]) -> list[dict[str, list[str]]]:
    return [{} if kind not in _SCHEME_OF else {_SCHEME_OF[kind]: []} for kind in callers]


def _responses(route: Route[Any], schema_of: dict[type, dict[str, Any]]) -> dict[str, Any]:
    error = {"application/json": {"schema": schema_of[ErrorBody]}}
    responses: dict[str, Any] = {
        "default": {"description": "Any other error, see docs/http.md.", "content": error}
    }
    codes = (*route.errors, *(BODY_ERRORS if route.body is not None else ()))
    for status, some in groupby(sorted(codes, key=_status_of), key=_status_of):
        steps = " ".join(f"`{code}`: {code.next_step}" for code in some)
        responses[str(status)] = {"description": steps, "content": error}
    if route.websocket:
        responses["101"] = {"description": "The connection is a WebSocket from now on."}
    if route.answer is not None:
        content = {"application/json": {"schema": schema_of[route.answer]}}
        responses[str(route.status)] = {"description": route.sentence, "content": content}
    elif route.media_type:
        responses["200"] = {"description": route.sentence, "content": {route.media_type: {}}}
    elif not route.websocket:
        responses["204"] = {"description": "Done; there is nothing to tell."}
    return responses


def _status_of(code: ErrorCode) -> int:
    return code.status


def _ecma_patterns(value: Any) -> Any:
    r"""Write Python's ``\Z`` as the ``$`` of JSON schema, which means the same there."""
    if isinstance(value, dict):
        return {
            key: one.replace(r"\Z", "$") if key == "pattern" else _ecma_patterns(one)
            for key, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [_ecma_patterns(one) for one in value]
    return value
