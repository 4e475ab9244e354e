"""Wrong admin tokens: counted, and slowed down by address; `Refusals` tells the operator.

A right token is never refused here: behind one proxy many share an address, and whoever fails there
on purpose must not lock the operator out.  Nothing is won by that: a token has 256 random bits.
"""

from collections.abc import Callable, Sequence

from aiohttp import web

from wavry_cp.app.client_address import IpNetwork, client_address
from wavry_cp.app.http import rate_limited
from wavry_cp.app.metric_families import LabelledCounter
from wavry_cp.app.rate_limit import LIMIT_KEYS, RateLimiter
from wavry_peer.service.address_key import address_key

__all__ = ["AuthFailures"]


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

    def require_patience(self, request: web.Request) -> None:
        """Refuse a token that would cost a call to check, where its address failed too often.

        Raises:
            RefusedError: 429 ``rate_limited``.
        """
        wait_s = self._limit.wait_s(self.address_key(request), self._monotonic_s())
        if wait_s > 0:
            self._counter.labels("limited").inc()
            raise rate_limited(wait_s)

    def wrong_role(self) -> None:
        """Count a valid token that came to a call which its role does not allow."""
        self._counter.labels("forbidden").inc()

    def address_key(self, request: web.Request) -> str:
        """Return what limits by address count a request under."""
        return address_key(client_address(request, self._trusted_proxies))
