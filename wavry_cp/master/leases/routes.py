"""Routes of leases: issue and renew."""

from typing import Final

from aiohttp import web

from wavry_cp.app.routes import CallerKind, Route
from wavry_cp.master.master import Master
from wavry_cp.master.outcome import outcome_of
from wavry_peer.protocol.http.api import (
    LeaseRequest,
    LeaseResponse,
    RenewRequest,
    RenewResponse,
)
from wavry_peer.protocol.http.codes import ErrorCode

__all__ = ["LEASE_ROUTES"]


async def _issue(master: Master, _request: web.Request, body: LeaseRequest) -> LeaseResponse:
    answer = await master.lease_service.issue(body)
    master.metrics.leases_issued.inc(2)
    if master.registry.is_stranger(answer.relay.relay_id):
        master.metrics.probation_sessions.inc()
    return answer


async def _renew(master: Master, _request: web.Request, body: RenewRequest) -> RenewResponse:
    answer, renewal = await master.lease_service.renew(body)
    master.metrics.lease_renewals.labels("repeated" if renewal.repeated else "renewed").inc()
    return answer


def _count_rejected(master: Master, error: Exception) -> None:
    master.metrics.leases_rejected.labels(outcome_of(error)).inc()


LEASE_ROUTES: Final = (
    Route[Master](
        "POST",
        "/v1/leases",
        (CallerKind.SERVICE,),
        _issue,
        "Issue one lease for each role at a healthy relay.",
        body=LeaseRequest,
        answer=LeaseResponse,
        status=201,
        errors=(
            ErrorCode.BANNED,
            ErrorCode.BUSY_SESSION,
            ErrorCode.INVALID_CNF,
            ErrorCode.INVALID_SESSION,
            ErrorCode.LEASE_TOO_LARGE,
            ErrorCode.NO_RELAY_AVAILABLE,
            ErrorCode.RELAY_MODE_OFF,
            ErrorCode.REVOKED,
            ErrorCode.SAME_PARTY,
            ErrorCode.SESSION_CONFLICT,
        ),
        refused=_count_rejected,
    ),
    Route[Master](
        "POST",
        "/v1/leases/renew",
        (CallerKind.SERVICE,),
        _renew,
        "Issue a new lease for one role; asking twice gives the same one.",
        body=RenewRequest,
        answer=RenewResponse,
        errors=(
            ErrorCode.BANNED,
            ErrorCode.BUSY_SESSION,
            ErrorCode.LEASE_EXPIRED,
            ErrorCode.LEASE_TOO_LARGE,
            ErrorCode.RELAY_LACKS_KEY,
            ErrorCode.RELAY_UNAVAILABLE,
            ErrorCode.REVOKED,
            ErrorCode.STALE_JTI,
            ErrorCode.UNKNOWN_SESSION,
        ),
        refused=_count_rejected,
    ),
)
