"""Routes of operators: revoke leases, list what is in force."""

from typing import Final

import structlog
from aiohttp import web

from wavry_cp.app.refusal import RefusedError
from wavry_cp.app.routes import CallerKind, Route, caller_of
from wavry_cp.master.master import Master
from wavry_cp.operators.audit import AuditEntry, attempted
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.http.relay_events import (
    FOREVER_S,
    RelayEventState,
    RevocationInfo,
    RevocationKind,
    RevocationList,
    RevokeRequest,
    RevokeResponse,
)

from .store import RevocationRow

__all__ = ["REVOCATION_ROUTES"]

_log = structlog.get_logger(__name__)


async def _revoke(master: Master, request: web.Request, body: RevokeRequest) -> RevokeResponse:
    who = caller_of(request).name
    kind, value = body.target()
    now_s = master.clock.now_s()
    entry = AuditEntry(now_s, who, f"revoke_{kind}", value, body.reason)
    async with attempted(master.store, entry):
        known = await _knows(master, kind, value)
        if kind == "kid" and not known and not body.force:
            raise RefusedError(
                ErrorCode.UNKNOWN_KEY,
                "no key has this id, and no lease was signed by one; see `wavryctl keys list`",
            )
        revoked = await master.revocations.revoke(
            kind, value, now_s=now_s, who=who, reason=body.reason
        )
    master.metrics.revocations.labels(kind).inc()
    _log.info(
        "revoked",
        kind=kind,
        value=value,
        number=revoked.row.number,
        live_sessions=revoked.live_sessions,
        known=known,
        by=who,
    )
    return RevokeResponse(
        revocation=_info(revoked.row), live_sessions=revoked.live_sessions, known=known
    )


async def _knows(master: Master, kind: RevocationKind, value: str) -> bool:
    if kind == "kid" and any(key.kid == value for key in master.keys.keyset.keys):
        return True
    return await master.revocations.knows(kind, value)


async def _list(master: Master, _request: web.Request) -> RevocationList:
    index, events = master.revocations.index, master.events
    # Who waits for all relays must not wait for a stranger's word.
    strangers = master.registry.strangers()
    relays = [
        relay
        for relay in master.registry.infos(master.clock.monotonic_s())
        if relay.relay_id not in strangers
    ]
    return RevocationList(
        number=index.head,
        revocations=tuple(map(_info, index.rows)),
        relays=tuple(
            RelayEventState(
                relay_id=relay.relay_id,
                connected=events.is_connected(relay.relay_id),
                acked=events.acked(relay.relay_id),
            )
            for relay in relays
        ),
    )


def _info(row: RevocationRow) -> RevocationInfo:
    return RevocationInfo(
        number=row.number,
        kind=row.kind,
        value=row.value,
        issued_until=None if row.issued_until_s >= FOREVER_S else row.issued_until_s,
        expires_at=row.expires_at_s,
        at=row.at_s,
        who=row.who,
        reason=row.reason,
    )


REVOCATION_ROUTES: Final = (
    Route[Master](
        "POST",
        "/v1/leases/revoke",
        (CallerKind.OPERATOR,),
        _revoke,
        "Revoke a lease, a session, a user's leases or a key's leases, from now on.",
        body=RevokeRequest,
        answer=RevokeResponse,
        errors=(ErrorCode.TOO_MANY_REVOCATIONS, ErrorCode.UNKNOWN_KEY),
    ),
    Route[Master](
        "GET",
        "/v1/admin/revocations",
        (CallerKind.VIEWER,),
        _list,
        "List the revocations in force, and how far each relay has come.",
        answer=RevocationList,
    ),
)
