"""Who may call the master: gateways by the service token, operators by admin tokens with roles."""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from aiohttp import web

from wavry_cp.app.client_address import MetricsReaders
from wavry_cp.app.http import TokenFile, bearer_token, unauthorized
from wavry_cp.app.refusal import RefusedError
from wavry_cp.app.routes import Admitted, CallerKind
from wavry_cp.operators.admin_tokens import ShownToken, TokenTable
from wavry_cp.operators.auth_failures import AuthFailures
from wavry_cp.operators.roles import SERVICE, AdminRole, Caller
from wavry_peer.protocol.http.codes import ErrorCode

__all__ = ["Access"]

BOOTSTRAP_NAME: Final = "admin"
_RELAYS: Final = ((CallerKind.RELAY,), (CallerKind.RELAY_IN_BODY,))
_BY_TOKEN: Final = frozenset(
    {CallerKind.SERVICE, CallerKind.VIEWER, CallerKind.OPERATOR, CallerKind.ADMIN}
)


class RelayTokens(Protocol):
    """Knows the tokens of relays."""

    def authenticate(self, relay_id: str, token: str | None) -> object:
        """Raise where `token` is not this relay's."""
        ...

    def relay_token_matches(self, relay_id: str, token: str | None) -> bool:
        """Return whether `token` is this relay's own."""
        ...


class Access:
    """The tokens of the master, and the question which of them a request shows."""

    def __init__(
        self,
        service: TokenFile,
        admin: TokenFile,
        table: TokenTable,
        *,
        relays: RelayTokens,
        near: MetricsReaders,
        failures: AuthFailures,
        now_s: Callable[[], int],
    ) -> None:
        """Make it.

        Args:
            service: token of gateways.
            admin: the operator's file: the first admin token, valid without the store.
            table: named tokens.
            relays: knows the tokens of relays.
            near: who reads metrics without a token.
            failures: where wrong tokens are counted.
            now_s: unix seconds.
        """
        self._service = service
        self._admin = admin
        self._table = table
        self._relays = relays
        self._near = near
        self._failures = failures
        self._now_s = now_s

    def caller(self, request: web.Request) -> Caller | None:
        """Return who shows a valid token; all are compared, so that the time tells nothing."""
        given = bearer_token(request)
        is_service = self._service.matches(given)
        is_bootstrap = self._admin.matches(given)
        named = self._table.check(ShownToken.parse(given), self._now_s())
        if is_service:
            return Caller(SERVICE, None)
        if is_bootstrap:
            return Caller(BOOTSTRAP_NAME, AdminRole.ADMIN)
        return None if named is None else named.caller

    def require(self, request: web.Request, *needed: str) -> str:
        """Return the name of the caller, who must be one of `needed`.

        Args:
            request: shows the token.
            needed: ``"service"``, or the lowest role that may call: ``"viewer"``,
                ``"operator"`` or ``"admin"``.

        Raises:
            RefusedError: 401 without a valid token, 403 with one that is not enough, 429 where
                wrong admin tokens come too often from an address.
        """
        caller = self.caller(request)
        if caller is None:
            if needed != (SERVICE,) and bearer_token(request) is not None:
                self._failures.wrong_token(request)
            raise unauthorized()
        if not any(caller.may(who) for who in needed):
            if caller.role is not None:
                self._failures.wrong_role()
            wanted = " or ".join(
                "the service token" if who == SERVICE else f"an admin token with role {who}"
                for who in needed
            )
            raise RefusedError(ErrorCode.FORBIDDEN, f"this call needs {wanted}", about=caller.name)
        return caller.name

    async def admit(self, request: web.Request, callers: Sequence[CallerKind]) -> Admitted:
        """See `Guard`.

        Raises:
            RefusedError: as `require`.
            RefusedError: ``unknown_relay``, ``invalid_relay_token``, ``banned``.
        """
        token = bearer_token(request)
        if CallerKind.ANYONE in callers and (len(callers) == 1 or token is None):
            return Admitted(CallerKind.ANYONE)
        if CallerKind.NETWORK in callers and self._near.includes(request):
            return Admitted(CallerKind.NETWORK)
        if token is None and callers in _RELAYS:
            raise unauthorized("the relay token is required")
        if callers == (CallerKind.RELAY_IN_BODY,):
            return Admitted(CallerKind.RELAY_IN_BODY)
        if CallerKind.RELAY in callers:
            relay_id = request.match_info.get("relay_id") or request.query.get("relay_id", "")
            if len(callers) == 1:
                self._relays.authenticate(relay_id, token)
                return Admitted(CallerKind.RELAY, relay_id)
            if self._relays.relay_token_matches(relay_id, token):
                return Admitted(CallerKind.RELAY, relay_id)
        needed = [kind for kind in callers if kind in _BY_TOKEN]
        name = self.require(request, *needed)
        is_service = CallerKind.SERVICE in needed and name == SERVICE
        return Admitted(CallerKind.SERVICE if is_service else needed[-1], name)

    def is_service_token(self, text: str) -> bool:
        """Return whether a text is the service token."""
        return self._service.matches(text)

    def is_admin(self, request: web.Request) -> bool:
        """Return whether the request shows an admin token of any role."""
        caller = self.caller(request)
        return caller is not None and caller.role is not None
