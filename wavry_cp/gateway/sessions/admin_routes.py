"""Routes of sessions for operators: who talks to whom, over what, and the end of it."""

from typing import Final

from aiohttp import web

from wavry_cp.app.queries import limit_of, number_of
from wavry_cp.app.refusal import RefusedError
from wavry_cp.app.routes import CallerKind, Route, caller_of
from wavry_cp.gateway.gateway import Gateway
from wavry_cp.operators.audit import AuditEntry, attempted
from wavry_peer.protocol.http.admin import CallInfo, CallPage, Order, SessionNews, SessionNewsPage
from wavry_peer.protocol.http.codes import ErrorCode

from .routes import session_id_of
from .rules import STATES, CallFilter, CallSession, SessionState

__all__ = ["SESSION_ADMIN_ROUTES"]

DEFAULT_ROWS: Final = 100
MAX_ROWS: Final = 1000


async def _page(gateway: Gateway, request: web.Request) -> CallPage:
    query = request.query
    wanted = CallFilter(
        user=query.get("user"),
        relay_id=query.get("relay"),
        state=_state(request),
        before=number_of(request, "before"),
    )
    limit = limit_of(request, DEFAULT_ROWS, MAX_ROWS)
    found = await gateway.sessions.found(wanted, limit=limit)
    return CallPage(sessions=tuple(_info(*one) for one in found))


async def _read(gateway: Gateway, request: web.Request) -> CallInfo:
    return _info(*await gateway.sessions.numbered(session_id_of(request)))


async def _end(gateway: Gateway, request: web.Request, order: Order) -> CallInfo:
    session_id = session_id_of(request)
    who = caller_of(request).name
    entry = AuditEntry(gateway.clock.now_s(), who, "end_session", session_id, order.reason)
    async with attempted(gateway.store, entry):
        await gateway.sessions.end_by_operator(session_id, entry)
    return _info(*await gateway.sessions.numbered(session_id))


async def _news(gateway: Gateway, request: web.Request) -> SessionNewsPage:
    events = gateway.session_events
    limit = limit_of(request, DEFAULT_ROWS, MAX_ROWS)
    after = number_of(request, "after")
    if after is None:
        after = max(0, events.last - limit)
    elif request.query.get("log") != events.log_id:
        after = 0
    return SessionNewsPage(
        log_id=events.log_id,
        last=events.last,
        news=tuple(
            SessionNews(
                number=one.number,
                at=one.at_s,
                event=one.event,
                session_id=one.session.session_id,
                caller=one.session.caller,
                callee=one.session.callee,
                relay_id=one.session.relay_id,
            )
            for one in events.after(after, limit)
        ),
    )


def _state(request: web.Request) -> SessionState | None:
    text = request.query.get("state")
    for state in STATES:
        if state == text:
            return state
    if text is None:
        return None
    raise RefusedError(ErrorCode.INVALID_QUERY, f"state must be one of {', '.join(STATES)}")


def _info(number: int, session: CallSession) -> CallInfo:
    return CallInfo(
        number=number,
        session_id=session.session_id,
        caller=session.caller,
        callee=session.callee,
        state=session.state,
        created_at=session.created_at,
        expires_at=session.expires_at,
        path=session.path,
        relay_id=session.relay_id,
        lease_expires_at=session.lease_expires_at,
        closed_at=session.closed_at,
    )


SESSION_ADMIN_ROUTES: Final = (
    Route[Gateway](
        "GET",
        "/v1/admin/session-news",
        (CallerKind.VIEWER,),
        _news,
        "Tell what happened to sessions lately: behind `after`, or the newest.",
        query=("log", "after", "limit"),
        answer=SessionNewsPage,
        errors=(ErrorCode.INVALID_QUERY,),
    ),
    Route[Gateway](
        "GET",
        "/v1/admin/sessions",
        (CallerKind.VIEWER,),
        _page,
        "List sessions of all users, newest first; without `state` those that are not closed.",
        query=("user", "relay", "state", "before", "limit"),
        answer=CallPage,
        errors=(ErrorCode.INVALID_QUERY,),
    ),
    Route[Gateway](
        "GET",
        "/v1/admin/sessions/{session_id}",
        (CallerKind.VIEWER,),
        _read,
        "Tell about one session.",
        answer=CallInfo,
        errors=(ErrorCode.UNKNOWN_SESSION,),
    ),
    Route[Gateway](
        "POST",
        "/v1/admin/sessions/{session_id}/end",
        (CallerKind.OPERATOR,),
        _end,
        "End a session: both users are told, and it gets no further lease.",
        body=Order,
        body_optional=True,
        answer=CallInfo,
        errors=(ErrorCode.UNKNOWN_SESSION,),
    ),
)
