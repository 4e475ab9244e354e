"""Routes of key administration: steps of a rotation, change of root, status."""

from typing import Final

from aiohttp import web

from wavry_cp.app.http import client_address, rate_limited
from wavry_cp.app.routes import CallerKind, Route, caller_of
from wavry_cp.master.master import Master
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.http.keys import (
    KeysStatus,
    KeyStepRequest,
    KeyStepResponse,
    RootStepRequest,
)
from wavry_peer.protocol.keyset import KeySet
from wavry_peer.service.address_key import address_key

from .rules import KeyStep

__all__ = ["KEY_ROUTES"]

KEYS_MAX_AGE_S: Final = 30
KEY_ERRORS: Final = (
    ErrorCode.INVALID_DOCUMENT,
    ErrorCode.KEYS_NOT_WRITTEN,
    ErrorCode.PLAN_CHANGED,
    ErrorCode.ROOT_KEY_HERE,
)


async def _document(master: Master, _request: web.Request) -> web.Response:
    return web.Response(body=master.keys.document, content_type="application/json")


def _limit(master: Master, request: web.Request) -> None:
    key = address_key(client_address(request, master.trusted_proxies))
    wait_s = master.open_limit.check(key, master.clock.monotonic_s())
    if wait_s > 0:
        raise rate_limited(wait_s)


async def _public_document(master: Master, request: web.Request) -> web.Response:
    response = await _document(master, request)
    response.headers["Cache-Control"] = f"public, max-age={KEYS_MAX_AGE_S}"
    return response


async def _status(master: Master, _request: web.Request) -> KeysStatus:
    return await master.key_service.status()


async def _root(master: Master, request: web.Request, body: RootStepRequest) -> KeyStepResponse:
    return await master.key_service.change_root(body, who=caller_of(request).name)


def _step_route(step: KeyStep, sentence: str, *errors: ErrorCode) -> Route[Master]:
    async def take_step(
        master: Master, request: web.Request, body: KeyStepRequest
    ) -> KeyStepResponse:
        return await master.key_service.take_step(step, body, who=caller_of(request).name)

    return Route(
        "POST",
        f"/v1/admin/keys/{step}",
        (CallerKind.ADMIN,),
        take_step,
        sentence,
        body=KeyStepRequest,
        answer=KeyStepResponse,
        errors=tuple(sorted((*KEY_ERRORS, *errors))),
    )


KEY_ROUTES: Final = (
    Route[Master](
        "GET",
        "/.well-known/wavry-keys.json",
        (CallerKind.ANYONE,),
        _public_document,
        "Give the signed key-set document.",
        answer=KeySet,
        in_lockdown=True,
        before=_limit,
        errors=(ErrorCode.RATE_LIMITED,),
    ),
    Route[Master](
        "GET",
        "/v1/admin/keys",
        (CallerKind.VIEWER,),
        _document,
        "Give the signed key-set document to an operator.",
        answer=KeySet,
    ),
    Route[Master](
        "GET",
        "/v1/admin/keys/status",
        (CallerKind.VIEWER,),
        _status,
        "Tell the state of each key: its leases, the relays that hold it, when it can go.",
        answer=KeysStatus,
    ),
    Route[Master](
        "POST",
        "/v1/admin/keys/root",
        (CallerKind.ADMIN,),
        _root,
        "Change the root key.",
        body=RootStepRequest,
        answer=KeyStepResponse,
        errors=(*KEY_ERRORS, ErrorCode.STALE_ROOT),
    ),
    _step_route(
        KeyStep.CREATE,
        "Make a pending key and publish it.",
        ErrorCode.PENDING_EXISTS,
        ErrorCode.TOO_MANY_KEYS,
    ),
    _step_route(
        KeyStep.ACTIVATE,
        "Let a pending key sign from now on.",
        ErrorCode.PRIVATE_KEY_MISSING,
        ErrorCode.RELAYS_LACK_KEY,
        ErrorCode.UNKNOWN_KEY,
        ErrorCode.WRONG_KEY_STATUS,
    ),
    _step_route(
        KeyStep.ROLLBACK,
        "Let the key before sign again.",
        ErrorCode.NOTHING_TO_ROLL_BACK,
        ErrorCode.PRIVATE_KEY_MISSING,
        ErrorCode.RELAYS_LACK_KEY,
    ),
    _step_route(
        KeyStep.REMOVE,
        "Take a key out of the document once its last lease has ended.",
        ErrorCode.LEASES_RUNNING,
        ErrorCode.UNKNOWN_KEY,
        ErrorCode.WRONG_KEY_STATUS,
    ),
    _step_route(
        KeyStep.REVOKE,
        "Revoke a key at once; every lease that it signed ends.",
        ErrorCode.NO_SUCCESSOR,
        ErrorCode.UNKNOWN_KEY,
        ErrorCode.WRONG_KEY_STATUS,
    ),
)
