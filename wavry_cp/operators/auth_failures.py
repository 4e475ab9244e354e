"""Wrong admin tokens: counted, logged, and slowed down by address.

A right token is never refused here: behind one proxy many share an address, and whoever fails there
on purpose must not lock the operator out.  Nothing is won by that: a token has 256 random bits.
"""

from collections.abc import Callable, Sequence

import structlog
from aiohttp import web

from wavry_cp.app.client_address import IpNetwork, client_address
from wavry_cp.app.http import rate_limited, route_template
from wavry_cp.app.metric_families import LabelledCounter
from wavry_cp.app.rate_limit import LIMIT_KEYS, RateLimiter
from wavry_peer.service.address_key import address_key

__all__ = ["AuthFailures"]

_log = structlog.get_logger(__name__)


class AuthFailures:
    """Failed admin authentications of one service."""

    def __init__(
        self,
        *,
        per_minute: int,
        trusted_proxies: Sequence[IpNetwork],
        monotonic_s: Callable[[], float],
        counter: LabelledCounter,
    ) -> None:
        """Make the limit; `counter` has the one label ``cause``."""
        self._limit = RateLimiter(per_minute / 60, per_minute, LIMIT_KEYS)
        self._trusted_proxies = trusted_proxies
        self._monotonic_s = monotonic_s
        self._counter = counter

    def wrong_token(self, request: web.Request) -> None:
        """Count a request that showed a token which is not valid.

        Raises:
            RefusedError: 429 ``rate_limited``: too many of them came from its address.
        """
        wait_s = self._limit.check(self.address_key(request), self._monotonic_s())
        if wait_s > 0:
            self._counter.labels("limited").inc()
            raise rate_limited(wait_s)
        self._counter.labels("wrong_token").inc()
        _log.warning(
            "admin_auth_failed",
            route=route_template(request),
            cause="token is unknown, expired or revoked",
            next_step="if it is yours: `wavryctl tokens list`, then rotate or create one",
        )

    def require_patience(self, request: web.Request) -> None:
        """Refuse a token that would cost a call to check, where its address failed too often.

        Raises:
            RefusedError: 429 ``rate_limited``.
        """
        wait_s = self._limit.wait_s(self.address_key(request), self._monotonic_s())
        if wait_s > 0:
            self._counter.labels("limited").inc()
            raise rate_limited(wait_s)

    def wrong_role(self, request: web.Request, name: str) -> None:
        """Count a valid token that came to a call which its role does not allow."""
        self._counter.labels("forbidden").inc()
        _log.warning(
            "admin_call_forbidden",
            route=route_template(request),
            by=name,
            cause="the role of the token does not allow this call",
            next_step="ask an admin, or `wavryctl tokens create` with another role",
        )

    def address_key(self, request: web.Request) -> str:
        """Return what limits by address count a request under."""
        return address_key(client_address(request, self._trusted_proxies))
