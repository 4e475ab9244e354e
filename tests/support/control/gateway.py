"""A gateway for tests: inside the test's event loop, or as a real process; and a fake master."""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
import msgspec
from aiohttp import web

from wavry_cp.app.http import listening
from wavry_cp.gateway.app import make_app
from wavry_cp.gateway.config import GatewayConfig
from wavry_cp.gateway.gateway import Gateway, open_gateway
from wavry_peer.protocol import base64url, ed25519, lease
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.http import signaling as wire
from wavry_peer.protocol.http.api import (
    Credentials,
    LeasePair,
    LeaseRelay,
    LeaseRequest,
    LeaseResponse,
    LoginResponse,
    RenewRequest,
    RenewResponse,
    SessionInfo,
)

SERVICE_TOKEN = "service-" + "s" * 40
ADMIN_TOKEN = "admin-" + "a" * 40
PASSWORD = "correct horse battery"
DEADLINE_S = 10.0


def public_key() -> str:
    return base64url.encode(secrets.token_bytes(32))


def write_token(path: Path, token: str) -> Path:
    path.write_text(token + "\n")
    path.chmod(0o600)
    return path


async def eventually(condition: Callable[[], Any], *, deadline_s: float = DEADLINE_S) -> None:
    """Wait until `condition` is true; fails after the deadline."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "condition did not come true in time"
        await asyncio.sleep(0.01)


# -- The master ------------------------------------------------------------------------------


@dataclass
class FakeMaster:
    """Answers as the master of the protocol does; `mode` makes it misbehave.

    Modes: ok, hang, error (500), garbage, huge, no_relay, reject_token.
    """

    mode: str = "ok"
    relays: list[str] = field(default_factory=lambda: ["rly-one", "rly-two", "rly-three"])
    requests: list[LeaseRequest] = field(default_factory=list)
    renewals: list[RenewRequest] = field(default_factory=list)
    url: str = ""
    delay_s: float = 0.0

    def __post_init__(self) -> None:
        self.key = ed25519.SigningKey.from_seed(secrets.token_bytes(32))
        self.kid = lease.KeyId("kid-test")
        self.current: dict[tuple[str, str], lease.LeaseClaims] = {}
        self.parties: dict[str, LeaseRequest] = {}

    @property
    def keys(self) -> dict[lease.KeyId, lease.TrustedKey]:
        return {self.kid: lease.TrustedKey(self.key.public_key)}

    def open(self, token: str) -> lease.LeaseClaims:
        return lease.open_lease(token.encode(), self.keys)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/leases", self._issue)
        app.router.add_post("/v1/leases/renew", self._renew)
        app.router.add_get("/health", self._health)
        return app

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _misbehave(self, request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization") != f"Bearer {SERVICE_TOKEN}":
            return _error(401, "unauthorized")
        await asyncio.sleep(self.delay_s)
        if self.mode == "hang":
            await asyncio.sleep(30)
        return {
            "error": web.Response(status=500, text="Traceback (most recent call last): secret"),
            "garbage": web.Response(text='{"session_id": 7}'),
            "huge": web.Response(body=b"x" * 200_000),
            "no_relay": _error(503, "no_relay_available"),
            "reject_token": _error(401, "unauthorized"),
        }.get(self.mode)

    def _sign(self, sid: str, role: str, relay: str) -> tuple[str, int]:
        request = self.parties[sid]
        party = request.client if role == "client" else request.server
        claims = lease.make_claims(
            jti=str(uuid.uuid4()),
            sub=party.sub,
            sid=sid,
            role=c.Role.CLIENT if role == "client" else c.Role.SERVER,
            rid=relay,
            kid=self.kid,
            now_s=int(time.time()),
            ttl_s=300,
            soft_kbps=1000,
            hard_kbps=2000,
            cnf=party.cnf,
        )
        self.current[sid, role] = claims
        return lease.sign_lease(claims, self.key), claims.expires_ms // 1000

    async def _issue(self, request: web.Request) -> web.Response:
        bad = await self._misbehave(request)
        if bad is not None:
            return bad
        body = msgspec.json.decode(await request.read(), type=LeaseRequest)
        self.requests.append(body)
        free = [relay for relay in self.relays if relay not in body.exclude_relays]
        if not free:
            return _error(503, "no_relay_available")
        sid = body.session_id or str(uuid.uuid4())
        self.parties[sid] = body
        client, expires_at = self._sign(sid, "client", free[0])
        server, _ = self._sign(sid, "server", free[0])
        answer = LeaseResponse(
            session_id=sid,
            relay=LeaseRelay(relay_id=free[0], endpoints=("127.0.0.1:4500", "[::1]:4500")),
            leases=LeasePair(client=client, server=server),
            expires_at=expires_at,
        )
        return web.Response(status=201, body=msgspec.json.encode(answer))

    async def _renew(self, request: web.Request) -> web.Response:
        bad = await self._misbehave(request)
        if bad is not None:
            return bad
        body = msgspec.json.decode(await request.read(), type=RenewRequest)
        self.renewals.append(body)
        claims = self.current.get((body.session_id, body.role))
        if claims is None:
            return _error(404, "unknown_session")
        if claims.jti != body.jti:
            return _error(409, "stale_jti")
        token, expires_at = self._sign(body.session_id, body.role, claims.rid or "")
        answer = RenewResponse(lease=token, expires_at=expires_at)
        return web.Response(body=msgspec.json.encode(answer))


def _error(status: int, code: str) -> web.Response:
    return web.json_response({"error": code, "message": "as the test wants"}, status=status)


@contextlib.asynccontextmanager
async def running_master(port: int = 0) -> AsyncIterator[FakeMaster]:
    master = FakeMaster()
    runner = web.AppRunner(master.app(), shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        master.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield master
    finally:
        await runner.cleanup()


# -- A gateway inside the test ------------------------------------------------------------------


def make_config(directory: Path, master_url: str, **overrides: Any) -> GatewayConfig:
    """A configuration with cheap passwords; limits as in production unless overridden."""
    directory.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "data_dir": directory / "data",
        "master_url": master_url,
        "service_token_file": write_token(directory / "service.token", SERVICE_TOKEN),
        "admin_token_file": write_token(directory / "admin.token", ADMIN_TOKEN),
        "argon2_passes": 1,
        "argon2_memory_kib": 8,
        "register_burst": 1000,
        "login_burst": 1000,
    }
    return GatewayConfig(**(values | overrides))


@dataclass
class RunningGateway:
    gateway: Gateway
    url: str
    http: aiohttp.ClientSession

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any, dict[str, str]]:
        """One HTTP call: status, decoded body (None if empty), headers."""
        return await http_call(self.http, self.url, method, path, body, token, headers)

    async def user(self, name: str) -> "TestUser":
        """A registered and logged-in user."""
        return await TestUser.create(self.http, self.url, name)


async def http_call(
    http: aiohttp.ClientSession,
    url: str,
    method: str,
    path: str,
    body: Any = None,
    token: str | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, Any, dict[str, str]]:
    sent = dict(headers or {})
    if token is not None:
        sent["Authorization"] = f"Bearer {token}"
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    async with http.request(method, url + path, data=data, headers=sent) as response:
        raw = await response.read()
        is_json = response.content_type == "application/json"
        answer = json.loads(raw) if is_json and raw else raw or None
        return response.status, answer, dict(response.headers)


@contextlib.asynccontextmanager
async def running_gateway(config: GatewayConfig) -> AsyncIterator[RunningGateway]:
    async with (
        open_gateway(config) as gateway,
        listening(make_app(gateway), "127.0.0.1", 0) as url,
        aiohttp.ClientSession() as http,
    ):
        yield RunningGateway(gateway, url, http)


# -- Users ----------------------------------------------------------------------------------


@dataclass
class TestUser:
    """A user over real HTTP and WebSocket."""

    __test__ = False

    http: aiohttp.ClientSession
    url: str
    name: str
    token: str
    identity_key: str = field(default_factory=public_key)
    noise_key: str = field(default_factory=public_key)

    @classmethod
    async def create(cls, http: aiohttp.ClientSession, url: str, name: str) -> Self:
        credentials = {"username": name, "password": PASSWORD}
        status, answer, _ = await http_call(http, url, "POST", "/auth/register", credentials)
        assert status == 201, answer
        return cls(http, url, name, await log_in(http, url, name))

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        status, answer, _ = await http_call(self.http, self.url, method, path, body, self.token)
        return status, answer

    async def session(self, session_id: str) -> SessionInfo:
        status, answer = await self.call("GET", f"/v1/sessions/{session_id}")
        assert status == 200, answer
        return msgspec.convert(answer, SessionInfo)

    async def renew(self, session_id: str, jti: str) -> Credentials:
        status, answer = await self.call("POST", f"/v1/sessions/{session_id}/renew", {"jti": jti})
        assert status == 200, answer
        return msgspec.convert(answer, Credentials)

    @property
    def keys(self) -> dict[str, str]:
        return {"identity_key": self.identity_key, "noise_key": self.noise_key}

    @contextlib.asynccontextmanager
    async def online(self) -> AsyncIterator["Socket"]:
        """A bound WebSocket."""
        async with connected(self.http, self.url) as socket:
            await socket.send(wire.Bind(token=self.token))
            assert await socket.next() == wire.Bound(username=self.name)
            yield socket


async def log_in(http: aiohttp.ClientSession, url: str, name: str) -> str:
    credentials = {"username": name, "password": PASSWORD}
    status, answer, _ = await http_call(http, url, "POST", "/auth/login", credentials)
    assert status == 200, answer
    token = msgspec.convert(answer, LoginResponse).token
    assert token is not None
    return token


@dataclass
class Socket:
    """The client's end of a WebSocket."""

    ws: aiohttp.ClientWebSocketResponse

    async def send(self, message: wire.Message) -> None:
        await self.ws.send_str(wire.encode_message(message))

    async def next(self, kind: type[Any] | None = None) -> Any:
        """The next message; with `kind` it must be of that type."""
        frame = await self.ws.receive(timeout=DEADLINE_S)
        assert frame.type is aiohttp.WSMsgType.TEXT, f"{frame.type} {frame.data} {frame.extra}"
        message = wire.decode_server_message(frame.data)
        assert kind is None or isinstance(message, kind), message
        return message

    async def error(self, code: str) -> wire.Error:
        message = await self.next(wire.Error)
        assert message.code == code, message
        return message  # type: ignore[no-any-return]

    async def close_code(self) -> int | None:
        """Read to the end; the code of the close."""
        while True:
            frame = await self.ws.receive(timeout=DEADLINE_S)
            if frame.type is not aiohttp.WSMsgType.TEXT:
                return self.ws.close_code

    async def silent(self) -> None:
        """Nothing is waiting: the answer to a PING is the next message."""
        await self.send(wire.Ping())
        assert await self.next() == wire.Pong()


@contextlib.asynccontextmanager
async def connected(http: aiohttp.ClientSession, url: str, **kwargs: Any) -> AsyncIterator[Socket]:
    async with http.ws_connect(f"{url}/ws", **kwargs) as ws:
        yield Socket(ws)


async def accepted_call(caller: TestUser, calling: Socket, callee: TestUser, called: Socket) -> str:
    """OFFER and ANSWER; the session id."""
    await calling.send(wire.Offer(target_username=callee.name, **caller.keys))
    offer = await called.next(wire.Offer)
    await called.send(
        wire.Answer(target_username=caller.name, session_id=offer.session_id, **callee.keys)
    )
    answer = await calling.next(wire.Answer)
    assert answer.session_id == offer.session_id
    return str(offer.session_id)


# -- A gateway as a process -------------------------------------------------------------------


@dataclass
class GatewayProcess:
    """``python -m wavry_cp.gateway run`` on a free port; `start`, `kill`, `start` again."""

    directory: Path
    master_url: str
    environment: dict[str, str] = field(default_factory=dict)
    listen: str = "127.0.0.1:0"
    process: subprocess.Popen[bytes] | None = None
    url: str = ""

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> str:
        return (self.directory / "gateway.log").read_text()

    def start(self) -> None:
        """Start it and wait until it serves."""
        self.directory.mkdir(parents=True, exist_ok=True)
        ready = self.directory / "gateway.ready"
        ready.unlink(missing_ok=True)
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("WAVRY_")},
            "WAVRY_GATEWAY_LISTEN": self.listen,
            "WAVRY_GATEWAY_DATA_DIR": str(self.data_dir),
            "WAVRY_GATEWAY_MASTER_URL": self.master_url,
            "WAVRY_GATEWAY_SERVICE_TOKEN_FILE": str(
                write_token(self.directory / "service.token", SERVICE_TOKEN)
            ),
            "WAVRY_GATEWAY_ADMIN_TOKEN_FILE": str(
                write_token(self.directory / "admin.token", ADMIN_TOKEN)
            ),
            "WAVRY_GATEWAY_ARGON2_PASSES": "1",
            "WAVRY_GATEWAY_ARGON2_MEMORY_KIB": "8",
            **self.environment,
        }
        with (self.directory / "gateway.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "wavry_cp.gateway", "run", "--ready-file", str(ready)],
                env=environment,
                stderr=log,
                stdout=log,
            )
        end = time.monotonic() + 20
        while not ready.exists():
            assert self.process.poll() is None, f"gateway ended: {self.log}"
            assert time.monotonic() < end, f"gateway is not ready: {self.log}"
            time.sleep(0.02)
        self.url = json.loads(ready.read_text())["url"]

    def kill(self) -> None:
        """Kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(timeout=15)
        self.process = None
        return code


@contextlib.contextmanager
def gateway_process(
    directory: Path, master_url: str, environment: dict[str, str] | None = None
) -> Iterator[GatewayProcess]:
    gateway = GatewayProcess(directory, master_url, environment or {})
    try:
        gateway.start()
        yield gateway
    finally:
        if gateway.process is not None:
            gateway.kill()
