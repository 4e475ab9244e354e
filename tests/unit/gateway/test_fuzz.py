"""Garbage at every door: a 4xx in our form or an ERROR, never a crash, never a traceback."""

import asyncio
import contextlib
import json
import logging
import time
from dataclasses import dataclass
from typing import get_args

import aiohttp
import pytest
import structlog
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.control.gateway import (
    ADMIN_TOKEN,
    FakeMaster,
    RunningGateway,
    Socket,
    TestUser,
    accepted_call,
    connected,
    make_config,
    running_gateway,
    running_master,
)

from wavry_peer.protocol.http import signaling as wire

ENDLESS = {
    "messages_burst": 10_000_000,
    "messages_per_s": 1e6,
    "requests_burst": 10_000_000,
    "requests_per_s": 1e6,
    "connects_burst": 10_000_000,
    "connects_per_minute": 1e8,
    "binds_burst": 10_000_000,
    "binds_per_minute": 1e8,
    "relay_requests_burst": 10_000_000,
    "relay_requests_per_minute": 1e8,
    "calls_burst": 10_000_000,
    "calls_per_minute": 1e8,
    "register_burst": 10_000_000,
    "register_per_minute": 1e8,
    "login_burst": 10_000_000,
    "login_per_minute": 1e8,
    "open_per_caller": 10_000_000,
    "pending_per_caller": 10_000_000,
    "pending_per_pair": 10_000_000,
}

SLOW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@dataclass
class Target:
    runner: asyncio.Runner
    running: RunningGateway
    master: FakeMaster
    ann: TestUser
    bob: TestUser
    session_id: str
    logged: list
    records: list

    def check_log(self) -> None:
        bad = [entry for entry in self.logged if "exc_info" in entry or "unhandled" in str(entry)]
        assert not bad
        assert not self.records


class _Records(logging.Handler):
    def __init__(self, records: list) -> None:
        super().__init__(logging.WARNING)
        self.records = records

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record.getMessage())


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    records: list = []
    handler = _Records(records)
    logging.getLogger("aiohttp").addHandler(handler)
    logging.getLogger("asyncio").addHandler(handler)
    with asyncio.Runner() as runner, structlog.testing.capture_logs() as logged:
        stack = contextlib.AsyncExitStack()

        async def start() -> Target:
            master = await stack.enter_async_context(running_master())
            config = make_config(tmp_path_factory.mktemp("gateway"), master.url, **ENDLESS)
            running = await stack.enter_async_context(running_gateway(config))
            ann, bob = await running.user("ann"), await running.user("bob")
            async with ann.online() as a, bob.online() as b:
                session_id = await accepted_call(ann, a, bob, b)
            return Target(runner, running, master, ann, bob, session_id, logged, records)

        try:
            target = runner.run(start())
            yield target
            target.check_log()
        finally:
            runner.run(stack.aclose())
            logging.getLogger("aiohttp").removeHandler(handler)
            logging.getLogger("asyncio").removeHandler(handler)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner),
    max_leaves=12,
)
FIELDS = (
    "username",
    "password",
    "target_username",
    "from_username",
    "identity_key",
    "noise_key",
    "region",
    "exclude_relays",
    "jti",
    "session_id",
    "token",
    "sdp",
    "candidate",
    "accept",
    "hello_base64",
)
near_values = (
    json_values
    | st.sampled_from(["ann", "bob", "A" * 43, "a" * 33, "\x00", "x" * 300, "é" * 40, "\ud800"])
    | st.from_regex(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", fullmatch=True)
)
near_objects = st.dictionaries(st.sampled_from(FIELDS), near_values, max_size=6)
bodies = (
    st.binary(max_size=200)
    | json_values.map(lambda value: json.dumps(value).encode())
    | near_objects.map(lambda value: json.dumps(value).encode())
    | st.sampled_from([b"[" * 30_000, b'{"username":"\\ud800"}', b"\xff\xfe", b"{}", b"0" * 70_000])
)
ids = st.sampled_from(["0" * 36, "%00", "%ff", "%ed%a0%80", "..%2f", "a" * 3000]) | st.uuids().map(
    str
)
ROUTES = (
    ("POST", "/auth/register"),
    ("POST", "/auth/login"),
    ("POST", "/auth/logout"),
    ("GET", "/ws"),
    ("GET", "/v1/sessions"),
    ("POST", "/v1/sessions"),
    ("GET", "/v1/sessions/{id}"),
    ("DELETE", "/v1/sessions/{id}"),
    ("POST", "/v1/sessions/{id}/accept"),
    ("POST", "/v1/sessions/{id}/relay"),
    ("POST", "/v1/sessions/{id}/renew"),
    ("GET", "/v1/admin/users"),
    ("GET", "/v1/admin/status"),
    ("GET", "/metrics"),
    ("PUT", "/v1/sessions"),
    ("GET", "/{id}"),
)


@SLOW
@given(
    route=st.sampled_from(ROUTES),
    body=bodies,
    path_id=ids | st.just("own"),
    who=st.sampled_from(["ann", "admin", "nobody", "none"]),
    query=st.sampled_from(["", "?limit=%ff", "?after=%00&limit=-1", "?x=" + "y" * 500]),
)
def test_http(target, route, body, path_id, who, query):
    method, template = route
    path = template.replace("{id}", target.session_id if path_id == "own" else path_id)
    token = {"ann": target.ann.token, "admin": ADMIN_TOKEN, "nobody": "x" * 43, "none": None}[who]
    if path == "/auth/logout" and who == "ann":
        token = None
    if method == "DELETE" and path_id == "own":
        path = path.replace(target.session_id, "own")

    async def call():
        from yarl import URL

        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        url = URL(target.running.url + path + query, encoded=True)
        async with target.running.http.request(
            method, url, data=body, headers=headers, timeout=aiohttp.ClientTimeout(total=5)
        ) as response:
            return response.status, response.content_type, await response.read()

    status, content_type, raw = target.runner.run(call())
    assert status < 500
    if status >= 400:
        answer = json.loads(raw)
        assert content_type == "application/json"
        assert set(answer) == {"error", "message"}
        assert b"Traceback" not in raw
    target.check_log()


@SLOW
@given(raw=st.binary(max_size=300))
@example(b"GET /ws HTTP/1.1\r\n\r\n")
@example(b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n")
@example(b"POST /auth/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
@example(b"GET /\xff\xfe HTTP/1.1\r\nHost: \xff\r\nAuthorization: Bearer \xff\r\n\r\n")
@example(b"GET /ws HTTP/1.1\r\nHost: x\r\nOrigin: http://[\r\n\r\n")
@example(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: \xff,,[::\r\n\r\n")
def test_bytes_that_are_no_http(target, raw):
    async def send():
        host, port = target.running.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(raw)
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            answer = await asyncio.wait_for(reader.read(), 5)
            assert b"HTTP/1.1 5" not in answer
            assert b"HTTP/1.0 5" not in answer
            assert b"Traceback" not in answer
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    target.runner.run(send())
    target.check_log()


TYPES = [kind.__struct_config__.tag for kind in get_args(wire.ClientMessage | wire.ServerMessage)]
near_messages = st.builds(
    lambda kind, fields: json.dumps({"type": kind, **fields}),
    st.sampled_from(TYPES),
    near_objects,
)
frames = st.lists(
    st.text(max_size=100)
    | st.binary(max_size=100)
    | json_values.map(json.dumps)
    | near_messages
    | near_messages
    | st.just("[" * 30_000),
    min_size=1,
    max_size=8,
)


@SLOW
@given(frames=frames, bound=st.booleans())
def test_websocket(target, frames, bound):
    async def talk():
        async with connected(target.running.http, target.running.url) as socket:
            if bound:
                await socket.send(wire.Bind(token=target.ann.token))
                await socket.next(wire.Bound)
            for frame in frames:
                with contextlib.suppress(ConnectionError):
                    if isinstance(frame, str):
                        # A lone surrogate cannot be sent as UTF-8; the escaped form can.
                        await socket.ws.send_bytes(frame.encode("utf-8", "surrogatepass")) if (
                            _has_surrogate(frame)
                        ) else await socket.ws.send_str(frame)
                    else:
                        await socket.ws.send_bytes(frame)
            with contextlib.suppress(ConnectionError):
                await socket.send(wire.Ping())
            return await _until_pong_or_close(socket)

    answers, close_code = target.runner.run(talk())
    codes = {answer.code for answer in answers if isinstance(answer, wire.Error)}
    assert "internal_error" not in codes
    assert close_code in {None, 1000, 1009, 4400, 4401, 1006}
    if close_code is None:
        assert bound
    else:
        assert codes
    target.check_log()


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in text)


async def _until_pong_or_close(socket: Socket):
    answers = []
    end = time.monotonic() + 5
    while time.monotonic() < end:
        frame = await socket.ws.receive(timeout=5)
        if frame.type is not aiohttp.WSMsgType.TEXT:
            return answers, socket.ws.close_code
        message = wire.decode_server_message(frame.data)
        if isinstance(message, wire.Pong):
            return answers, None
        answers.append(message)
    raise AssertionError("neither an answer nor a close")


@pytest.mark.parametrize(
    "raw",
    [
        b"\x81\x81\x00\x00\x00\x00\xff",  # text that is no UTF-8
        b"\x83\x80\x00\x00\x00\x00",  # reserved opcode
        b"\xf1\x80\x00\x00\x00\x00",  # reserved bits
        b"\x01\x80\x00\x00\x00\x00\x01\x80\x00\x00\x00\x00",  # a message inside another
        b"\x89\xfe\x00\x7e" + bytes(4 + 126),  # a ping that is too long
        b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00",  # 2^63 bytes announced
        b"\x81\x01x",  # not masked
        b"\x88\x81\x00\x00\x00\x00x",  # a close with half a code
    ],
)
def test_bytes_that_are_no_websocket(target, raw):
    async def send():
        host, port = target.running.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 101")
        writer.write(raw)
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            assert b"Traceback" not in await asyncio.wait_for(reader.read(), 5)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        end = time.monotonic() + 5
        while target.running.gateway.slots.in_use:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)

    target.runner.run(send())
    target.check_log()
