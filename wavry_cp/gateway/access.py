"""Who may call the gateway: users by their tokens, operators by admin tokens with roles."""

from collections.abc import Sequence
from typing import Final

from aiohttp import web

from wavry_cp.app.client_address import MetricsReaders
from wavry_cp.app.http import bearer_token
from wavry_cp.app.refusal import RefusedError
from wavry_cp.app.routes import Admitted, CallerKind
from wavry_peer.protocol.http.codes import ErrorCode

from .gateway import Gateway

__all__ = ["GatewayAccess"]

_ROLES: Final = frozenset({CallerKind.VIEWER, CallerKind.OPERATOR, CallerKind.ADMIN})


class GatewayAccess:
    """`Guard` of the gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        config = gateway.config
        self._near = MetricsReaders(config.open_metrics_networks, config.trusted_proxy_networks)

    async def admit(self, request: web.Request, callers: Sequence[CallerKind]) -> Admitted:
        """See `Guard`.

        Raises:
            RefusedError: ``invalid_token``, ``banned``, ``rate_limited``, ``forbidden``,
                ``admin_disabled``, ``admin_check_unavailable``.
        """
        kind = callers[0]
        if kind is CallerKind.NETWORK:
            if not (self._near.includes(request) or await self._shows_admin_token(request)):
                raise RefusedError(
                    ErrorCode.FORBIDDEN, "metrics are for the operator's networks only"
                )
            return Admitted(kind)
        if kind is CallerKind.USER:
            return Admitted(kind, await self._user(request))
        if kind in _ROLES:
            return Admitted(kind, await self._gateway.admin.require(request, kind))
        if kind is CallerKind.ANYONE or kind is CallerKind.LOGIN:
            return Admitted(kind)
        raise AssertionError(f"the gateway knows no {kind}")  # pragma: no cover  # no row has it

    async def _user(self, request: web.Request) -> str:
        gateway = self._gateway
        owner = await gateway.accounts.owner(bearer_token(request), via="http")
        wait_s = gateway.request_limit.check(owner.username, gateway.clock.monotonic_s())
        if wait_s:
            gateway.metrics.limited.labels("request").inc()
            raise RefusedError(
                ErrorCode.RATE_LIMITED,
                "too many requests; wait",
                retry_after_s=wait_s,
                about=owner.username,
            )
        return owner.username

    async def _shows_admin_token(self, request: web.Request) -> bool:
        try:
            return await self._gateway.admin.caller(request) is not None
        except RefusedError:
            return False  # Admin calls are off, or nobody can be asked who this is.
