"""Who may call: bearer tokens of gateways and operators."""

from aiohttp import web

from wavry_cp.http import ApiError, TokenFile, bearer_token, unauthorized

__all__ = ["Access"]


class Access:
    """The two tokens of the master, and the question which of them a request shows."""

    def __init__(self, service: TokenFile, admin: TokenFile) -> None:
        self._service = service
        self._admin = admin

    def shown(self, request: web.Request) -> str | None:
        """``"service"``, ``"admin"`` or None."""
        given = bearer_token(request)
        for name, token in (("service", self._service), ("admin", self._admin)):
            if token.matches(given):
                return name
        return None

    def require(self, request: web.Request, *names: str) -> str:
        """The token that the request shows, which must be one of `names`.

        Raises:
            ApiError: 401 without a valid token, 403 with the other one.
        """
        shown = self.shown(request)
        if shown is None:
            raise unauthorized()
        if shown not in names:
            raise ApiError(403, "forbidden", f"this call needs the {' or '.join(names)} token")
        return shown
