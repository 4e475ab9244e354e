"""A gateway and relays for the peer's tests: real sockets, the real protocol, faults on demand."""

import asyncio
import contextlib
import random
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import WSMsgType, web

import wavry_peer
from wavry_peer.protocol import base64url, keyset, lease, packets
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.ed25519 import SigningKey
from wavry_peer.protocol.errors import LeaseError, MessageError, PacketError
from wavry_peer.protocol.http import api
from wavry_peer.protocol.http import signaling as s

MASTER_KEY = SigningKey.from_seed(b"\x01" * 32)
KID = str(keyset.key_id(MASTER_KEY.public_key))
PASSWORD = "correct horse battery"


def mint_lease(
    *,
    session_id: str,
    role: c.Role,
    relay_id: str,
    cnf: str | None,
    ttl_s: float = 300.0,
    issued_s: float | None = None,
    sub: str = "somebody",
    jti: str | None = None,
) -> str:
    """A lease with fractions of seconds, so that short ones are exact."""
    now_s = time.time() if issued_s is None else issued_s
    claims = lease.make_claims(
        jti=jti or str(uuid.uuid4()),
        sub=sub,
        sid=session_id,
        role=role,
        rid=relay_id,
        kid=KID,
        now_s=int(now_s),
        ttl_s=int(ttl_s) or 1,
        soft_kbps=100_000,
        hard_kbps=200_000,
        cnf=cnf,
    )
    issued = datetime.fromtimestamp(now_s, UTC)
    claims = msgspec.structs.replace(
        claims, iat=issued, nbf=issued, exp=issued + timedelta(seconds=ttl_s)
    )
    return lease.sign_lease(claims, MASTER_KEY)


async def eventually(condition: Callable[[], Any], timeout_s: float = 5.0) -> Any:
    """Polls until the condition gives something true."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "condition not met in time"
        await asyncio.sleep(0.005)
    return value


@dataclass
class Slot:
    address: tuple[Any, ...]
    expires_ms: int
    jti: str
    counter: int


class StubRelay(asyncio.DatagramProtocol):
    """Checks leases as a relay does, and forwards; one session table, no limits."""

    def __init__(self, name: str = "rly-test-1", seed: int = 1) -> None:
        self.relay_id = name
        self.slots: dict[bytes, dict[c.Role, Slot]] = {}
        self.presents: list[tuple[packets.Header, packets.LeasePresent]] = []
        self.rejected: list[c.RejectReason] = []
        self.wire: list[bytes] = []
        self.forwarded = 0
        self.silent = False
        self.draining = False
        """As the master sees it: the gateway gives no new session to this relay."""
        self.released: list[c.Role] = []
        self.needs_cookie = False
        self.reject_with: c.RejectReason | None = None
        self.rejects_sent = 0
        self.loss = 0.0
        self.random = random.Random(seed)
        self.transport: asyncio.DatagramTransport | None = None
        self.jtis: list[str] = []

    async def start(self, host: str = "127.0.0.1") -> "StubRelay":
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind((host, 0))
        self.transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=sock)
        return self

    @property
    def address(self) -> str:
        assert self.transport is not None
        host, port = self.transport.get_extra_info("sockname")[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def forget(self) -> None:
        """As a relay that was started anew."""
        self.slots.clear()

    def tell_all(self, make: Callable[[bytes], bytes]) -> None:
        for session_id, slots in self.slots.items():
            for slot in slots.values():
                self._send(make(session_id), slot.address)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if self.silent or (self.loss and self.random.random() < self.loss):
            return
        try:
            packet = packets.parse_packet(data)
        except PacketError:
            return
        header, body = packet.header, packet.body
        if isinstance(body, packets.LeasePresent):
            self.presents.append((header, body))
            self._on_present(header, body, addr)
        elif header.type is c.PacketType.FORWARD:
            self._on_forward(header, data, addr)

    def _on_present(
        self, header: packets.Header, present: packets.LeasePresent, addr: tuple[Any, ...]
    ) -> None:
        session_id = header.session_id
        if self.reject_with is not None:
            self.rejects_sent += 1
            self._send(packets.build_reject(session_id, self.reject_with), addr)
            return
        proof = present.proof
        if self.needs_cookie and (proof is None or proof.cookie != self._cookie(addr)):
            self._send(packets.build_challenge(session_id, self._cookie(addr)), addr)
            return
        keys = {lease.KeyId(KID): lease.TrustedKey(MASTER_KEY.public_key)}
        try:
            claims = lease.open_lease(present.token, keys)
            lease.check_claims(
                claims,
                relay_id=lease.RelayId(self.relay_id),
                session_id=session_id,
                role=present.role,
                now_ms=time.time_ns() // 1_000_000,
            )
            lease.check_proof(claims, present)
            counter = 0 if proof is None else proof.counter
            old = self.slots.get(session_id, {}).get(present.role)
            if old is not None and counter <= old.counter:
                raise LeaseError(c.RejectReason.REPLAYED, "counter did not grow")
        except LeaseError as error:
            self.rejected.append(error.reason)
            self._send(packets.build_reject(session_id, error.reason), addr)
            return
        if proof is not None and proof.cookie == c.RELEASE_COOKIE:
            self.released.append(present.role)
            self.slots.get(session_id, {}).pop(present.role, None)
            return
        self.jtis.append(claims.jti)
        slot = Slot(addr, claims.expires_ms, claims.jti, counter)
        self.slots.setdefault(session_id, {})[present.role] = slot
        reflexive = (socket.inet_pton(_family(addr[0]), addr[0]), addr[1])
        ack = packets.LeaseAck(claims.expires_ms, claims.slimit, claims.hlimit, reflexive)
        self._send(packets.build_ack(session_id, ack), addr)

    def _on_forward(self, header: packets.Header, data: bytes, addr: tuple[Any, ...]) -> None:
        slots = self.slots.get(header.session_id, {})
        if len(slots) < 2:
            return
        sender = next((role for role, slot in slots.items() if slot.address == addr), None)
        if sender is None:
            self._send(packets.build_challenge(header.session_id, self._cookie(addr)), addr)
            return
        if slots[sender].expires_ms <= time.time_ns() // 1_000_000:
            return
        self.wire.append(data)
        del self.wire[:-2000]
        self.forwarded += 1
        other = c.Role.SERVER if sender is c.Role.CLIENT else c.Role.CLIENT
        self._send(data, slots[other].address)

    def _cookie(self, addr: tuple[Any, ...]) -> bytes:
        return random.Random(f"{addr[0]} {addr[1]}").randbytes(8)

    def _send(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.sendto(data, addr)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@dataclass
class Call:
    session_id: str
    caller: str
    callee: str
    keys: dict[str, tuple[str | None, str | None]]
    state: str = "pending"
    relay: StubRelay | None = None
    jtis: dict[str, str] = field(default_factory=dict)


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
        body = api.decode_body(api.UserCredentials, await request.read())
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
        if call.jtis[username] != body.jti:
            return _error(409, "stale_jti")
        return _json(self._credentials(call, username, time.time()))

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


class PeerWorld:
    """A gateway, two relays, and the homes of users."""

    def __init__(self, gateway: FakeGateway, directory: Path) -> None:
        self.gateway = gateway
        self.directory = directory

    @property
    def relay(self) -> StubRelay:
        return self.gateway.relays[0]

    @property
    def spare(self) -> StubRelay:
        return self.gateway.relays[1]

    def login(self, username: str) -> dict[str, Any]:
        return {"token": self.gateway.token(username), "home": self.directory / username}

    def connect(self, caller: str, callee: str, **extra: Any) -> Any:
        return wavry_peer.connect(self.gateway.url, callee, **(self.login(caller) | extra))

    def listen(self, username: str, **extra: Any) -> Any:
        options = {"accept": "all"} | self.login(username) | extra
        return wavry_peer.listen(self.gateway.url, **options)

    @contextlib.asynccontextmanager
    async def pair(
        self, **extra: Any
    ) -> AsyncIterator[tuple[wavry_peer.Session, wavry_peer.Session]]:
        """Alice called Bob."""
        async with self.listen("bob") as listener, self.connect("alice", "bob", **extra) as alice:
            async with asyncio.timeout(5):
                bob = await listener.accept()
            async with bob:
                yield alice, bob


@contextlib.asynccontextmanager
async def peer_world(directory: Path) -> AsyncIterator[PeerWorld]:
    relays = [await StubRelay("rly-test-1", 1).start(), await StubRelay("rly-test-2", 2).start()]
    gateway = await FakeGateway(relays).start()
    try:
        yield PeerWorld(gateway, directory)
    finally:
        await gateway.close()
        for relay in relays:
            relay.close()


def noise_key_text(public: bytes) -> str:
    return base64url.encode(public)
