"""The gateway over HTTP: accounts, calls, leases (protocol.md section 6).

What a peer asks for, it asks for here, so that every answer and every error belongs to one
question; the WebSocket (`wavry_peer.signaling`) brings the news.
"""

import asyncio
from collections.abc import Mapping
from typing import Final, Literal, Self, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from wavry_peer.errors import GatewayAuthError, GatewayError, GatewayUnreachableError, PeerError
from wavry_peer.home.identity import Identity
from wavry_peer.home.logins import SavedLogin
from wavry_peer.protocol.errors import LocalError, MessageError, ProtocolError
from wavry_peer.protocol.http import accounts, api
from wavry_peer.protocol.http.codes import ERROR_HEADER, ErrorCode
from wavry_peer.service.connection_faults import connection_fault
from wavry_peer.service.http_client import (
    CallError,
    JsonAnswer,
    JsonCaller,
    is_readable_on_the_way,
)
from wavry_peer.service.request_ids import REQUEST_ID_HEADER, request_id_of

__all__ = ["GatewayClient", "normalize_gateway_url"]

NO_SESSION: Final = "00000000-0000-0000-0000-000000000000"
"""A session id that nobody has: the gateway makes random ones of version 4."""

REQUEST_TIMEOUT_S: Final = 10.0
"""The gateway answers within 2 s even when the master is down; the rest is network."""

Answer = TypeVar("Answer", bound=api.Body)


def normalize_gateway_url(text: str, *, allow_http: bool = False) -> str:
    """Return the one way to write a gateway's URL, under which logins and pins are kept.

    Args:
        text: ``https://host[:port][/path]``.
        allow_http: let ``http://`` pass for other hosts than this one.

    Raises:
        LocalError: not such a URL, or ``http://`` to another machine: password and
            token would be readable on the way.
    """
    try:
        url = URL(text)
        host = url.host
    except ValueError as error:
        raise LocalError("the gateway URL has the wrong form: use https://HOST[:PORT]") from error
    if url.scheme not in ("http", "https") or not host or url.query_string or url.user:
        raise LocalError("the gateway URL has the wrong form: use https://HOST[:PORT]")
    if not allow_http and is_readable_on_the_way(text):
        raise LocalError(
            "http:// to another machine would show your password on the way: use https://, or "
            "set WAVRY_PEER_ALLOW_HTTP=1 inside a network that you trust"
        )
    return str(url).rstrip("/")


class GatewayClient:
    """HTTP calls to one gateway.

    Args:
        url: from `normalize_gateway_url`.
        token: bearer token of a login; calls that need one fail without.
        timeout_s: of each call.
    """

    def __init__(
        self, url: str, *, token: str | None = None, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> None:
        self.url = url
        self.token = token
        self.credentials: tuple[str, str] | None = None
        """User name and password to log in with again, where a program holds them."""
        self._logging_in = asyncio.Lock()
        self._http = JsonCaller(aiohttp.ClientTimeout(total=timeout_s, connect=min(timeout_s, 5.0)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def register(self, username: str, password: str) -> None:
        """Make an account.

        Raises:
            GatewayError: e.g. ``username_taken``; `GatewayUnreachableError`.
        """
        body = _body(api.UserCredentials, username=username, password=password)
        await self._call("POST", "/auth/register", body, api.LoginResponse)

    async def login(self, username: str, password: str, *, temporary: bool = False) -> SavedLogin:
        """Log in; later calls use the new token.

        Args:
            username: of the account.
            password: of the account.
            temporary: for one run: it takes no place of the user's other logins.

        Raises:
            GatewayAuthError: wrong user name or password; `GatewayError`,
                `GatewayUnreachableError`.
        """
        body = _body(
            accounts.LoginRequest, username=username, password=password, temporary=temporary
        )
        answer = await self._call("POST", "/auth/login", body, api.LoginResponse)
        if answer.token is None:
            raise GatewayUnreachableError("the gateway's answer to the login has no token")
        self.token = answer.token
        return SavedLogin(answer.username, answer.token, answer.expires_at)

    async def log_in_again(self, refused_token: str | None) -> bool:
        """Make a new login in place of one that the gateway has ended, where we hold the password.

        Args:
            refused_token: of the call that was refused; a newer one was made by somebody else.

        Returns:
            False where we hold no password.

        Raises:
            GatewayError, GatewayUnreachableError: as `login`.
        """
        if self.credentials is None:
            return False
        async with self._logging_in:
            if self.token == refused_token:
                await self.login(*self.credentials, temporary=True)
        return True

    async def logout(self) -> None:
        """End the login at the gateway.

        Raises:
            GatewayError, GatewayUnreachableError: it may still be valid there.
        """
        await self._call("POST", "/auth/logout", None, None)

    async def change_password(self, password: str, new_password: str) -> int:
        """Change the password of the login's user; return how many other logins have ended.

        Raises:
            GatewayAuthError: `password` is wrong; `GatewayError`, `GatewayUnreachableError`.
        """
        body = _body(accounts.PasswordChange, password=password, new_password=new_password)
        return (await self._call("POST", "/auth/password", body, accounts.EndedLogins)).ended

    async def reset_password(self, username: str, token: str, new_password: str) -> None:
        """Set a password with the token of an operator's reset; every login of the user ends.

        Raises:
            GatewayAuthError: the token is used or over; `GatewayError`, `GatewayUnreachableError`.
        """
        body = _body(
            accounts.PasswordReset, username=username, token=token, new_password=new_password
        )
        await self._call("POST", "/auth/reset", body, None)

    async def delete_account(self, password: str) -> None:
        """Delete the account of the login's user.

        Raises:
            GatewayAuthError: `password` is wrong; `GatewayError`, `GatewayUnreachableError`.
        """
        await self._call(
            "POST", "/auth/delete", _body(accounts.AccountDeletion, password=password), None
        )

    async def export_account(self) -> accounts.AccountExport:
        """Ask for everything that the gateway keeps of the login's user.

        Raises:
            GatewayError, GatewayUnreachableError: see the class of errors.
        """
        return await self._call("GET", "/auth/export", None, accounts.AccountExport)

    async def logins(self) -> tuple[accounts.LoginInfo, ...]:
        """Ask for the logins of the login's user, newest first.

        Raises:
            GatewayError, GatewayUnreachableError: see the class of errors.
        """
        return (await self._call("GET", "/auth/logins", None, accounts.LoginList)).logins

    async def end_login(self, login_id: str) -> None:
        """End one login of the user.

        Raises:
            GatewayError: ``unknown_login``; `GatewayUnreachableError`.
        """
        await self._call("DELETE", f"/auth/logins/{quote(login_id, safe='')}", None, None)

    async def end_other_logins(self) -> int:
        """End every login of the user but this one; return how many have ended.

        Raises:
            GatewayError, GatewayUnreachableError: see the class of errors.
        """
        answer = await self._call("POST", "/auth/logins/end-others", None, accounts.EndedLogins)
        return answer.ended

    async def call_user(self, username: str, identity: Identity) -> api.SessionInfo:
        """Call a user: the gateway delivers an OFFER, the answer is an ANSWER.

        Raises:
            GatewayError: e.g. ``user_offline``; `GatewayUnreachableError`.
        """
        body = _body(
            api.CreateSessionRequest,
            target_username=username,
            identity_key=identity.identity_key,
            noise_key=identity.noise_key,
        )
        return await self._call("POST", "/v1/sessions", body, api.SessionInfo)

    async def session_info(self, session_id: str) -> api.SessionInfo:
        """Ask for one session as the gateway sees it.

        Raises:
            GatewayError, GatewayUnreachableError: see the class of errors.
        """
        return await self._call("GET", f"/v1/sessions/{session_id}", None, api.SessionInfo)

    async def accept_call(self, session_id: str, identity: Identity) -> api.SessionInfo:
        """Accept a call: this is our consent to leases for the session.

        Raises:
            GatewayError, GatewayUnreachableError: see the class of errors.
        """
        body = _body(
            api.AcceptSessionRequest,
            identity_key=identity.identity_key,
            noise_key=identity.noise_key,
        )
        return await self._call("POST", f"/v1/sessions/{session_id}/accept", body, api.SessionInfo)

    async def request_relay(
        self, session_id: str, exclude: tuple[str, ...] = ()
    ) -> api.Credentials:
        """Ask for leases on a relay; the other side gets its own over its WebSocket.

        Args:
            session_id: of an accepted session.
            exclude: ids of relays that did not work.

        Raises:
            GatewayError: e.g. ``relay_unavailable``; `GatewayUnreachableError`.
        """
        body = _body(api.RelaySessionRequest, exclude_relays=exclude)
        return await self._call("POST", f"/v1/sessions/{session_id}/relay", body, api.Credentials)

    async def renew(self, session_id: str, jti: str) -> api.Credentials:
        """Ask for the next lease of our side.

        Args:
            session_id: of a live session.
            jti: of the lease that is replaced.

        Raises:
            GatewayError: e.g. ``stale_jti``; `GatewayUnreachableError`.
        """
        body = _body(api.RenewSessionRequest, jti=jti)
        return await self._call("POST", f"/v1/sessions/{session_id}/renew", body, api.Credentials)

    async def report_path(self, session_id: str, path: Literal["direct", "relay"]) -> None:
        """Tell how the two peers reach each other: the operator's statistics know no other way.

        Raises:
            GatewayError: e.g. ``not_found`` of a gateway that does not ask for it;
                `GatewayUnreachableError`.
        """
        body = _body(api.PathReport, path=path)
        await self._call("POST", f"/v1/sessions/{session_id}/path", body, None)

    async def check(self) -> None:
        """Make sure that the gateway answers and, where we have a token, that it takes it.

        Raises:
            GatewayAuthError: our token is not valid any more; `GatewayError`,
                `GatewayUnreachableError`.
        """
        try:
            await self.session_info(NO_SESSION)
        except GatewayAuthError:
            if self.token is not None:
                raise
        except GatewayError as error:
            if error.code != ErrorCode.UNKNOWN_SESSION:
                raise

    async def close_session(self, session_id: str) -> None:
        """End a session at the gateway, which tells the other side.

        Raises:
            GatewayError, GatewayUnreachableError: see the class of errors.
        """
        await self._call("DELETE", f"/v1/sessions/{session_id}", None, None)

    async def open_websocket(self) -> aiohttp.ClientWebSocketResponse:
        """Open the signaling WebSocket, not yet bound.

        Raises:
            GatewayError: it is refused, e.g. ``rate_limited`` or ``lockdown``.
            GatewayUnreachableError: it cannot be opened.
        """
        try:
            return await self._http.session.ws_connect(
                self.url + "/ws", max_msg_size=128 * 1024, autoping=True
            )
        except aiohttp.WSServerHandshakeError as error:
            raise _refused_websocket(self.url, error) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unreachable(self.url, error) from error

    async def _call(
        self, method: str, path: str, body: api.Body | None, kind: type[Answer] | None
    ) -> Answer:
        token = self.token
        try:
            return await self._call_once(method, path, body, kind)
        except GatewayAuthError as error:
            if error.code != ErrorCode.INVALID_TOKEN or not await self.log_in_again(token):
                raise
        return await self._call_once(method, path, body, kind)

    async def _call_once(
        self, method: str, path: str, body: api.Body | None, kind: type[Answer] | None
    ) -> Answer:
        try:
            answer = await self._http.call(method, self.url + path, body, token=self.token)
        except CallError as error:
            if error.error is None:
                raise _not_ours(self.url, error) from error
            raise _unreachable(self.url, error.error) from error
        if not answer.ok:
            raise _error(answer)
        if kind is None:
            return None  # type: ignore[return-value]  # the caller that passes None takes nothing
        try:
            return answer.read(kind)
        except MessageError as error:
            raise _not_ours(self.url, error) from error


BodyKind = TypeVar("BodyKind", bound=api.Body)


def _body(kind: type[BodyKind], **values: object) -> BodyKind:
    # Checked here too, so that a wrong user name is a clear local error and no round trip.
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise LocalError(f"{error}") from error


def _not_ours(url: str, error: ProtocolError) -> GatewayUnreachableError:
    return GatewayUnreachableError(f"what answers at {url} does not speak our protocol: {error}")


def _unreachable(url: str, error: BaseException) -> GatewayUnreachableError:
    return GatewayUnreachableError(
        f"the gateway {url} cannot be reached ({connection_fault(error)}); check the URL and that "
        "it runs"
    )


def _refused_websocket(url: str, error: aiohttp.WSServerHandshakeError) -> PeerError:
    """Return why a WebSocket is refused: its client cannot read the body, only the headers."""
    headers: Mapping[str, str] = error.headers or {}
    try:
        code = ErrorCode[headers.get(ERROR_HEADER, "").upper()]
    except KeyError:
        return GatewayUnreachableError(
            f"what answers at {url} opens no WebSocket (status {error.status}): does a proxy "
            "before the gateway pass WebSockets on?"
        )
    wait = headers.get("Retry-After", "")
    in_s = f" That is in {wait} s." if wait.isdecimal() else ""
    return GatewayError(
        code,
        f"the gateway refuses the connection: {code.next_step}{in_s}",
        status=error.status,
        retry_after_s=float(wait) if wait.isdecimal() else None,
        request_id=request_id_of(headers.get(REQUEST_ID_HEADER)),
    )


def _error(answer: JsonAnswer) -> GatewayError:
    status = answer.status
    body = answer.error_body() or api.ErrorBody(
        f"http_{status}", f"the gateway answered with status {status}"
    )
    kind = GatewayAuthError if status == 401 else GatewayError
    return kind(
        body.error,
        body.message,
        status=status,
        retry_after_s=answer.retry_after_s(),
        request_id=answer.request_id,
    )
