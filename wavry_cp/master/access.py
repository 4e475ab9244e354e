"""Who may call the master: gateways by the service token, operators by admin tokens with roles."""

from collections.abc import Callable
from typing import Final

from aiohttp import web

from wavry_cp.app.http import ApiError, TokenFile, bearer_token, unauthorized
from wavry_cp.operators.admin_tokens import ShownToken, TokenTable
from wavry_cp.operators.auth_failures import AuthFailures
from wavry_cp.operators.roles import SERVICE, AdminRole, Caller

__all__ = ["Access"]

BOOTSTRAP_NAME: Final = "admin"


class Access:
    """The tokens of the master, and the question which of them a request shows."""

    def __init__(
        self,
        service: TokenFile,
        admin: TokenFile,
        book: TokenTable,
        *,
        failures: AuthFailures,
        now_s: Callable[[], int],
    ) -> None:
        """Make it.

        Args:
            service: token of gateways.
            admin: the operator's file: the first admin token, valid without the store.
            book: named tokens.
            failures: where wrong tokens are counted.
            now_s: unix seconds.
        """
        self._service = service
        self._admin = admin
        self._book = book
        self._failures = failures
        self._now_s = now_s

    def caller(self, request: web.Request) -> Caller | None:
        """Who shows a valid token; all kinds are compared, so that the time tells nothing."""
        given = bearer_token(request)
        is_service = self._service.matches(given)
        is_bootstrap = self._admin.matches(given)
        named = self._book.check(ShownToken.parse(given), self._now_s())
        if is_service:
            return Caller(SERVICE, None)
        if is_bootstrap:
            return Caller(BOOTSTRAP_NAME, AdminRole.ADMIN)
        return None if named is None else named.caller

    def require(self, request: web.Request, *needed: str) -> str:
        """Name of the caller, who must be one of `needed`.

        Args:
            request: shows the token.
            needed: ``"service"``, or the lowest role that may call: ``"viewer"``,
                ``"operator"`` or ``"admin"``.

        Raises:
            ApiError: 401 without a valid token, 403 with one that is not enough, 429 where
                wrong admin tokens come too often from an address.
        """
        caller = self.caller(request)
        if caller is None:
            if needed != (SERVICE,) and bearer_token(request) is not None:
                self._failures.wrong_token(request)
            raise unauthorized()
        if not any(caller.may(who) for who in needed):
            if caller.role is not None:
                self._failures.wrong_role(request, caller.name)
            wanted = " or ".join(
                "the service token" if who == SERVICE else f"an admin token with role {who}"
                for who in needed
            )
            raise ApiError(403, "forbidden", f"this call needs {wanted}")
        return caller.name

    async def require_role(self, request: web.Request, needed: str) -> str:
        """`require` with one role, as the routes that both services share ask for it."""
        return self.require(request, needed)

    def is_admin(self, request: web.Request) -> bool:
        """True where the request shows an admin token of any role."""
        caller = self.caller(request)
        return caller is not None and caller.role is not None
