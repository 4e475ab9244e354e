"""Routes of a relay that registers: register, verify.  What is refused is told to the operator."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from aiohttp import web

from wavry_cp.app.http import client_address, rate_limited
from wavry_cp.app.refusal import RefusedError
from wavry_cp.app.routes import CallerKind, Route, caller_of
from wavry_cp.master.master import Master
from wavry_cp.master.outcome import outcome_of
from wavry_cp.master.relays.strangers import network_of
from wavry_peer.protocol.http.api import (
    RegisterRequest,
    RegisterResponse,
    VerifyRequest,
    VerifyResponse,
)
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.service.address_key import address_key

__all__ = ["REGISTRATION_ROUTES"]

_log = structlog.get_logger(__name__)


def _limit_strangers(master: Master, request: web.Request) -> None:
    if caller_of(request).kind is CallerKind.ANYONE:
        key = address_key(client_address(request, master.trusted_proxies))
        wait_s = master.register_limit.check(key, master.clock.monotonic_s())
        if wait_s > 0:
            raise rate_limited(wait_s)


def _count_registration(master: Master, error: Exception) -> None:
    master.metrics.registrations.labels(outcome_of(error)).inc()


@contextmanager
def _about(relay_id: str) -> Iterator[None]:
    """Say of every refusal which relay it is about, for the audit log."""
    try:
        yield
    except RefusedError as error:
        error.about = relay_id
        raise


async def _register(
    master: Master, request: web.Request, body: RegisterRequest
) -> RegisterResponse:
    with _about(body.relay_id):
        managed = caller_of(request).kind is CallerKind.SERVICE
        if not managed and body.enrolment_token is not None:
            managed = master.access.is_service_token(body.enrolment_token)
        answer = master.registrar.challenge(body, is_managed=managed)
    master.metrics.registrations.labels("challenged").inc()
    return answer


async def _verify(master: Master, request: web.Request, body: VerifyRequest) -> VerifyResponse:
    network = network_of(client_address(request, master.trusted_proxies))
    pending = master.registrar.take(body.challenge_id)
    with _about(pending.body.relay_id):
        master.registrar.check_signature(pending, body)
        answer, registered = await master.registrar.register(pending, network=network)
    for relay_id in registered.gone:
        master.forget_relay(relay_id)
    record = registered.record
    master.metrics.registrations.labels("registered").inc()
    _log.info(
        "relay_registered",
        relay_id=record.relay_id,
        name=record.name,
        region=record.region,
        enrolment=record.enrolment.value,
    )
    return answer


REGISTRATION_ROUTES: Final = (
    Route[Master](
        "POST",
        "/v1/relays/register",
        (CallerKind.ANYONE, CallerKind.SERVICE),
        _register,
        "Give a relay that may come in a challenge; a service token is as good as an enrolment's.",
        body=RegisterRequest,
        answer=RegisterResponse,
        errors=(
            ErrorCode.BANNED,
            ErrorCode.ENROLMENT_TOKEN_INVALID,
            ErrorCode.INVALID_ENDPOINT,
            ErrorCode.INVALID_PUBLIC_KEY,
            ErrorCode.INVALID_RELAY_ID,
            ErrorCode.NAME_TAKEN,
            ErrorCode.RATE_LIMITED,
            ErrorCode.RELAY_NOT_ENROLLED,
            ErrorCode.WRONG_REGION,
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
        "Check what the relay signed (challenge, master, endpoints) and register it.",
        body=VerifyRequest,
        answer=VerifyResponse,
        status=201,
        errors=(
            ErrorCode.BANNED,
            ErrorCode.ENDPOINT_TAKEN,
            ErrorCode.ENROLMENT_TOKEN_INVALID,
            ErrorCode.INVALID_ENDPOINT,
            ErrorCode.INVALID_SIGNATURE,
            ErrorCode.KEY_MISMATCH,
            ErrorCode.NAME_TAKEN,
            ErrorCode.RATE_LIMITED,
            ErrorCode.RELAY_NOT_ENROLLED,
            ErrorCode.TOO_MANY_STRANGERS,
            ErrorCode.UNKNOWN_CHALLENGE,
            ErrorCode.WRONG_REGION,
            ErrorCode.WRONG_STATE,
        ),
        in_lockdown=True,
        before=_limit_strangers,
        refused=_count_registration,
    ),
)
