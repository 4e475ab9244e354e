"""Routes of sessions: what users call about their own."""

import re
from typing import Final

from aiohttp import web

from wavry_cp.app.refusal import RefusedError
from wavry_cp.app.routes import CallerKind, Route, caller_of
from wavry_cp.gateway.gateway import Gateway
from wavry_peer.protocol.http.api import (
    AcceptSessionRequest,
    CreateSessionRequest,
    Credentials,
    PathReport,
    RelaySessionRequest,
    RenewSessionRequest,
    SessionInfo,
    SessionList,
)
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.http.signaling import Offer

from .rules import SessionKey, checked_keys, describe

__all__ = ["SESSION_ROUTES", "session_id_of"]

_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


async def _list(gateway: Gateway, request: web.Request) -> SessionList:
    username = caller_of(request).name
    found = await gateway.sessions.listed(username)
    return SessionList(sessions=tuple(describe(session, username) for session in found))


async def _create(
    gateway: Gateway, request: web.Request, body: CreateSessionRequest
) -> SessionInfo:
    username = caller_of(request).name
    keys = checked_keys(body.identity_key, body.noise_key)
    offer = Offer(identity_key=keys.identity, noise_key=keys.noise)
    session = await gateway.sessions.call(username, body.target_username, keys, offer)
    return describe(session, username)


async def _read(gateway: Gateway, request: web.Request) -> SessionInfo:
    username = caller_of(request).name
    return describe(await gateway.sessions.own(username, session_id_of(request)), username)


async def _end(gateway: Gateway, request: web.Request) -> None:
    await gateway.sessions.end(caller_of(request).name, session_id_of(request))


async def _accept(
    gateway: Gateway, request: web.Request, body: AcceptSessionRequest
) -> SessionInfo:
    username = caller_of(request).name
    keys = checked_keys(body.identity_key, body.noise_key)
    session = await gateway.sessions.accept(username, session_id_of(request), keys)
    return describe(session, username)


async def _relay(gateway: Gateway, request: web.Request, body: RelaySessionRequest) -> Credentials:
    return await gateway.session_leases.request(
        caller_of(request).name, session_id_of(request), body
    )


async def _report_path(gateway: Gateway, request: web.Request, body: PathReport) -> None:
    await gateway.sessions.report_path(caller_of(request).name, session_id_of(request), body.path)


async def _renew(gateway: Gateway, request: web.Request, body: RenewSessionRequest) -> Credentials:
    return await gateway.session_leases.renew(
        caller_of(request).name, session_id_of(request), body.jti
    )


def session_id_of(request: web.Request) -> SessionKey:
    """Return the session that the path names.

    Raises:
        RefusedError: ``unknown_session``: it is no id.
    """
    text = request.match_info["session_id"]
    if _UUID.fullmatch(text) is None:
        raise RefusedError(ErrorCode.UNKNOWN_SESSION, "a session id is a UUID in lower case")
    return SessionKey(text)


_ONE: Final = "/v1/sessions/{session_id}"
_USER: Final = (CallerKind.USER,)
SESSION_ROUTES: Final = (
    Route[Gateway](
        "GET", "/v1/sessions", _USER, _list, "List the caller's sessions.", answer=SessionList
    ),
    Route[Gateway](
        "POST",
        "/v1/sessions",
        _USER,
        _create,
        "Call a user.",
        body=CreateSessionRequest,
        answer=SessionInfo,
        status=201,
        errors=(
            ErrorCode.BANNED,
            ErrorCode.INVALID_MESSAGE,
            ErrorCode.INVALID_TARGET,
            ErrorCode.RATE_LIMITED,
            ErrorCode.USER_OFFLINE,
        ),
    ),
    Route[Gateway](
        "GET",
        _ONE,
        _USER,
        _read,
        "Tell about one session.",
        answer=SessionInfo,
        errors=(ErrorCode.UNKNOWN_SESSION,),
    ),
    Route[Gateway](
        "DELETE", _ONE, _USER, _end, "End a session.", errors=(ErrorCode.UNKNOWN_SESSION,)
    ),
    Route[Gateway](
        "POST",
        f"{_ONE}/accept",
        _USER,
        _accept,
        "Accept a call, as the called user.",
        body=AcceptSessionRequest,
        answer=SessionInfo,
        errors=(
            ErrorCode.INVALID_MESSAGE,
            ErrorCode.KEY_MISMATCH,
            ErrorCode.NOT_CALLED_USER,
            ErrorCode.SESSION_CLOSED,
            ErrorCode.UNKNOWN_SESSION,
            ErrorCode.USER_OFFLINE,
        ),
    ),
    Route[Gateway](
        "POST",
        f"{_ONE}/relay",
        _USER,
        _relay,
        "Ask for a relay, or for another one.",
        body=RelaySessionRequest,
        answer=Credentials,
        errors=(
            ErrorCode.BANNED,
            ErrorCode.BUSY,
            ErrorCode.IDENTITY_KEY_REQUIRED,
            ErrorCode.NO_RELAY_AVAILABLE,
            ErrorCode.NOT_ACCEPTED,
            ErrorCode.RATE_LIMITED,
            ErrorCode.RELAY_MODE_OFF,
            ErrorCode.RELAY_UNAVAILABLE,
            ErrorCode.REVOKED,
            ErrorCode.SESSION_CLOSED,
            ErrorCode.UNKNOWN_SESSION,
        ),
    ),
    Route[Gateway](
        "POST",
        f"{_ONE}/path",
        _USER,
        _report_path,
        "Report on which path a session talks; only counted.",
        body=PathReport,
        errors=(ErrorCode.NOT_ACCEPTED, ErrorCode.UNKNOWN_SESSION),
    ),
    Route[Gateway](
        "POST",
        f"{_ONE}/renew",
        _USER,
        _renew,
        "Renew the caller's own lease.",
        body=RenewSessionRequest,
        answer=Credentials,
        errors=(
            ErrorCode.BANNED,
            ErrorCode.BUSY,
            ErrorCode.NOT_ON_RELAY,
            ErrorCode.RATE_LIMITED,
            ErrorCode.RELAY_GONE,
            ErrorCode.RELAY_UNAVAILABLE,
            ErrorCode.REVOKED,
            ErrorCode.SESSION_CLOSED,
            ErrorCode.STALE_JTI,
            ErrorCode.UNKNOWN_SESSION,
        ),
    ),
)
