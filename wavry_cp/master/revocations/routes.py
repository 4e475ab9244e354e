"""Routes of operators: revoke leases, list what is in force."""

import structlog
from aiohttp import web

from wavry_cp.app.http import json_response, read_body
from wavry_cp.master.context import MasterContext
from wavry_cp.master.refusal import RefusedError
from wavry_cp.operators.audit import AuditEntry, attempted
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

__all__ = ["RevocationRoutes"]

_log = structlog.get_logger(__name__)


class RevocationRoutes:
    """Handlers; the work is `Revocations`'."""

    def __init__(self, context: MasterContext) -> None:
        self._context = context

    def routes(self) -> list[web.RouteDef]:
        """The route table."""
        return [
            web.post("/v1/leases/revoke", self.revoke),
            web.get("/v1/admin/revocations", self.list),
        ]

    async def revoke(self, request: web.Request) -> web.Response:
        """Revoke a lease, a session, a user's leases or a key's leases, from now on."""
        context = self._context
        who = context.access.require(request, "operator")
        body = await read_body(request, RevokeRequest)
        kind, value = body.target()
        now_s = context.clock.now_s()
        entry = AuditEntry(now_s, who, f"revoke_{kind}", value, body.reason)
        async with attempted(context.store, entry):
            known = await self._knows(kind, value)
            if kind == "kid" and not known and not body.force:
                raise RefusedError(
                    "unknown_key",
                    "no key has this id, and no lease was signed by one; see `wavryctl keys list`",
                )
            revoked = await context.revocations.revoke(
                kind, value, now_s=now_s, who=who, reason=body.reason
            )
        context.metrics.revocations.labels(kind).inc()
        _log.info(
            "revoked",
            kind=kind,
            value=value,
            number=revoked.row.number,
            live_sessions=revoked.live_sessions,
            known=known,
            by=who,
        )
        return json_response(
            RevokeResponse(
                revocation=_info(revoked.row), live_sessions=revoked.live_sessions, known=known
            )
        )

    async def _knows(self, kind: RevocationKind, value: str) -> bool:
        context = self._context
        if kind == "kid" and any(key.kid == value for key in context.keys.keyset.keys):
            return True
        return await context.revocations.knows(kind, value)

    async def list(self, request: web.Request) -> web.Response:
        """What is in force, and how far each relay has come."""
        context = self._context
        context.access.require(request, "viewer")
        book, events = context.revocations.book, context.events
        relays = context.directory.infos(context.clock.monotonic_s())
        return json_response(
            RevocationList(
                number=book.head,
                revocations=tuple(map(_info, book.rows)),
                relays=tuple(
                    RelayEventState(
                        relay_id=relay.relay_id,
                        connected=events.is_connected(relay.relay_id),
                        acked=events.acked(relay.relay_id),
                    )
                    for relay in relays
                ),
            )
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
