"""Routes of relays: register, verify, heartbeat, list, detail, deregister, drain."""

import secrets
import uuid
from collections.abc import Callable
from typing import Final

import structlog
from aiohttp import web

from wavry_cp.app.http import (
    ApiError,
    bearer_token,
    client_address,
    json_response,
    rate_limited,
    read_body,
    read_optional_body,
    unauthorized,
)
from wavry_cp.app.rate_limit import address_key
from wavry_cp.master.context import MasterContext
from wavry_cp.master.outcome import counted
from wavry_cp.master.refusal import RefusedError
from wavry_cp.operators.audit import AuditEntry, attempted
from wavry_cp.operators.bans import BanKind
from wavry_peer.protocol import base64url
from wavry_peer.protocol.http.admin import Order
from wavry_peer.protocol.http.api import (
    Command,
    HeartbeatRequest,
    HeartbeatResponse,
    RegisterRequest,
    RegisterResponse,
    RelayList,
    VerifyRequest,
    VerifyResponse,
)
from wavry_peer.protocol.registration import verify_challenge

from . import rules as registry
from .challenges import CHALLENGE_BYTES
from .rules import RelayEvent, RelayState

__all__ = ["RelayRoutes"]

RELAY_TOKEN_BYTES: Final = 32

_log = structlog.get_logger(__name__)


class RelayRoutes:
    """Handlers; the rules are in `registry` and `directory`."""

    def __init__(
        self,
        context: MasterContext,
        *,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._context = context
        self._random_bytes = random_bytes

    def routes(self) -> list[web.RouteDef]:
        """The route table."""
        return [
            web.post("/v1/relays/register", self.register),
            web.post("/v1/relays/register/verify", self.verify),
            web.post("/v1/relays/heartbeat", self.heartbeat),
            web.get("/v1/relays", self.list),
            web.get("/v1/relays/{relay_id}", self.detail),
            web.delete("/v1/relays/{relay_id}", self.deregister),
            web.post("/v1/admin/relays/{relay_id}/drain", self.drain),
            web.post("/v1/admin/relays/{relay_id}/undrain", self.undrain),
        ]

    async def register(self, request: web.Request) -> web.Response:
        """Give a challenge; with the service token, the registration at once."""
        context = self._context
        with counted(context.metrics.registrations) as outcome:
            managed = False
            if bearer_token(request) is None:
                self._limit(request)
            else:
                context.access.require(request, "service")
                managed = True
            body = await read_body(request, RegisterRequest)
            registry.check_registration(body, context.config.allowed_relays)
            known = context.directory.record(body.relay_id)
            if known is not None and known.state is RelayState.BANNED:
                raise _banned()
            self._check_ban(body.relay_id)
            # The service token is shared by a whole pool: it may bring a relay in, but must not
            # let one member take over the id of another that is alive. That needs its key.
            alive = context.directory.is_heard(body.relay_id, context.clock.monotonic_s())
            if managed and not alive:
                outcome.result = "registered"
                return await self._admit(body)
            challenge_id = str(uuid.UUID(bytes=self._random_bytes(16), version=4))
            challenge = self._random_bytes(CHALLENGE_BYTES)
            context.challenges.add(challenge_id, challenge, body, now_s=context.clock.monotonic_s())
            outcome.result = "challenged"
            return json_response(
                RegisterResponse(challenge_id=challenge_id, challenge=base64url.encode(challenge))
            )

    async def verify(self, request: web.Request) -> web.Response:
        """Check the signed challenge and register the relay."""
        context = self._context
        with counted(context.metrics.registrations) as outcome:
            self._limit(request)
            body = await read_body(request, VerifyRequest)
            pending = context.challenges.take(body.challenge_id, now_s=context.clock.monotonic_s())
            try:
                signature = base64url.decode(body.signature, size=64)
            except ValueError as error:
                raise ApiError(400, "invalid_body", f"signature is {error}") from error
            public_key = base64url.decode(pending.body.public_key)
            if not verify_challenge(public_key, pending.challenge, signature):
                raise RefusedError("invalid_signature", "challenge is not signed by public_key")
            outcome.result = "registered"
            return await self._admit(pending.body)

    async def heartbeat(self, request: web.Request) -> web.Response:
        """Take a relay's report and answer with orders."""
        context = self._context
        with counted(context.metrics.heartbeats) as outcome:
            token = bearer_token(request)
            if token is None:
                raise unauthorized("the relay token is required")
            body = await read_body(request, HeartbeatRequest)
            record, status = await context.directory.heartbeat(
                body,
                token,
                now_s=context.clock.now_s(),
                monotonic_s=context.clock.monotonic_s(),
            )
            commands = registry.commands_for(
                record,
                status,
                keyset_serial=context.keys.keyset.serial,
                active_kid=context.keys.active_kid,
            )
            outcome.result = "accepted"
            return json_response(
                HeartbeatResponse(
                    commands=(
                        *(Command(type=name) for name in commands),
                        *context.block_desk.take_heartbeat(body.relay_id, body.blocks),
                    )
                )
            )

    async def list(self, request: web.Request) -> web.Response:
        """All relays."""
        self._context.access.require(request, "service", "viewer")
        infos = self._context.directory.infos(self._context.clock.monotonic_s())
        return json_response(RelayList(relays=tuple(infos)))

    async def detail(self, request: web.Request) -> web.Response:
        """One relay."""
        self._context.access.require(request, "service", "viewer")
        return self._info(request.match_info["relay_id"])

    async def deregister(self, request: web.Request) -> web.Response:
        """Forget a relay: by the operator, or by the relay itself."""
        context = self._context
        relay_id = request.match_info["relay_id"]
        own = context.directory.relay_token_matches(relay_id, bearer_token(request))
        who = "relay" if own else context.access.require(request, "operator")
        order = await read_optional_body(request, Order)
        now_s = context.clock.now_s()
        entry = AuditEntry(now_s, who, "deregister", relay_id, order.reason)
        async with attempted(context.store, entry):
            await context.directory.deregister(
                relay_id, who=who, by_operator=not own, now_s=now_s, reason=order.reason
            )
        context.events.forget(relay_id)
        context.block_desk.forget(relay_id)
        _log.info("relay_deregistered", relay_id=relay_id, by=who)
        return web.Response(status=204)

    async def drain(self, request: web.Request) -> web.Response:
        """Give a relay no new sessions from now on."""
        return await self._order(request, RelayEvent.DRAIN)

    async def undrain(self, request: web.Request) -> web.Response:
        """End a drain."""
        return await self._order(request, RelayEvent.UNDRAIN)

    async def _order(self, request: web.Request, event: RelayEvent) -> web.Response:
        context = self._context
        who = context.access.require(request, "operator")
        relay_id = request.match_info["relay_id"]
        order = await read_optional_body(request, Order)
        now_s = context.clock.now_s()
        async with attempted(
            context.store, AuditEntry(now_s, who, event.value, relay_id, order.reason)
        ):
            await context.directory.order(
                relay_id, event, who=who, now_s=now_s, reason=order.reason
            )
        context.events.wake(relay_id)
        _log.info("relay_order", relay_id=relay_id, order=event.value, by=who)
        return self._info(relay_id)

    def _info(self, relay_id: str) -> web.Response:
        monotonic_s = self._context.clock.monotonic_s()
        return json_response(self._context.directory.info(relay_id, monotonic_s))

    async def _admit(self, body: RegisterRequest) -> web.Response:
        context = self._context
        self._check_ban(body.relay_id)
        token = base64url.encode(self._random_bytes(RELAY_TOKEN_BYTES))
        await context.directory.register(
            body,
            token_hash=registry.token_digest(token),
            now_s=context.clock.now_s(),
            monotonic_s=context.clock.monotonic_s(),
        )
        _log.info("relay_registered", relay_id=body.relay_id, region=body.region)
        answer = VerifyResponse(
            relay_token=token,
            heartbeat_interval_ms=context.config.heartbeat_interval_ms,
            keyset=context.keys.keyset,
            master_public_key=base64url.encode(context.keys.active.public_key),
            master_key_id=context.keys.active_kid,
        )
        return json_response(answer, status=201)

    def _check_ban(self, relay_id: str) -> None:
        # A relay may be banned before the master has ever seen it.
        context = self._context
        if context.bans.is_banned(BanKind.RELAY, relay_id, context.clock.now_s()):
            raise _banned()

    def _limit(self, request: web.Request) -> None:
        context = self._context
        key = address_key(client_address(request, context.trusted_proxies))
        wait_s = context.register_limit.check(key, context.clock.monotonic_s())
        if wait_s > 0:
            raise rate_limited(wait_s)


def _banned() -> RefusedError:
    return RefusedError("banned", "this relay is banned; ask the operator")
