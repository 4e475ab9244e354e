"""Who may make admin calls of the gateway: the token of its own file, and the master's named ones.

The file's token works without the master.  A named token is the master's to judge; its word
is kept for a few seconds, so that a revoked token is dead here within `VALID_S`, and in a table
of fixed size.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from wavry_cp.app.http import bearer_token
from wavry_cp.app.rate_limit import LIMIT_KEYS, RateLimiter
from wavry_cp.app.refusal import RefusedError
from wavry_cp.app.token_files import TokenFile
from wavry_cp.operators.admin_tokens import ShownToken
from wavry_cp.operators.auth_failures import AuthFailures
from wavry_cp.operators.roles import AdminRole, Caller
from wavry_peer.protocol.http.admin import TokenCheck, TokenCheckRequest
from wavry_peer.protocol.http.codes import ErrorCode

__all__ = ["AdminAccess"]

VALID_S: Final = 5.0
INVALID_S: Final = 1.0
MAX_KEPT: Final = 1024
ASKS_PER_S: Final = 2.0
ASKS_BURST: Final = 20
"""Questions to the master by address; never one limit for all, or a stranger with a few addresses
would lock out the operators."""

BOOTSTRAP_NAME: Final = "admin"


@dataclass(frozen=True, slots=True)
class _Answer:
    caller: Caller | None
    until_s: float


class AdminAccess:
    """Answers who calls."""

    def __init__(
        self,
        bootstrap: TokenFile | None,
        ask_master: Callable[[TokenCheckRequest], Awaitable[TokenCheck]],
        *,
        failures: AuthFailures,
        monotonic_s: Callable[[], float],
    ) -> None:
        """Make it.

        Args:
            bootstrap: the operator's file; without it all admin calls are off.
            ask_master: raises `RefusedError` where the master gives no answer.
            failures: where wrong tokens are counted.
            monotonic_s: seconds.
        """
        self._bootstrap = bootstrap
        self._ask_master = ask_master
        self._failures = failures
        self._monotonic_s = monotonic_s
        self._asks = RateLimiter(ASKS_PER_S, ASKS_BURST, LIMIT_KEYS)
        self._kept: OrderedDict[ShownToken, _Answer] = OrderedDict()

    async def caller(self, request: web.Request) -> Caller | None:
        """Return who shows a valid admin token.

        Raises:
            RefusedError: 429 ``rate_limited``: wrong tokens come too often from this address.
            RefusedError: ``admin_disabled``, or ``admin_check_unavailable`` where only the
                master could tell.
        """
        if self._bootstrap is None:
            raise RefusedError(
                ErrorCode.ADMIN_DISABLED, "set WAVRY_GATEWAY_ADMIN_TOKEN_FILE to use admin calls"
            )
        given = bearer_token(request)
        if self._bootstrap.matches(given):
            return Caller(BOOTSTRAP_NAME, AdminRole.ADMIN)
        shown = ShownToken.parse(given)
        found = None if shown is None else await self._named(request, shown)
        if found is None and given is not None:
            self._failures.wrong_token(request)
        return found

    async def require(self, request: web.Request, needed: str) -> str:
        """Return the name of the caller, who must have the role `needed`.

        Raises:
            RefusedError: as `caller`; ``invalid_token`` without a valid token and
                ``forbidden`` where its role is not enough.
        """
        caller = await self.caller(request)
        if caller is None:
            raise RefusedError(ErrorCode.INVALID_TOKEN, "this call needs a valid admin token")
        if not caller.may(needed):
            self._failures.wrong_role()
            raise RefusedError(
                ErrorCode.FORBIDDEN,
                f"this call needs an admin token with role {needed}",
                about=caller.name,
            )
        return caller.name

    async def _named(self, request: web.Request, shown: ShownToken) -> Caller | None:
        now_s = self._monotonic_s()
        kept = self._kept.get(shown)
        if kept is not None and now_s < kept.until_s:
            return kept.caller
        self._failures.require_patience(request)
        wait_s = self._asks.check(self._failures.address_key(request), now_s)
        if wait_s > 0:
            raise RefusedError(
                ErrorCode.BUSY, "too many admin tokens to check", retry_after_s=wait_s
            )
        body = TokenCheckRequest(token_id=shown.token_id, secret_hash=shown.secret_hash)
        try:
            answer = await self._ask_master(body)
        except RefusedError as error:
            raise RefusedError(
                ErrorCode.ADMIN_CHECK_UNAVAILABLE,
                "the master cannot be asked about this token; try again, or use the token of "
                "WAVRY_GATEWAY_ADMIN_TOKEN_FILE",
                retry_after_s=1,
            ) from error
        caller = None
        if answer.valid and answer.name is not None and answer.role is not None:
            caller = Caller(answer.name, AdminRole(answer.role))
        life_s = INVALID_S if caller is None else VALID_S
        self._kept.pop(shown, None)
        # From before the question: what the master says may be outdated when it arrives.
        self._kept[shown] = _Answer(caller, now_s + life_s)
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        return caller
