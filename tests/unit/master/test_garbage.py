"""Garbage to every endpoint over real sockets: 4xx in the error form, nothing crashes or is logged
as our fault."""

import asyncio
import contextlib
import json
import logging
from contextlib import AsyncExitStack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.control.lease_parts import parties
from support.control.master import FakeRelay, MasterFiles, running_master

from wavry_peer.service import http_server

REFUSED_WELL = {503}  # "no relay available" is an answer to a valid request
UUID = "12345678-1234-4234-8234-123456789abc"
FIXED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Recorder:
    """Stands in for the structlog logger of wavry_cp.app.http."""

    def __init__(self):
        self.errors = []

    def debug(self, event, **fields):
        pass

    info = warning = debug

    def error(self, event, **fields):
        self.errors.append((event, fields))


class Target:
    """A running master and a socket to throw bytes at."""

    def __init__(self, runner, master, relay, recorder):
        self.runner = runner
        self.master = master
        self.relay = relay
        self.recorder = recorder
        self.port = int(master.url.rsplit(":", 1)[1])

    def send(self, raw, patience_s=10.0):
        return self.runner.run(self._send(raw, patience_s))

    async def _send(self, raw, patience_s):
        """The answer up to the end of the connection, or what came within the patience."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        answer = b""
        try:
            writer.write(raw)
            async with asyncio.timeout(patience_s):
                while piece := await reader.read(65536):
                    answer += piece
        except TimeoutError:
            assert patience_s < 1, "no answer"
        except ConnectionError:
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        return answer

    def request(self, method, path, body, headers):
        lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: m", b"Connection: close"]
        lines += headers
        lines.append(b"Content-Length: %d" % len(body))
        return self.send(b"\r\n".join(lines) + b"\r\n\r\n" + body)

    def is_well(self):
        """Alive, with the relay's own state untouched by strangers."""
        assert self.runner.run(self.master.get("/health")).status == 200
        errors, self.recorder.errors = self.recorder.errors, []
        assert errors == []


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    recorder = Recorder()
    patch = pytest.MonkeyPatch()
    patch.setattr(http_server, "_log", recorder)
    loop_errors = []
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def start():
            asyncio.get_running_loop().set_exception_handler(
                lambda loop, context: loop_errors.append(context)
            )
            files = MasterFiles.make(tmp_path_factory.mktemp("garbage"))
            master = await stack.enter_async_context(
                running_master(files.root, files=files, register_per_minute=1_000_000)
            )
            return master, await FakeRelay(master).join()

        master, relay = runner.run(start())
        yield Target(runner, master, relay, recorder)
        runner.run(stack.aclose())
    patch.undo()
    assert loop_errors == []


@pytest.fixture(autouse=True)
def nothing_of_aiohttp_is_logged(caplog):
    yield
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def check(raw):
    """An answer, if there is one, is HTTP; a failure is in our form."""
    if not raw:
        return None
    head, _, body = raw.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    assert b"Traceback" not in body
    assert b"/wavry_cp/" not in body
    assert status < 500 or status in REFUSED_WELL, raw
    if status >= 400 and body:
        answer = json.loads(body)
        assert set(answer) == {"error", "message"}, raw
        assert answer["error"]
        assert answer["message"]
    return status


PATHS = [
    "/v1/relays/register",
    "/v1/relays/register/verify",
    "/v1/relays/heartbeat",
    "/v1/relays",
    "/v1/relays/{id}",
    "/v1/leases",
    "/v1/leases/renew",
    "/v1/admin/relays/{id}/drain",
    "/v1/admin/relays/{id}/undrain",
    "/v1/admin/keys",
    "/v1/admin/status",
    "/v1/admin/audit",
    "/v1/admin/tokens",
    "/v1/admin/tokens/check",
    "/v1/admin/tokens/{id}/rotate",
    "/v1/admin/tokens/{id}/revoke",
    "/v1/admin/switches",
    "/v1/admin/switches/relay-mode",
    "/v1/admin/bans",
    "/v1/admin/bans/lift",
    "/.well-known/wavry-keys.json",
    "/health",
    "/ready",
    "/metrics",
]
POSTS = [
    "/v1/relays/register",
    "/v1/relays/register/verify",
    "/v1/relays/heartbeat",
    "/v1/leases",
    "/v1/leases/renew",
]
methods = st.sampled_from(
    ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "X"]
)
ids = st.one_of(
    st.just("rly-unknown"),
    st.binary(max_size=12).map(lambda raw: "".join(f"%{byte:02x}" for byte in raw)),
    st.text("abc/.-_~%?#&=;", max_size=12),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
header_bytes = st.binary(max_size=40).filter(lambda raw: not set(raw) & set(b"\r\n\0"))
header_names = st.sampled_from(
    [
        b"Authorization",
        b"Content-Type",
        b"Content-Encoding",
        b"X-Forwarded-For",
        b"Expect",
        b"Accept-Encoding",
        b"Cookie",
        b"Range",
        b"If-None-Match",
        b"Upgrade",
        b"X-" + b"a" * 60,
    ]
)
headers = st.lists(
    st.tuples(header_names, header_bytes).map(lambda pair: pair[0] + b": " + pair[1]), max_size=4
)
tokens = st.sampled_from(["service", "admin", "relay", None])


def bearer(target, name):
    token = {
        "service": target.master.files.service_token,
        "admin": target.master.files.admin_token,
        "relay": target.relay.token,
    }.get(name)
    return [] if token is None else [f"Authorization: Bearer {token}".encode()]


@settings(FIXED, max_examples=100)
@given(methods, st.sampled_from(PATHS), ids, st.binary(max_size=200), headers)
def test_any_method_path_body_and_header_of_a_stranger(target, method, path, number, body, extra):
    status = check(target.request(method, path.replace("{id}", number), body, extra))
    open_to_all = ("/.well-known", "/health", "/ready", "/metrics")
    if status is not None and status < 300:
        assert path.startswith(open_to_all)
    target.is_well()


@settings(FIXED, max_examples=100)
@given(st.sampled_from(POSTS), tokens, st.one_of(json_values.map(json.dumps), st.text(max_size=60)))
def test_json_garbage_of_someone_with_a_token(target, path, token, text):
    status = check(
        target.request("POST", path, text.encode("utf-8", "replace"), bearer(target, token))
    )
    assert 400 <= status < 500
    target.is_well()


def valid_bodies(target):
    relay = target.relay
    return {
        "/v1/relays/register": relay.registration(),
        "/v1/relays/register/verify": {"challenge_id": UUID, "signature": "A" * 86},
        "/v1/relays/heartbeat": {
            "relay_id": relay.relay_id,
            "load_pct": 1,
            "active_sessions": 0,
            "bandwidth_in_kbps": 0,
            "bandwidth_out_kbps": 0,
            "packet_loss_pct": 0,
            "held_kids": list(relay.held_kids),
            "keyset_serial": 1,
            "state": "ready",
        },
        "/v1/leases": {
            "client": {"sub": "ann", "cnf": "A" * 43},
            "server": {"sub": "bob", "cnf": "A" * 43},
            "session_id": UUID,
            "region": "eu",
            "exclude_relays": [],
            "ttl_s": 300,
        },
        "/v1/leases/renew": {"session_id": UUID, "role": "client", "jti": UUID},
    }


odd_values = st.one_of(
    json_values,
    st.sampled_from(
        [
            "",
            "\x00",
            "é" * 200,
            "x" * 5000,
            -1,
            2**53 + 1,
            2**64,
            10**400,
            1e308,
            "0.0.0.0:1",
            [[[[]]]],
            "A" * 43,
            "_" * 43,
            "_" * 86,
            UUID.upper(),
            "‮",
        ]
    ),
)


@settings(FIXED, max_examples=100)
@given(st.data(), st.sampled_from(POSTS), st.sampled_from(["service", "relay", None]))
def test_valid_body_with_something_odd_in_it(target, data, path, token):
    body = dict(valid_bodies(target)[path])
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from([*body, "extra"]) if body else st.just("extra"))
        if data.draw(st.booleans()):
            body[name] = data.draw(odd_values)
        else:
            body.pop(name, None)
    status = check(target.request("POST", path, json.dumps(body).encode(), bearer(target, token)))
    assert status in {200, 201, 503} or 400 <= status < 500
    target.is_well()


ORDERS = {
    "/v1/admin/tokens": {"name": "ann", "role": "viewer", "life_s": 60, "reason": "x"},
    "/v1/admin/tokens/ann/rotate": {"overlap_s": 60, "life_s": 60, "reason": "x"},
    "/v1/admin/tokens/ann/revoke": {"reason": "x"},
    "/v1/admin/switches/relay-mode": {"on": True, "reason": "x"},
    "/v1/admin/bans": {"kind": "user", "value": "carl", "life_s": 60, "reason": "x"},
    "/v1/admin/bans/lift": {"kind": "user", "value": "carl", "reason": "x"},
}


@settings(FIXED, max_examples=80)
@given(st.data(), st.sampled_from(sorted(ORDERS)))
def test_orders_of_an_operator_with_something_odd_in_them(target, data, path):
    body = dict(ORDERS[path])
    name = data.draw(st.sampled_from([*body, "extra"]))
    body[name] = data.draw(odd_values)
    raw = target.request("POST", path, json.dumps(body).encode(), bearer(target, "admin"))
    status = check(raw)
    assert status in {200, 201} or 400 <= status < 500
    target.is_well()


@settings(FIXED, max_examples=60)
@given(
    st.one_of(
        st.binary(min_size=1, max_size=300),
        st.binary(max_size=60).map(lambda raw: b"GET /" + raw + b" HTTP/1.1\r\nHost: m\r\n\r\n"),
        st.binary(max_size=60).map(lambda raw: b"GET /health HTTP/1.1\r\n" + raw + b"\r\n\r\n"),
        st.binary(max_size=60).map(
            lambda raw: (
                b"POST /v1/leases HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n\r\n" + raw
            )
        ),
    )
)
def test_bytes_that_are_no_http(target, raw):
    # Half a request is waited for by right, so this does not wait for its answer for long.
    check(target.send(raw + b"\r\n\r\n", patience_s=0.03))
    target.is_well()


def test_broken_coding_after_the_head_is_the_clients_fault(target, monkeypatch):
    monkeypatch.setattr("wavry_cp.app.http.BODY_TIMEOUT_S", 0.2)
    head = b"POST /v1/relays/register HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def slowly():
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        writer.write(head + b"5\r\nabcde\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(b"ZZ\r\n\r\n")
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    assert check(target.runner.run(slowly())) in (400, 408)
    target.is_well()


def test_unknown_expectation_is_answered_in_the_error_form(target):
    assert check(target.request("POST", "/v1/leases", b"{}", [b"Expect: sugar"])) == 417
    assert check(target.request("POST", "/nothing", b"{}", [b"Expect: sugar"])) == 417


def test_deeply_nested_json_is_refused(target):
    for text in (b"[" * 30_000, b'{"client":' * 5_000 + b"1" + b"}" * 5_000):
        service = bearer(target, "service")
        assert check(target.request("POST", "/v1/leases", text, service)) == 400
    target.is_well()


def test_connection_that_never_asks_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(http_server, "FIRST_REQUEST_TIMEOUT_S", 0.1)

    async def wait_for_end():
        async with running_master(tmp_path) as master:
            port = int(master.url.rsplit(":", 1)[1])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /health HTTP/1.1\r\nX-Slow: ")
            async with asyncio.timeout(5):
                assert await reader.read() == b""
            writer.close()
            assert (await master.get("/health")).status == 200

    asyncio.run(wait_for_end())


def test_a_real_fault_of_ours_shows_an_id_and_nothing_else(tmp_path, monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(http_server, "_log", recorder)

    async def fail(*args):
        raise ZeroDivisionError("inner secret")

    async def ask():
        monkeypatch.setattr("wavry_cp.store.sqlite.master.MasterSqlite.session", fail)
        async with running_master(tmp_path) as master:
            body = parties("a", "b")
            return await master.post("/v1/leases", body, token="service")

    answer = asyncio.run(ask())
    assert (answer.status, answer.body["error"]) == (500, "internal_error")
    ((event, _fields),) = recorder.errors
    assert event == "unhandled_error"
    assert answer.headers["X-Request-ID"] in answer.body["message"]
    assert "secret" not in answer.body["message"]


@pytest.mark.parametrize(
    "raw",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: m\r\nExpect: x\r\n\r\n",
        b"GET /nothing HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n",
    ],
)
def test_no_answer_tells_the_software(target, raw):
    head = target.send(raw).partition(b"\r\n\r\n")[0]
    assert b"\r\nServer: wavry" in head
    assert b"aiohttp" not in head
    assert b"Python" not in head
