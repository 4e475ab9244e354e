"""The route tables: they are all that is served, they drive the checks, and they are described."""

import json
import re
import typing
from collections import Counter
from types import SimpleNamespace

import aiohttp
import msgspec
import pytest
from aiohttp import web
from support.control.gateway import make_config, running_gateway
from support.control.master import MasterFiles, running_master

from wavry_cp.app import openapi
from wavry_cp.app.http import listening, new_application
from wavry_cp.app.refusal import RefusedError
from wavry_cp.app.routes import Admitted, CallerKind, Route, bind, caller_of
from wavry_cp.gateway.app import make_app
from wavry_cp.gateway.routes import ROUTES as GATEWAY
from wavry_cp.master.app import make_app as make_master_app
from wavry_cp.master.master import open_master
from wavry_cp.master.routes import ROUTES as MASTER
from wavry_peer.protocol.http.codes import ErrorCode

TABLES = {"gateway": GATEWAY, "master": MASTER}
METHODS = {"get", "post", "delete", "put", "patch", "head", "options", "trace"}


def canonical(route):
    return re.sub(r"\{(\w+):[^}]*\}", r"{\1}", route.path)


def served(app):
    return Counter(
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    )


async def test_every_route_of_the_gateway_is_a_row_and_every_row_a_route(tmp_path):
    async with running_gateway(make_config(tmp_path, "http://127.0.0.1:1")) as running:
        assert served(make_app(running.gateway)) == Counter(
            (route.method, canonical(route)) for route in GATEWAY
        )


async def test_every_route_of_the_master_is_a_row_and_every_row_a_route(tmp_path):
    async with open_master(MasterFiles.make(tmp_path).config()) as twin:
        app = make_master_app(twin)
        assert served(app) == Counter((route.method, canonical(route)) for route in MASTER)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_rows_are_whole(table):
    assert len({(route.method, route.path) for route in table}) == len(table)
    for route in table:
        assert route.callers, route.path
        assert re.fullmatch(r"[A-Z].*\.", route.sentence), route.path
        assert list(route.errors) == sorted(set(route.errors)), route.path
        if route.path.startswith("/v1/admin/"):
            assert CallerKind.ANYONE not in route.callers, "stays open in a lockdown"


# -- The guard --------------------------------------------------------------------------------


class Named(msgspec.Struct):
    name: str


class OneGuard:
    """Lets in who shows the token of a kind; the token is the kind's own name."""

    async def admit(self, request, callers):
        shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if shown not in callers:
            raise RefusedError(ErrorCode.UNAUTHORIZED, "no")
        return Admitted(CallerKind(shown), "ann")


@pytest.fixture
async def small():
    """An application of one row for each kind of row; `calls` is what its functions saw."""
    seen = SimpleNamespace(calls=[], refused=[])

    async def greet(service, request, body):
        service.calls.append((caller_of(request).name, body.name))
        return Named(f"hello {body.name}")

    async def nothing(service, request):
        service.calls.append("nothing")

    async def wrong(service, request):
        return Admitted(CallerKind.USER)

    def refused(service, error):
        service.refused.append(error.code)

    rows = (
        Route("POST", "/greet", (CallerKind.ADMIN,), greet, "Greet.", body=Named, answer=Named,
              status=201, refused=refused),
        Route("POST", "/nothing", (CallerKind.USER,), nothing, "Do nothing."),
        Route("POST", "/wrong", (CallerKind.USER,), wrong, "Give what is not in the row.",
              answer=Named),
    )  # fmt: skip
    app = new_application()
    app.router.add_routes(bind(rows, seen, OneGuard()))
    async with listening(app, "127.0.0.1", 0) as url, aiohttp.ClientSession(url) as http:
        yield http, seen


async def post(http, path, token, body=None):
    headers = {"Authorization": f"Bearer {token}"}
    async with http.post(path, headers=headers, json=body) as response:
        raw = await response.read()
        return response.status, json.loads(raw) if raw else None


async def test_no_function_runs_for_a_caller_that_its_row_does_not_name(small):
    http, seen = small
    for token in ("", "user", "service", "viewer"):
        status, answer = await post(http, "/greet", token, {"name": "bob"})
        assert (status, answer["error"]) == (401, "unauthorized")
    assert (await post(http, "/nothing", "admin"))[0] == 401
    assert seen.calls == []
    assert seen.refused == ["unauthorized"] * 4
    assert await post(http, "/greet", "admin", {"name": "bob"}) == (201, {"name": "hello bob"})
    assert seen.calls == [("ann", "bob")]


async def test_row_reads_the_body_and_writes_the_answer(small):
    http, seen = small
    status, answer = await post(http, "/greet", "admin", {"name": 7})
    assert (status, answer["error"]) == (400, "invalid_body")
    assert seen.refused == ["invalid_body"]
    assert await post(http, "/nothing", "user") == (204, None)


async def test_answer_that_is_not_the_row_s_is_our_fault(small):
    http, _ = small
    status, answer = await post(http, "/wrong", "user")
    assert (status, answer["error"]) == (500, "internal_error")


# -- The description --------------------------------------------------------------------------


def references(value):
    if isinstance(value, dict):
        for key, one in value.items():
            if key == "$ref":
                yield one
            else:
                yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


async def documents(tmp_path):
    async with running_gateway(make_config(tmp_path, "http://127.0.0.1:1")) as running:
        yield GATEWAY, (await running.call("GET", "/openapi.json"))[1]
    async with running_master(tmp_path / "master") as master:
        yield MASTER, (await master.get("/openapi.json")).body


async def test_openapi_document_is_valid_and_describes_every_row(tmp_path):
    async for table, document in documents(tmp_path):
        assert document["openapi"] == "3.1.0"
        assert document["info"].keys() >= {"title", "version"}
        described, ids = set(), []
        for path, item in document["paths"].items():
            assert path.startswith("/")
            assert item.keys() <= METHODS
            for method, operation in item.items():
                described.add((method.upper(), path))
                ids.append(operation["operationId"])
                check_operation(path, operation, document)
        assert described == {(route.method, route.shown_path) for route in table}
        assert len(ids) == len(set(ids))
        for reference in references(document):
            value = document
            for part in reference.removeprefix("#/").split("/"):
                value = value[part]
        for schema in document["components"]["securitySchemes"].values():
            assert (schema["type"], schema["scheme"]) == ("http", "bearer")
        assert r"\\Z" not in json.dumps(document["components"]), "not of JSON schema's patterns"


def check_operation(path, operation, document):
    assert operation["responses"], path
    for status, response in operation["responses"].items():
        assert status == "default" or re.fullmatch(r"[1-5]\d\d", status)
        assert response["description"]
    parameters = operation.get("parameters", [])
    in_path = {one["name"] for one in parameters if one["in"] == "path"}
    assert in_path == set(re.findall(r"\{(\w+)\}", path))
    assert all(one["required"] for one in parameters if one["in"] == "path")
    schemes = document["components"]["securitySchemes"]
    assert all(name in schemes for need in operation["security"] for name in need)


def test_a_form_and_its_limits_are_in_the_document():
    document = openapi.document("x", GATEWAY)
    credentials = document["components"]["schemas"]["UserCredentials"]
    assert credentials["properties"]["password"]["minLength"] == 10
    assert credentials["properties"]["username"]["pattern"].endswith("$")
    register = document["paths"]["/auth/register"]["post"]
    assert register["security"] == [{}]
    assert document["paths"]["/v1/sessions"]["get"]["security"] == [{"userToken": []}]
    assert document["paths"]["/ws"]["get"]["x-websocket"] is True
    assert "`username_taken`: Choose" in register["responses"]["409"]["description"]
    error = document["components"]["schemas"]["ErrorBody"]
    assert set(error["required"]) == {"error", "message"}


def test_handlers_are_given_what_they_ask_for():
    """A row's body is the type of its function's third argument, its answer what it gives."""
    for table in TABLES.values():
        for route in table:
            hints = typing.get_type_hints(route.function)
            given = hints.pop("return")
            kinds = [kind for kind in hints.values() if isinstance(kind, type)]
            bodies = [kind for kind in kinds if issubclass(kind, msgspec.Struct)]
            assert bodies == ([] if route.body is None else [route.body]), route.path
            if isinstance(given, type) and issubclass(given, msgspec.Struct):
                assert given is route.answer, route.path
            elif given is type(None):
                assert route.answer is None, route.path
            else:
                parts = set(typing.get_args(given)) or {given}
                assert parts <= {route.answer, web.Response, web.StreamResponse}, route.path
