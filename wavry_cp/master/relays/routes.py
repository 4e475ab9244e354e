"""Routes of relays: register, verify, heartbeat, list, detail, deregister, drain."""

import secrets
import uuid
from typing import Final

import structlog
from aiohttp import web

from wavry_cp.app.http import bearer_token, client_address, json_response, rate_limited
from wavry_cp.app.refusal import RefusedError
from wavry_cp.app.routes import CallerKind, Route, caller_of
from wavry_cp.master.master import Master
from wavry_cp.master.outcome import outcome_of
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
    RelayInfo,
    RelayList,
    VerifyRequest,
    VerifyResponse,
)
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.registration import verify_challenge
from wavry_peer.protocol.relay_terms import RelayState
from wavry_peer.service.address_key import address_key

from . import rules
from .challenges import CHALLENGE_BYTES
from .rules import RelayEvent

__all__ = ["RELAY_ROUTES"]

RELAY_TOKEN_BYTES: Final = 32

_log = structlog.get_logger(__name__)


def _limit_strangers(master: Master, request: web.Request) -> None:
    if caller_of(request).kind is CallerKind.ANYONE:
        key = address_key(client_address(request, master.trusted_proxies))
        wait_s = master.register_limit.check(key, master.clock.monotonic_s())
        if wait_s > 0:
            raise rate_limited(wait_s)


def _count_registration(master: Master, error: Exception) -> None:
    master.metrics.registrations.labels(outcome_of(error)).inc()


def _count_heartbeat(master: Master, error: Exception) -> None:
    master.metrics.heartbeats.labels(outcome_of(error)).inc()


async def _register(
    master: Master, request: web.Request, body: RegisterRequest
) -> RegisterResponse | web.Response:
    rules.check_registration(body, master.config.allowed_relays)
    known = master.registry.record(body.relay_id)
    if known is not None and known.state is RelayState.BANNED:
        raise _banned()
    _check_ban(master, body.relay_id)
    # The service token is shared by a whole pool: it may bring a relay in, but must not
    # let one member take over the id of another that is alive. That needs its key.
    managed = caller_of(request).kind is CallerKind.SERVICE
    if managed and not master.registry.is_heard(body.relay_id, master.clock.monotonic_s()):
        return json_response(await _admit(master, body), 201)
    challenge_id = str(uuid.UUID(bytes=secrets.token_bytes(16), version=4))
    challenge = secrets.token_bytes(CHALLENGE_BYTES)
    master.challenges.add(challenge_id, challenge, body, now_s=master.clock.monotonic_s())
    master.metrics.registrations.labels("challenged").inc()
    return RegisterResponse(challenge_id=challenge_id, challenge=base64url.encode(challenge))


async def _verify(master: Master, _request: web.Request, body: VerifyRequest) -> VerifyResponse:
    pending = master.challenges.take(body.challenge_id, now_s=master.clock.monotonic_s())
    try:
        signature = base64url.decode(body.signature, size=64)
    except ValueError as error:
        raise RefusedError(ErrorCode.INVALID_BODY, f"signature is {error}") from error
    public_key = base64url.decode(pending.body.public_key)
    if not verify_challenge(public_key, pending.challenge, signature):
        raise RefusedError(ErrorCode.INVALID_SIGNATURE, "challenge is not signed by public_key")
    return await _admit(master, pending.body)


async def _admit(master: Master, body: RegisterRequest) -> VerifyResponse:
    _check_ban(master, body.relay_id)
    token = base64url.encode(secrets.token_bytes(RELAY_TOKEN_BYTES))
    await master.registry.register(
        body,
        token_hash=rules.token_digest(token),
        now_s=master.clock.now_s(),
        monotonic_s=master.clock.monotonic_s(),
    )
    master.metrics.registrations.labels("registered").inc()
    _log.info("relay_registered", relay_id=body.relay_id, region=body.region)
    return VerifyResponse(
        relay_token=token,
        heartbeat_interval_ms=master.config.heartbeat_interval_ms,
        keyset=master.keys.keyset,
        master_public_key=base64url.encode(master.keys.active.public_key),
        master_key_id=master.keys.active_kid,
    )


def _check_ban(master: Master, relay_id: str) -> None:
    # A relay may be banned before the master has ever seen it.
    if master.bans.is_banned(BanKind.RELAY, relay_id, master.clock.now_s()):
        raise _banned()


async def _heartbeat(
    master: Master, request: web.Request, body: HeartbeatRequest
) -> HeartbeatResponse:
    record, status = await master.registry.heartbeat(
        body,
        bearer_token(request) or "",
        now_s=master.clock.now_s(),
        monotonic_s=master.clock.monotonic_s(),
    )
    commands = rules.commands_for(
        record,
        status,
        keyset_serial=master.keys.keyset.serial,
        active_kid=master.keys.active_kid,
    )
    master.metrics.heartbeats.labels("accepted").inc()
    return HeartbeatResponse(
        commands=(
            *(Command(type=name) for name in commands),
            *master.block_service.take_heartbeat(body.relay_id, body.blocks),
        )
    )


async def _list(master: Master, _request: web.Request) -> RelayList:
    return RelayList(relays=tuple(master.registry.infos(master.clock.monotonic_s())))


async def _detail(master: Master, request: web.Request) -> RelayInfo:
    return master.registry.info(request.match_info["relay_id"], master.clock.monotonic_s())


async def _deregister(master: Master, request: web.Request, order: Order) -> None:
    caller, relay_id = caller_of(request), request.match_info["relay_id"]
    own = caller.kind is CallerKind.RELAY
    who = "relay" if own else caller.name
    now_s = master.clock.now_s()
    entry = AuditEntry(now_s, who, "deregister", relay_id, order.reason)
    async with attempted(master.store, entry):
        await master.registry.deregister(
            relay_id, who=who, by_operator=not own, now_s=now_s, reason=order.reason
        )
    master.events.forget(relay_id)
    master.block_service.forget(relay_id)
    _log.info("relay_deregistered", relay_id=relay_id, by=who)


async def _drain(master: Master, request: web.Request, order: Order) -> RelayInfo:
    return await _order(master, request, order, RelayEvent.DRAIN)


async def _undrain(master: Master, request: web.Request, order: Order) -> RelayInfo:
    return await _order(master, request, order, RelayEvent.UNDRAIN)


async def _order(
    master: Master, request: web.Request, order: Order, event: RelayEvent
) -> RelayInfo:
    who, relay_id = caller_of(request).name, request.match_info["relay_id"]
    now_s = master.clock.now_s()
    entry = AuditEntry(now_s, who, event.value, relay_id, order.reason)
    async with attempted(master.store, entry):
        await master.registry.order(relay_id, event, who=who, now_s=now_s, reason=order.reason)
    master.events.wake(relay_id)
    _log.info("relay_order", relay_id=relay_id, order=event.value, by=who)
    return master.registry.info(relay_id, master.clock.monotonic_s())


def _banned() -> RefusedError:
    return RefusedError(ErrorCode.BANNED, "this relay is banned; ask the operator")


RELAY_ROUTES: Final = (
    Route[Master](
        "POST",
        "/v1/relays/register",
        (CallerKind.ANYONE, CallerKind.SERVICE),
        _register,
        "Give a relay a challenge; with the service token, register it at once (201).",
        body=RegisterRequest,
        answer=RegisterResponse,
        errors=(
            ErrorCode.BANNED,
            ErrorCode.INVALID_ENDPOINT,
            ErrorCode.INVALID_PUBLIC_KEY,
            ErrorCode.INVALID_RELAY_ID,
            ErrorCode.KEY_MISMATCH,
            ErrorCode.RATE_LIMITED,
            ErrorCode.RELAY_NOT_ALLOWED,
            ErrorCode.WRONG_STATE,
        ),
        in_lockdown=True,
        before=_limit_strangers,
        refused=_count_registration,
    ),
    Route[Master](
        "POST",
        "/v1/relays/register/verify",
        (CallerKind.ANYONE,),
        _verify,
        "Check the signed challenge and register the relay.",
        body=VerifyRequest,
        answer=VerifyResponse,
        status=201,
        errors=(
            ErrorCode.BANNED,
            ErrorCode.INVALID_SIGNATURE,
            ErrorCode.KEY_MISMATCH,
            ErrorCode.RATE_LIMITED,
            ErrorCode.UNKNOWN_CHALLENGE,
            ErrorCode.WRONG_STATE,
        ),
        in_lockdown=True,
        before=_limit_strangers,
        refused=_count_registration,
    ),
    Route[Master](
        "POST",
        "/v1/relays/heartbeat",
        (CallerKind.RELAY_IN_BODY,),
        _heartbeat,
        "Take a relay's report and answer with orders.",
        body=HeartbeatRequest,
        answer=HeartbeatResponse,
        errors=(
            ErrorCode.BANNED,
            ErrorCode.INVALID_RELAY_TOKEN,
            ErrorCode.UNKNOWN_RELAY,
            ErrorCode.WRONG_STATE,
        ),
        in_lockdown=True,
        refused=_count_heartbeat,
    ),
    Route[Master](
        "GET",
        "/v1/relays",
        (CallerKind.SERVICE, CallerKind.VIEWER),
        _list,
        "List all relays.",
        answer=RelayList,
    ),
    Route[Master](
        "GET",
        "/v1/relays/{relay_id}",
        (CallerKind.SERVICE, CallerKind.VIEWER),
        _detail,
        "Tell about one relay.",
        answer=RelayInfo,
        errors=(ErrorCode.UNKNOWN_RELAY,),
    ),
    Route[Master](
        "DELETE",
        "/v1/relays/{relay_id}",
        (CallerKind.RELAY, CallerKind.OPERATOR),
        _deregister,
        "Forget a relay.",
        body=Order,
        body_optional=True,
        errors=(ErrorCode.UNKNOWN_RELAY, ErrorCode.WRONG_STATE),
    ),
    Route[Master](
        "POST",
        "/v1/admin/relays/{relay_id}/drain",
        (CallerKind.OPERATOR,),
        _drain,
        "Give a relay no new sessions from now on.",
        body=Order,
        body_optional=True,
        answer=RelayInfo,
        errors=(ErrorCode.UNKNOWN_RELAY, ErrorCode.WRONG_STATE),
    ),
    Route[Master](
        "POST",
        "/v1/admin/relays/{relay_id}/undrain",
        (CallerKind.OPERATOR,),
        _undrain,
        "End a drain.",
        body=Order,
        body_optional=True,
        answer=RelayInfo,
        errors=(ErrorCode.UNKNOWN_RELAY, ErrorCode.WRONG_STATE),
    ),
)
