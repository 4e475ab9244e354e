"""Routes of leases for operators: which leases there are, and whose."""

from typing import Final

from aiohttp import web

from wavry_cp.app.queries import limit_of
from wavry_cp.app.routes import CallerKind, Route
from wavry_cp.master.master import Master
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.http.admin import LeasedInfo, LeasedList, LeaseInfo
from wavry_peer.protocol.http.codes import ErrorCode

from .rules import LeasedSession, LeaseFilter

__all__ = ["LEASE_ADMIN_ROUTES"]

DEFAULT_ROWS: Final = 100
MAX_ROWS: Final = 1000


async def _list(master: Master, request: web.Request) -> LeasedList:
    query = request.query
    sessions = query.get("session")
    wanted = LeaseFilter(
        None if sessions is None else tuple(sessions.split(",")),
        query.get("lease"),
        query.get("user"),
        query.get("relay"),
    )
    limit = limit_of(request, DEFAULT_ROWS, MAX_ROWS)
    found = await master.lease_service.found(wanted, limit=limit)
    return LeasedList(sessions=tuple(map(_info, found)))


def _info(session: LeasedSession) -> LeasedInfo:
    return LeasedInfo(
        session_id=session.session_id,
        relay_id=session.relay_id,
        created_at=session.created_at_s,
        soft_kbps=session.soft_kbps,
        hard_kbps=session.hard_kbps,
        leases=tuple(
            LeaseInfo(
                role="client" if role is c.Role.CLIENT else "server",
                sub=slot.sub,
                jti=slot.jti,
                kid=slot.kid,
                issued_at=slot.issued_at_s,
                expires_at=slot.expires_at_s,
                request_id=slot.request_id,
            )
            for role, slot in ((role, session.slot(role)) for role in c.Role)
        ),
    )


LEASE_ADMIN_ROUTES: Final = (
    Route[Master](
        "GET",
        "/v1/admin/leases",
        (CallerKind.VIEWER,),
        _list,
        "List leased sessions, newest first, also those of the last hour that have ended.",
        query=("session", "lease", "user", "relay", "limit"),
        answer=LeasedList,
        errors=(ErrorCode.INVALID_QUERY,),
    ),
)
