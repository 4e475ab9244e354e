"""HTTP routes of the gateway: read the request, ask a rule, write the answer."""

import math
import re
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import hdrs, web

from wavry_cp.app.client_address import client_address
from wavry_cp.app.http import (
    ApiError,
    bearer_token,
    json_response,
    new_application,
    read_body,
    route_template,
)
from wavry_cp.app.rate_limit import address_key
from wavry_cp.gateway.sessions.rules import CallSession, SessionKey, checked_keys, describe
from wavry_cp.operators.ban_routes import BanRoutes
from wavry_cp.operators.lockdown import lockdown_middleware
from wavry_cp.operators.switch_routes import SwitchRoutes
from wavry_cp.operators.switches import Switch
from wavry_peer.protocol.http.api import (
    AcceptSessionRequest,
    CreateSessionRequest,
    LoginResponse,
    PathReport,
    RelaySessionRequest,
    RenewSessionRequest,
    SessionInfo,
    SessionList,
    UserCredentials,
)
from wavry_peer.protocol.http.signaling import Offer
from wavry_peer.service.metrics import OTHER

from .cors import origin_marker, preflight_middleware, require_known_origin
from .gateway import Gateway
from .operations import Operations
from .refused import RefusedError

__all__ = ["make_app"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_METHODS: Final = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})
SWITCH_ROLES: Final = {Switch.LOCKDOWN: "admin"}
_STARTED_S: Final = web.RequestKey("started_s", float)


def make_app(gateway: Gateway) -> web.Application:
    """The application of an open gateway; its clean-up closes the gateway."""
    config = gateway.config
    routes = _Routes(gateway)
    operations = Operations(gateway)
    app = new_application(
        _timing(gateway),
        preflight_middleware(config.cors_origins),
        lockdown_middleware(
            gateway.switches,
            open_routes=(),
            is_admin=lambda _request: False,  # every admin call is below /v1/admin/
            refused=gateway.metrics.lockdown_refused,
        ),
        refused_middleware,
    )
    app.on_response_prepare.append(origin_marker(config.cors_origins))
    app.on_response_prepare.append(_counting(gateway))
    one = "/v1/sessions/{session_id}"
    app.add_routes(
        [
            web.post("/auth/register", routes.register),
            web.post("/auth/login", routes.login),
            web.post("/auth/logout", routes.logout),
            web.get("/ws", routes.websocket, allow_head=False),
            web.get("/v1/sessions", routes.list_sessions),
            web.post("/v1/sessions", routes.create_session),
            web.get(one, routes.read_session),
            web.delete(one, routes.end_session),
            web.post(f"{one}/accept", routes.accept_session),
            web.post(f"{one}/relay", routes.relay_session),
            web.post(f"{one}/path", routes.report_path),
            web.post(f"{one}/renew", routes.renew_session),
            web.get("/health", operations.health),
            web.get("/ready", operations.ready),
            web.get("/metrics", operations.metrics),
            web.get("/v1/admin/users", operations.users),
            web.get("/v1/admin/status", operations.status),
            web.get("/v1/admin/audit", operations.audit),
            *SwitchRoutes(
                gateway.switch_desk, gateway.switches, SWITCH_ROLES, gateway.admin.require
            ).routes(),
            *BanRoutes(gateway.ban_desk, gateway.admin.require).routes(),
        ]
    )

    async def stop(_app: web.Application) -> None:
        gateway.stop()

    async def close(_app: web.Application) -> None:
        await gateway.close()

    app.on_shutdown.append(stop)
    app.on_cleanup.append(close)
    return app


# -- Around every request ------------------------------------------------------------------


@web.middleware
async def refused_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a rule refuses into the error form."""
    try:
        return await handler(request)
    except RefusedError as error:
        headers: dict[str, str] = {}
        if error.retry_after_s > 0:
            headers[hdrs.RETRY_AFTER] = str(max(1, math.ceil(error.retry_after_s)))
        if error.status == 401:
            headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
        raise ApiError(error.status, error.code, str(error), headers) from error


def _timing(
    gateway: Gateway,
) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
    @web.middleware
    async def timing(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[_STARTED_S] = gateway.clock.monotonic_s()
        return await handler(request)

    return timing


def _counting(
    gateway: Gateway,
) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    async def count(request: web.Request, response: web.StreamResponse) -> None:
        method = request.method if request.method in _METHODS else OTHER
        route = route_template(request)
        gateway.metrics.http_requests.labels(method, route, str(response.status)).inc()
        started_s = request.get(_STARTED_S)
        if started_s is not None:
            seconds = gateway.clock.monotonic_s() - started_s
            gateway.metrics.http_seconds.labels(route).observe(seconds)

    return count


# -- Routes --------------------------------------------------------------------------------


class _Routes:
    """What users call."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._proxies = gateway.config.trusted_proxy_networks

    async def register(self, request: web.Request) -> web.Response:
        body = await read_body(request, UserCredentials)
        await self._gateway.accounts.register(body.username, body.password, self._address(request))
        return json_response(LoginResponse(username=body.username), 201)

    async def login(self, request: web.Request) -> web.Response:
        body = await read_body(request, UserCredentials)
        login = await self._gateway.accounts.login(
            body.username, body.password, self._address(request)
        )
        return json_response(
            LoginResponse(username=body.username, token=login.token, expires_at=login.expires_at)
        )

    async def logout(self, request: web.Request) -> web.Response:
        await self._gateway.accounts.logout(bearer_token(request) or "")
        return web.Response(status=204)

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        gateway = self._gateway
        require_known_origin(request, gateway.config.cors_origins)
        address = self._address(request)
        wait_s = gateway.connect_limit.check(address, gateway.clock.monotonic_s())
        if wait_s:
            gateway.metrics.limited.labels("connect").inc()
            raise RefusedError(
                "rate_limited", "too many connections from this address", retry_after_s=wait_s
            )
        if gateway.stopping:
            raise RefusedError("busy", "the gateway stops; connect again", retry_after_s=1)
        try:
            slot = gateway.slots.take(address)
        except RefusedError:
            gateway.metrics.limited.labels("connections").inc()
            raise
        with slot:
            return await gateway.signaling.serve(request)

    async def list_sessions(self, request: web.Request) -> web.Response:
        username = await self._user(request)
        found = await self._gateway.calls.listed(username)
        return json_response(
            SessionList(sessions=tuple(describe(session, username) for session in found))
        )

    async def create_session(self, request: web.Request) -> web.Response:
        username = await self._user(request)
        body = await read_body(request, CreateSessionRequest)
        keys = checked_keys(body.identity_key, body.noise_key)
        offer = Offer(identity_key=keys.identity, noise_key=keys.noise)
        session = await self._gateway.calls.call(username, body.target_username, keys, offer)
        return _session_response(session, username, 201)

    async def read_session(self, request: web.Request) -> web.Response:
        username = await self._user(request)
        session = await self._gateway.calls.own(username, _session_id(request))
        return _session_response(session, username)

    async def end_session(self, request: web.Request) -> web.Response:
        username = await self._user(request)
        await self._gateway.calls.end(username, _session_id(request))
        return web.Response(status=204)

    async def accept_session(self, request: web.Request) -> web.Response:
        username = await self._user(request)
        body = await read_body(request, AcceptSessionRequest)
        keys = checked_keys(body.identity_key, body.noise_key)
        session = await self._gateway.calls.accept(username, _session_id(request), keys)
        return _session_response(session, username)

    async def relay_session(self, request: web.Request) -> web.Response:
        username = await self._user(request)
        body = await read_body(request, RelaySessionRequest)
        return json_response(
            await self._gateway.relaying.request(username, _session_id(request), body)
        )

    async def report_path(self, request: web.Request) -> web.Response:
        username = await self._user(request)
        body = await read_body(request, PathReport)
        await self._gateway.calls.report_path(username, _session_id(request), body.path)
        return web.Response(status=204)

    async def renew_session(self, request: web.Request) -> web.Response:
        username = await self._user(request)
        body = await read_body(request, RenewSessionRequest)
        return json_response(
            await self._gateway.relaying.renew(username, _session_id(request), body.jti)
        )

    def _address(self, request: web.Request) -> str:
        return address_key(client_address(request, self._proxies))

    async def _user(self, request: web.Request) -> str:
        gateway = self._gateway
        owner = await gateway.accounts.owner(bearer_token(request), via="http")
        wait_s = gateway.request_limit.check(owner.username, gateway.clock.monotonic_s())
        if wait_s:
            gateway.metrics.limited.labels("request").inc()
            raise RefusedError("rate_limited", "too many requests; wait", retry_after_s=wait_s)
        return owner.username


def _session_id(request: web.Request) -> SessionKey:
    text = request.match_info["session_id"]
    if _UUID.fullmatch(text) is None:
        raise RefusedError("unknown_session", "a session id is a UUID in lower case")
    return SessionKey(text)


def _session_response(session: CallSession, username: str, status: int = 200) -> web.Response:
    info: SessionInfo = describe(session, username)
    return json_response(info, status)
