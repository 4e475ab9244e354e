"""A gateway for the peer's tests: its HTTP and WebSocket messages, and leases of its own."""

import asyncio
import time
import uuid
from dataclasses import dataclass, field

import msgspec
from aiohttp import WSMsgType, web

from support.peer.stub_relay import StubRelay, mint_lease
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.errors import MessageError
from wavry_peer.protocol.http import api
from wavry_peer.protocol.http import signaling as s
from wavry_peer.protocol.http.accounts import LoginRequest

PASSWORD = "correct horse battery"


@dataclass
class Call:
    session_id: str
    caller: str
    callee: str
    keys: dict[str, tuple[str | None, str | None]]
    state: str = "pending"
    relay: StubRelay | None = None
    jtis: dict[str, str] = field(default_factory=dict)
    renewed: dict[tuple[str, str], tuple[str, api.Credentials]] = field(default_factory=dict)
    """By user and replaced lease: its successor, which is given again (as a master does)."""


class FakeGateway:
    """Speaks the gateway's HTTP and WebSocket messages and mints leases."""

    def __init__(self, relays: list[StubRelay]) -> None:
        self.relays = relays
        self.ttl_s = 300.0
        self.url = ""
        self.users: dict[str, str] = {}
        self.tokens: dict[str, str] = {}
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.calls: dict[str, Call] = {}
        self.requests: list[tuple[str, str]] = []
        self.failures: dict[str, list[tuple[int, str]]] = {}
        self.texts: dict[str, str] = {}
        """What a refusal says, by its code."""
        self.banned: dict[str, str] = {}
        """Banned users, and what they are told."""
        self.swap_keys: dict[str, str] = {}
        """User name to the noise key that the gateway names instead of the true one."""
        self.lose_messages: set[type] = set()
        self.answers_bind = True
        self.raw_on_bind: list[str] = []
        self._runner: web.AppRunner | None = None

    async def start(self) -> "FakeGateway":
        app = web.Application()
        app.add_routes(
            [
                web.post("/auth/register", self._register),
                web.post("/auth/login", self._login),
                web.post("/auth/logout", self._logout),
                web.get("/ws", self._websocket),
                web.post("/v1/sessions", self._create),
                web.get("/v1/sessions/{id}", self._get),
                web.delete("/v1/sessions/{id}", self._delete),
                web.post("/v1/sessions/{id}/accept", self._accept),
                web.post("/v1/sessions/{id}/relay", self._relay),
                web.post("/v1/sessions/{id}/renew", self._renew),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def close(self) -> None:
        await self.drop_sockets()
        if self._runner is not None:
            await self._runner.cleanup()

    async def drop_sockets(self) -> None:
        for ws in list(self.sockets.values()):
            await ws.close()

    def token(self, username: str) -> str:
        """A login without the password."""
        self.users.setdefault(username, PASSWORD)
        token = f"token-{username}-{uuid.uuid4()}"
        self.tokens[token] = username
        return token

    def fail(self, what: str, status: int, code: str, times: int = 1) -> None:
        self.failures.setdefault(what, []).extend([(status, code)] * times)

    async def tell(self, username: str, message: s.Message) -> None:
        ws = self.sockets.get(username)
        if ws is not None and type(message) not in self.lose_messages:
            await ws.send_str(s.encode_message(message))

    # -- HTTP ----------------------------------------------------------------------------

    def _refused(self, what: str) -> web.Response | None:
        if self.failures.get(what):
            status, code = self.failures[what].pop(0)
            return _error(status, code, self.texts.get(code))
        return None

    def _who(self, request: web.Request) -> str:
        self.requests.append((request.method, request.path))
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.tokens:
            raise web.HTTPUnauthorized(
                text=msgspec.json.encode(api.ErrorBody("invalid_token", "log in again")).decode()
            )
        return self.tokens[token]

    async def _register(self, request: web.Request) -> web.Response:
        body = api.decode_body(api.UserCredentials, await request.read())
        if body.username in self.users:
            return _error(409, "username_taken")
        self.users[body.username] = body.password
        return _json(api.LoginResponse(username=body.username), 201)

    async def _login(self, request: web.Request) -> web.Response:
        body = api.decode_body(LoginRequest, await request.read())
        if (refused := self._refused("login")) is not None:
            return refused
        if self.users.get(body.username) != body.password:
            return _error(401, "invalid_credentials")
        token = self.token(body.username)
        return _json(api.LoginResponse(username=body.username, token=token, expires_at=2**31))

    async def _logout(self, request: web.Request) -> web.Response:
        self._who(request)
        del self.tokens[request.headers["Authorization"].removeprefix("Bearer ")]
        return web.Response(status=204)

    async def _create(self, request: web.Request) -> web.Response:
        caller = self._who(request)
        body = api.decode_body(api.CreateSessionRequest, await request.read())
        if body.target_username not in self.sockets:
            return _error(404, "user_offline")
        session_id = str(uuid.uuid4())
        call = Call(session_id, caller, body.target_username, {})
        call.keys[caller] = (body.identity_key, body.noise_key)
        self.calls[session_id] = call
        await self.tell(
            call.callee,
            s.Offer(
                from_username=caller,
                session_id=session_id,
                identity_key=body.identity_key,
                noise_key=self.swap_keys.get(caller, body.noise_key),
            ),
        )
        return _json(self._info(call, caller), 201)

    async def _get(self, request: web.Request) -> web.Response:
        username = self._who(request)
        call = self.calls.get(request.match_info["id"])
        return _error(404, "unknown_session") if call is None else _json(self._info(call, username))

    async def _delete(self, request: web.Request) -> web.Response:
        username = self._who(request)
        call = self.calls.get(request.match_info["id"])
        if call is None:
            return _error(404, "unknown_session")
        if call.state != "closed":
            call.state = "closed"
            bye = s.Bye(from_username=username, session_id=call.session_id)
            await self.tell(_other(call, username), bye)
        return web.Response(status=204)

    async def _accept(self, request: web.Request) -> web.Response:
        username = self._who(request)
        body = api.decode_body(api.AcceptSessionRequest, await request.read())
        call = self.calls[request.match_info["id"]]
        call.state = "accepted"
        call.keys[username] = (body.identity_key, body.noise_key)
        await self.tell(
            call.caller,
            s.Answer(
                from_username=username,
                session_id=call.session_id,
                identity_key=body.identity_key,
                noise_key=self.swap_keys.get(username, body.noise_key),
            ),
        )
        return _json(self._info(call, username))

    async def _relay(self, request: web.Request) -> web.Response:
        username = self._who(request)
        body = api.decode_body(api.RelaySessionRequest, await request.read())
        call = self.calls[request.match_info["id"]]
        if (refused := self._refused("relay")) is not None:
            return refused
        allowed = [relay for relay in self.relays if relay.relay_id not in body.exclude_relays]
        free = [relay for relay in allowed if not relay.draining]
        if not free and call.relay not in allowed:
            return _error(503, "no_relay_available")
        if call.relay not in free:  # a live session stays where it is, if it can
            call.relay = free[0] if free else call.relay
        other = _other(call, username)
        issued_s = time.time()
        own = self._credentials(call, username, issued_s)
        theirs = self._credentials(call, other, issued_s)
        await self.tell(
            other,
            s.RelayCredentials(
                relay_id=theirs.relay_id,
                token=theirs.token,
                addr=theirs.addr,
                session_id=theirs.session_id,
                expires_at=theirs.expires_at,
                addrs=theirs.addrs,
                role=theirs.role,
                with_username=username,
            ),
        )
        return _json(own)

    async def _renew(self, request: web.Request) -> web.Response:
        username = self._who(request)
        body = api.decode_body(api.RenewSessionRequest, await request.read())
        call = self.calls.get(request.match_info["id"])
        if (refused := self._refused("renew")) is not None:
            return refused
        if call is None or call.state == "closed":
            return _error(404, "unknown_session")
        successor, answer = call.renewed.get((username, body.jti), ("", None))
        if answer is not None and successor == call.jtis[username]:
            return _json(answer)
        if call.jtis[username] != body.jti:
            return _error(409, "stale_jti")
        answer = self._credentials(call, username, time.time())
        call.renewed[username, body.jti] = call.jtis[username], answer
        return _json(answer)

    def _credentials(self, call: Call, username: str, issued_s: float) -> api.Credentials:
        assert call.relay is not None
        role = c.Role.CLIENT if username == call.caller else c.Role.SERVER
        call.jtis[username] = str(uuid.uuid4())
        token = mint_lease(
            session_id=call.session_id,
            role=role,
            relay_id=call.relay.relay_id,
            cnf=call.keys[username][0],
            ttl_s=self.ttl_s,
            issued_s=issued_s,
            sub=username,
            jti=call.jtis[username],
        )
        return api.Credentials(
            session_id=call.session_id,
            relay_id=call.relay.relay_id,
            token=token,
            addr=call.relay.address,
            addrs=(call.relay.address,),
            role="client" if role is c.Role.CLIENT else "server",
            expires_at=int(issued_s + self.ttl_s),
        )

    def _info(self, call: Call, username: str) -> api.SessionInfo:
        other = _other(call, username)
        noise_key = call.keys.get(other, (None, None))[1]
        return api.SessionInfo(
            session_id=call.session_id,
            caller=call.caller,
            callee=call.callee,
            state=call.state,  # type: ignore[arg-type]
            peer_noise_key=self.swap_keys.get(other, noise_key),
            created_at=int(time.time()),
        )

    # -- WebSocket -------------------------------------------------------------------------

    async def _websocket(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        bind = s.decode_client_message((await ws.receive()).data)
        assert isinstance(bind, s.Bind)
        if not self.answers_bind:
            await asyncio.sleep(30)
        username = self.tokens.get(bind.token)
        if username is None:
            await ws.send_str(s.encode_message(s.Error(code="invalid_token", message="no")))
            await ws.close(code=4401)
            return ws
        if username in self.banned:
            await self._end_for_ban(ws, username)
            return ws
        old = self.sockets.get(username)
        self.sockets[username] = ws
        if old is not None:
            await old.send_str(s.encode_message(s.Error(code="displaced", message="newer")))
            await old.close(code=4409)
        await ws.send_str(s.encode_message(s.Bound(username=username)))
        for raw in self.raw_on_bind:
            await ws.send_str(raw)
        try:
            async for frame in ws:
                if frame.type is WSMsgType.TEXT:
                    await self._on_frame(username, ws, frame.data)
        finally:
            if self.sockets.get(username) is ws:
                del self.sockets[username]
        return ws

    async def ban(self, username: str) -> None:
        """As the gateway ends the connection of who is banned."""
        await self._end_for_ban(self.sockets[username], username)

    async def _end_for_ban(self, ws: web.WebSocketResponse, username: str) -> None:
        error = s.Error(code="banned", message=self.banned[username])
        await ws.send_str(s.encode_message(error))
        await ws.close(code=4401)

    async def _on_frame(self, username: str, ws: web.WebSocketResponse, text: str) -> None:
        try:
            message = s.decode_client_message(text)
        except MessageError as error:
            await ws.send_str(s.encode_message(s.Error(code=error.code, message=str(error))))
            return
        if isinstance(message, s.Ping):
            await ws.send_str(s.encode_message(s.Pong()))
        elif isinstance(message, s.Answer) and not message.accept and message.session_id:
            call = self.calls.get(message.session_id)
            if call is None:
                return
            call.state = "closed"
            await self.tell(
                call.caller,
                s.Answer(from_username=username, session_id=call.session_id, accept=False),
            )


def _other(call: Call, username: str) -> str:
    return call.callee if username == call.caller else call.caller


def _json(body: api.Body, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(body), content_type="application/json"
    )


def _error(status: int, code: str, text: str | None = None) -> web.Response:
    body = api.ErrorBody(code, text or f"refused: {code}")
    return web.Response(
        status=status, body=msgspec.json.encode(body), content_type="application/json"
    )
