"""A master of a few lines: registers the measured relay and mints leases, nothing is stored.

It speaks the calls that a relay makes (register, verify, heartbeat, key set) with the code of
`wavry_peer.protocol`, in a thread of its own, so that the bench may block.
"""

import asyncio
import secrets
import threading
import uuid
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec
from aiohttp import web

from wavry_peer.protocol import base64url, ed25519, lease, registration
from wavry_peer.protocol import constants as c
from wavry_peer.protocol import keyset as ks
from wavry_peer.protocol.http import api
from wavry_peer.protocol.packets import SessionId

__all__ = ["BenchMaster", "MintedLease"]

LEASE_TTL_S: Final = 3000
"""Longer than any run of the bench, and under the one hour ahead that a relay allows."""
UNLIMITED_KBPS: Final = lease.MAX_KBPS


class MintedLease(NamedTuple):
    """A token, and the key that its proof needs."""

    token: bytes
    proof_key: ed25519.SigningKey


def _answer(body: msgspec.Struct, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body), status=status, content_type="application/json"
    )


class BenchMaster:
    """Use as a context manager: the HTTP server lives inside."""

    def __init__(self) -> None:
        self._root = ed25519.SigningKey.from_seed(secrets.token_bytes(32))
        self._signing = ed25519.SigningKey.from_seed(secrets.token_bytes(32))
        self.kid = ks.key_id(self._signing.public_key)
        published = ks.PublishedKey(
            kid=self.kid,
            public_key=base64url.encode(self._signing.public_key),
            status="active",
        )
        self.keyset = ks.sign_keyset([published], serial=1, issued_at=0, root=self._root)
        self.url = ""
        self._challenges: dict[str, tuple[bytes, bytes, tuple[str, ...]]] = {}
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="bench-master", daemon=True)

    @property
    def root_public_key(self) -> str:
        """What a relay pins, base64url."""
        return base64url.encode(self._root.public_key)

    @property
    def signing_public_key(self) -> bytes:
        """Verifies its leases, 32 bytes."""
        return self._signing.public_key

    def mint(
        self, session_id: SessionId, role: c.Role, relay_id: str, *, now_s: int
    ) -> MintedLease:
        """Sign a lease without rate limits, bound to a fresh key."""
        key = ed25519.SigningKey.from_seed(secrets.token_bytes(32))
        claims = lease.make_claims(
            jti=str(uuid.uuid4()),
            sub=f"user-{secrets.token_hex(8)}",
            sid=str(uuid.UUID(bytes=bytes(session_id))),
            role=role,
            rid=relay_id,
            kid=self.kid,
            now_s=now_s,
            ttl_s=LEASE_TTL_S,
            soft_kbps=UNLIMITED_KBPS,
            hard_kbps=UNLIMITED_KBPS,
            cnf=base64url.encode(key.public_key),
        )
        return MintedLease(lease.sign_lease(claims, self._signing).encode(), key)

    async def _register(self, request: web.Request) -> web.Response:
        body = api.decode_body(api.RegisterRequest, await request.read())
        challenge_id, challenge = str(uuid.uuid4()), secrets.token_bytes(32)
        public_key = base64url.decode(body.public_key, size=32)
        self._challenges[challenge_id] = (challenge, public_key, body.endpoints)
        return _answer(
            api.RegisterResponse(
                challenge_id=challenge_id,
                challenge=base64url.encode(challenge),
                master_id=base64url.encode(self._root.public_key),
            )
        )

    async def _verify(self, request: web.Request) -> web.Response:
        body = api.decode_body(api.VerifyRequest, await request.read())
        challenge, public_key, endpoints = self._challenges.pop(body.challenge_id)
        signature = base64url.decode(body.signature, size=64)
        if not registration.verify_registration(
            public_key, signature, challenge, self._root.public_key, endpoints
        ):
            raise web.HTTPForbidden(text="signature does not verify")
        return _answer(
            api.VerifyResponse(
                relay_token=secrets.token_urlsafe(32),
                heartbeat_interval_ms=5000,
                keyset=self.keyset,
                master_public_key=base64url.encode(self._signing.public_key),
                master_key_id=self.kid,
            ),
            status=201,
        )

    async def _heartbeat(self, request: web.Request) -> web.Response:
        await request.read()
        return _answer(api.HeartbeatResponse())

    async def _keys(self, _request: web.Request) -> web.Response:
        return web.Response(body=ks.encode_keyset(self.keyset), content_type="application/json")

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner = self._loop.run_until_complete(self._start())
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/relays/register", self._register)
        app.router.add_post("/v1/relays/register/verify", self._verify)
        app.router.add_post("/v1/relays/heartbeat", self._heartbeat)
        app.router.add_get("/.well-known/wavry-keys.json", self._keys)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(10):
            raise RuntimeError("the bench's master did not start within 10 s")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
