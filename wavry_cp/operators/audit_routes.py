"""``GET /v1/admin/audit``, the same in both services."""

from typing import Final, Protocol

from aiohttp import web

from wavry_cp.app.queries import limit_of, number_of
from wavry_cp.app.refusal import RefusedError
from wavry_cp.app.routes import CallerKind, Route
from wavry_peer.protocol.http.admin import AuditPage, AuditRow
from wavry_peer.protocol.http.codes import ErrorCode

from .audit import AuditLog, AuditPart, AuditRecord

__all__ = ["AUDIT_ROUTES", "MAX_AUDIT_ROWS"]

MAX_AUDIT_ROWS: Final = 1000
DEFAULT_AUDIT_ROWS: Final = 200


class _Service(Protocol):
    @property
    def store(self) -> AuditLog: ...


async def _page(service: _Service, request: web.Request) -> AuditPage:
    records = await service.store.audit_page(
        after=number_of(request, "after"),
        since_s=number_of(request, "since"),
        limit=limit_of(request, DEFAULT_AUDIT_ROWS, MAX_AUDIT_ROWS),
        only=_only(request),
    )
    return AuditPage(entries=tuple(_row(record) for record in records))


def _only(request: web.Request) -> AuditPart | None:
    text = request.query.get("only")
    if text is None:
        return None
    if text not in tuple(AuditPart):
        raise RefusedError(ErrorCode.INVALID_QUERY, f"only must be {' or '.join(AuditPart)}")
    return AuditPart(text)


def _row(record: AuditRecord) -> AuditRow:
    entry = record.entry
    return AuditRow(
        id=record.number,
        at=entry.at_s,
        who=entry.who,
        action=entry.action,
        target=entry.target,
        reason=entry.reason,
        outcome=entry.outcome,
    )


AUDIT_ROUTES: Final = (
    Route[_Service](
        "GET",
        "/v1/admin/audit",
        (CallerKind.VIEWER,),
        _page,
        "List acts and refusals in the order of writing: those behind `after`, or the last ones.",
        query=("after", "since", "limit", "only"),
        answer=AuditPage,
        errors=(ErrorCode.INVALID_QUERY,),
    ),
)
