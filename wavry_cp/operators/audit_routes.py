"""``GET /v1/admin/audit``, the same in both services."""

import re
from typing import Final, Protocol

from aiohttp import web

from wavry_cp.app.refusal import RefusedError
from wavry_cp.app.routes import CallerKind, Route
from wavry_peer.protocol.http.admin import AuditPage, AuditRow
from wavry_peer.protocol.http.codes import ErrorCode

from .audit import AuditLog, AuditRecord

__all__ = ["AUDIT_ROUTES", "MAX_AUDIT_ROWS"]

MAX_AUDIT_ROWS: Final = 1000
DEFAULT_AUDIT_ROWS: Final = 200
_NUMBER: Final = re.compile(r"[0-9]{1,15}")


class _Service(Protocol):
    @property
    def store(self) -> AuditLog: ...


async def _page(service: _Service, request: web.Request) -> AuditPage:
    limit = _number(request, "limit")
    if limit is not None and not 1 <= limit <= MAX_AUDIT_ROWS:
        raise RefusedError(ErrorCode.INVALID_QUERY, f"limit must be 1 to {MAX_AUDIT_ROWS}")
    records = await service.store.audit_page(
        after=_number(request, "after"),
        since_s=_number(request, "since"),
        limit=limit or DEFAULT_AUDIT_ROWS,
    )
    return AuditPage(entries=tuple(_row(record) for record in records))


def _number(request: web.Request, name: str) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    if _NUMBER.fullmatch(text) is None:
        raise RefusedError(ErrorCode.INVALID_QUERY, f"{name} must be a whole number")
    return int(text)


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
        "List the operators' acts in the order of writing: those behind `after`, or the last ones.",
        query=("after", "since", "limit"),
        answer=AuditPage,
        errors=(ErrorCode.INVALID_QUERY,),
    ),
)
