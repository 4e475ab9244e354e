"""Routes of leases: issue and renew."""

from aiohttp import web

from wavry_cp.app.http import json_response, read_body
from wavry_cp.master.context import MasterContext
from wavry_cp.master.outcome import outcome_of
from wavry_peer.protocol.http.api import LeaseRequest, RenewRequest

__all__ = ["LeaseRoutes"]


class LeaseRoutes:
    """Handlers; the work is `LeaseDesk`'s."""

    def __init__(self, context: MasterContext) -> None:
        self._context = context

    def routes(self) -> list[web.RouteDef]:
        """The route table."""
        return [
            web.post("/v1/leases", self.issue),
            web.post("/v1/leases/renew", self.renew),
        ]

    async def issue(self, request: web.Request) -> web.Response:
        """One lease per role at a healthy relay."""
        metrics = self._context.metrics
        try:
            self._context.access.require(request, "service")
            answer = await self._context.desk.issue(await read_body(request, LeaseRequest))
        except Exception as error:
            metrics.leases_rejected.labels(outcome_of(error)).inc()
            raise
        metrics.leases_issued.inc(2)
        return json_response(answer, status=201)

    async def renew(self, request: web.Request) -> web.Response:
        """A new lease for one role."""
        metrics = self._context.metrics
        try:
            self._context.access.require(request, "service")
            body = await read_body(request, RenewRequest)
            answer, renewal = await self._context.desk.renew(body)
        except Exception as error:
            metrics.leases_rejected.labels(outcome_of(error)).inc()
            raise
        metrics.lease_renewals.labels("repeated" if renewal.repeated else "renewed").inc()
        return json_response(answer)
