"""A master in a thread, as a relay sees it."""

import asyncio
import os
import threading
import uuid
from typing import Any, Self

import msgspec
from aiohttp import web

from support.relay.mint import Mint
from wavry_peer.protocol import base64url, keyset
from wavry_peer.protocol.http import api
from wavry_peer.protocol.registration import verify_registration


class FakeMaster:
    """A master in a thread: registration by challenge, heartbeats, key set, deregistration."""

    def __init__(self, mint: Mint, *, heartbeat_ms: int = 100) -> None:
        self.mint = mint
        self.heartbeat_ms = heartbeat_ms
        self.serial = 1
        self.registered: list[dict[str, Any]] = []
        self.heartbeats: list[dict[str, Any]] = []
        self.deregistered: list[str] = []
        self.commands: list[str] = []
        """Sent with every heartbeat answer."""
        self.heartbeat_status = 200
        self.register_status = 200
        self.refusal_code = ""
        """Error code of both, if set."""
        self.keys_status = 200
        self.challenge_text: str | None = None
        """Sent instead of a challenge, if set."""
        self._challenges: dict[str, tuple[dict[str, Any], bytes]] = {}
        self._tokens: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._run())
        finally:
            self._loop.close()

    async def _run(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/relays/register", self._register)
        app.router.add_post("/v1/relays/register/verify", self._verify)
        app.router.add_post("/v1/relays/heartbeat", self._heartbeat)
        app.router.add_delete("/v1/relays/{id}", self._deregister)
        app.router.add_get("/.well-known/wavry-keys.json", self._keys)
        self.add_routes(app)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = "http://{}:{}".format(*runner.addresses[0][:2])
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    def add_routes(self, app: web.Application) -> None:
        """Further routes of a subclass."""

    async def _register(self, request: web.Request) -> web.Response:
        if self.register_status != 200:
            code = self.refusal_code or "refused"
            return _json({"error": code, "message": "as told"}, self.register_status)
        facts = msgspec.to_builtins(api.decode_body(api.RegisterRequest, await request.read()))
        challenge_id, challenge = str(uuid.uuid4()), os.urandom(32)
        self._challenges[challenge_id] = facts, challenge
        text = self.challenge_text or base64url.encode(challenge)
        return _json(
            {"challenge_id": challenge_id, "challenge": text, "master_id": self.mint.root_text}
        )

    async def _verify(self, request: web.Request) -> web.Response:
        body = api.decode_body(api.VerifyRequest, await request.read())
        facts, challenge = self._challenges.pop(body.challenge_id)
        public_key = base64url.decode(facts["public_key"])
        if not verify_registration(
            public_key,
            base64url.decode(body.signature),
            challenge,
            self.mint.root.public_key,
            facts["endpoints"],
        ):
            return _json({"error": "invalid_signature", "message": "no"}, 403)
        assert keyset.relay_id(public_key) == facts["relay_id"]
        token = base64url.encode(os.urandom(32))
        self._tokens.add(token)
        self.registered.append(facts)
        answer = api.VerifyResponse(
            relay_token=token,
            heartbeat_interval_ms=self.heartbeat_ms,
            keyset=self.mint.keyset(serial=self.serial),
            master_public_key=base64url.encode(self.mint.signing.public_key),
            master_key_id=self.mint.kid,
        )
        return _json(answer, 201)

    def _is_authorized(self, request: web.Request) -> bool:
        return request.headers.get("Authorization", "").removeprefix("Bearer ") in self._tokens

    async def _heartbeat(self, request: web.Request) -> web.Response:
        if not self._is_authorized(request) or self.heartbeat_status != 200:
            status = self.heartbeat_status if self.heartbeat_status != 200 else 401
            code = self.refusal_code or "unknown_relay"
            return _json({"error": code, "message": "register"}, status)
        body = api.decode_body(api.HeartbeatRequest, await request.read())
        self.heartbeats.append(msgspec.to_builtins(body))
        return _json({"commands": [{"type": name} for name in self.commands]})

    async def _deregister(self, request: web.Request) -> web.Response:
        if not self._is_authorized(request):
            return _json({"error": "unauthorized", "message": "no"}, 401)
        self.deregistered.append(request.match_info["id"])
        return web.Response(status=204)

    async def _keys(self, _request: web.Request) -> web.Response:
        if self.keys_status != 200:
            return _json({"error": "refused", "message": "as told"}, self.keys_status)
        return _json(self.mint.keyset(serial=self.serial))


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body), status=status, content_type="application/json"
    )
