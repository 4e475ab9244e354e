"""The ops port against bytes that are no good HTTP: JSON, no echo, nothing that fills the log."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.relay.health import relay_health

from wavry_peer.protocol.http.ops import RelayHealth
from wavry_peer.service import http_server
from wavry_relay.ops.figures import RelayFigures
from wavry_relay.ops.http_server import OpsServer, open_ops_socket

CANARY = b"ECHO-canary"


class FakeFigures:
    fault: Exception | None = None

    def health(self) -> RelayHealth:
        if self.fault is not None:
            raise self.fault
        return msgspec.convert(relay_health(), RelayHealth)

    def not_ready(self) -> list[str]:
        return ["no keys"]

    def samples(self) -> Iterator[Any]:
        return iter(())


@asynccontextmanager
async def serving(status: FakeFigures) -> AsyncIterator[int]:
    server = OpsServer(cast("RelayFigures", status), status)
    await server.serve(open_ops_socket("127.0.0.1", 0))
    try:
        yield int(server.url.rsplit(":", 1)[1])
    finally:
        await server.stop()


async def exchange(port: int, raw: bytes, patience_s: float = 5) -> bytes:
    """What the server answers until it closes, or has been silent for so long."""
    answer = b""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(raw)
        while piece := await asyncio.wait_for(reader.read(65536), patience_s):
            answer += piece
    except (ConnectionError, TimeoutError):
        pass
    finally:
        await closed(writer)
    return answer


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def answer_of(raw: bytes) -> tuple[int, dict[str, str], dict[str, Any]]:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split(" ")[1]), headers, json.loads(body)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


BROKEN = {
    "garbage": b"GARBAGE ECHO-canary\r\n\r\n",
    "version": b"GET /ECHO-canary HTTP/9.9\r\nHost: r\r\n\r\n",
    "length": b"GET /health HTTP/1.1\r\nHost: r\r\nContent-Length: -5\r\n\r\n",
    "url": b"GET /" + b"u" * 9000 + b" HTTP/1.1\r\nHost: r\r\n\r\n",
    "header": b"GET /health HTTP/1.1\r\nHost: r\r\nECHO-canary\r\n\r\n",
    "expect": b"GET /health HTTP/1.1\r\nHost: r\r\nExpect: ECHO-canary\r\n\r\n",
    "expect-not-text": b"GET /health HTTP/1.1\r\nHost: r\r\nExpect: \xff\xfe\r\n\r\n",
    "path": b"GET /ECHO-canary HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n",
    "method": b"POST /health HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
async def test_what_is_refused_is_refused_in_json_and_quietly(
    name: str, logged: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(FakeFigures()) as port:
        raw = await exchange(port, BROKEN[name])
    status, headers, body = answer_of(raw)
    assert 400 <= status < 500
    assert set(body) == {"error", "message"}
    assert headers["content-type"].startswith("application/json")
    assert headers["server"] == "wavry"
    assert CANARY not in raw
    assert [line for line in logged if line["log_level"] != "debug"] == []
    assert caplog.records == []


@pytest.mark.parametrize("path", [b"/health", b"/ready", b"/metrics"])
async def test_a_bad_chunk_behind_a_good_head_is_quiet(
    path: bytes, logged: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    head = b"GET " + path + b" HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving(FakeFigures()) as port:
        raw = await exchange(port, head + b"ZZ-ECHO-canary\r\n\r\n")
        late = await exchange(port, head + b"5\r\nabc", patience_s=0.3)
        well = await exchange(port, b"GET /health HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n")
    for answer in (raw, late):
        assert b"\r\nServer: wavry\r\n" in answer
        assert CANARY not in answer
    assert answer_of(well)[0] == 200
    assert [line for line in logged if line["log_level"] != "debug"] == []
    assert caplog.records == []


async def test_an_unknown_fault_is_answered_with_an_id_and_nothing_of_it(logged: list[Any]) -> None:
    status = FakeFigures()
    status.fault = RuntimeError("ECHO-canary of the inside")
    async with serving(status) as port:
        raw = await exchange(port, b"GET /health HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n")
    code, headers, body = answer_of(raw)
    assert [line["event"] for line in logged if line["log_level"] == "error"] == ["unhandled_error"]
    assert (code, body["error"]) == (500, "internal_error")
    assert headers["x-request-id"] in body["message"]
    assert CANARY not in raw


async def test_a_client_that_sends_no_request_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "FIRST_REQUEST_TIMEOUT_S", 0.05)
    async with serving(FakeFigures()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HT")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        await closed(writer)


PIECES = st.sampled_from(
    [
        b"GET ", b"POST ", b"/health", b"/", b"*", b"http://[", b" HTTP/1.1", b" HTTP/9.9", b"\r\n",
        b"\r\n\r\n", b"\n", b"\x00", b"Host: r\r\n", b"Content-Length: -5\r\n", b"Expect: x\r\n",
        b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"ZZ\r\n", b"0\r\n\r\n",
        CANARY, b"Upgrade: h2c\r\nConnection: upgrade\r\n", b"Content-Encoding: gzip\r\n",
        b"u" * 9000,
    ]
)  # fmt: skip
GARBAGE = st.one_of(
    st.binary(max_size=200),
    st.lists(st.one_of(PIECES, st.binary(max_size=8)), max_size=10).map(b"".join),
    st.tuples(st.sampled_from([b"GET /nothing HTTP/1.1\r\n", b"GARBAGE "]), st.binary(max_size=80))
    .map(b"".join).map(lambda raw: raw + b"\r\n\r\n"),
)  # fmt: skip


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(raw=GARBAGE)
def test_no_bytes_get_anything_but_our_answers(
    raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    faults: list[Any] = []

    async def one() -> bytes:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        async with serving(FakeFigures()) as port:
            return await exchange(port, raw, patience_s=0.1)

    with structlog.testing.capture_logs() as lines:
        got = asyncio.run(one())
    assert faults == []
    assert "Traceback" not in caplog.text
    assert [line for line in lines if line["log_level"] != "debug"] == []
    if not got:
        return  # A head that never ended: there was nothing to answer.
    assert got.startswith(b"HTTP/1.")
    assert b"Traceback" not in got
    status = int(got.split(b" ", 2)[1])
    assert status < 500 or b'"ready":false' in got
    if 400 <= status < 500 and b"\r\n\r\n{" in got:
        first = got.split(b"HTTP/1.", 2)[1]
        assert set(json.loads(first.partition(b"\r\n\r\n")[2])) == {"error", "message"}
    elif 400 <= status < 500:
        raise AssertionError(got)
