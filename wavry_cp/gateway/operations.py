"""What operators and their machines ask: health, readiness, metrics, admin lists."""

import contextlib
import ipaddress
import re
from typing import Final

import msgspec
from aiohttp import web

from wavry_cp.app.client_address import client_address, is_within
from wavry_cp.app.http import ApiError, json_response
from wavry_cp.app.store_errors import StoreUnavailableError
from wavry_cp.operators.audit_routes import audit_response
from wavry_peer.protocol.http.api import UserInfo, UserList
from wavry_peer.service.version import software_version

from .gateway import Gateway
from .refused import RefusedError

__all__ = ["GatewayStatus", "Health", "Operations", "Ready"]

MAX_USERS: Final = 1000
_NAME: Final = re.compile(r"[a-z0-9._-]{0,32}")
READY_CACHE_S: Final = 1.0
"""/ready is open to everyone: it may not become a way to keep the disk busy."""
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Health(msgspec.Struct, frozen=True):
    """``GET /health``: the process answers; `now` is its clock, unix seconds."""

    status: str
    role: str
    version: str
    now: int
    uptime_s: int
    lockdown: bool


class Ready(msgspec.Struct, frozen=True):
    """``GET /ready``: 200 where users can be served, else 503.

    Without a master the gateway is ready, for signaling and direct paths work; `master` tells.
    """

    ready: bool
    store: str
    master: str
    reason: str


class GatewayStatus(msgspec.Struct, frozen=True):
    """``GET /v1/admin/status``; `sessions` by state, closed ones left out.

    `master_error` says why the master was not reached, or why its last call failed; it is empty
    again after the next good one.
    """

    version: str
    uptime_s: int
    users: int
    online: int
    websockets: int
    sessions: dict[str, int]
    store: str
    master: str
    master_url: str
    master_error: str
    lockdown: bool


class Operations:
    """Handlers for operators."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._proxies = gateway.config.trusted_proxy_networks
        self._metrics_networks = gateway.config.open_metrics_networks
        self._store_checked_s = float("-inf")
        self._store_answer = ""

    async def health(self, _request: web.Request) -> web.Response:
        """``GET /health``."""
        return json_response(
            Health(
                status="ok",
                role="gateway",
                version=software_version(),
                now=self._gateway.clock.now_s(),
                uptime_s=self._uptime_s(),
                lockdown=self._gateway.switches.lockdown,
            )
        )

    async def ready(self, _request: web.Request) -> web.Response:
        """``GET /ready``."""
        store, master = await self._store_state(), await self._gateway.broker.probe()
        ready = self._is_ready(store)
        reason = self._store_answer
        if self._gateway.stopping:
            reason = "stopping"
        elif not reason and master != "ok":
            reason = "no master: direct paths only"
        return json_response(Ready(ready, store, master, reason), 200 if ready else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        """``GET /metrics``, for the listed networks and the admin."""
        if not (self._is_near(request) or await self._shows_admin_token(request)):
            raise ApiError(403, "forbidden", "metrics are for the operator's networks only")
        await self._note_all()
        return web.Response(
            body=self._gateway.metrics.text(), headers={"Content-Type": METRICS_TYPE}
        )

    async def users(self, request: web.Request) -> web.Response:
        """``GET /v1/admin/users?after=NAME&limit=N``, in the order of names."""
        await self._gateway.admin.require(request, "viewer")
        after, limit = request.query.get("after", ""), request.query.get("limit", str(MAX_USERS))
        if _NAME.fullmatch(after) is None:
            raise ApiError(400, "invalid_query", "after must be a user name")
        if re.fullmatch(r"[0-9]{1,4}", limit) is None or not 1 <= int(limit) <= MAX_USERS:
            raise ApiError(400, "invalid_query", f"limit must be 1 to {MAX_USERS}")
        found = await self._gateway.store.users(after=after, limit=int(limit))
        return json_response(
            UserList(
                users=tuple(
                    UserInfo(
                        username=user.username,
                        created_at=user.created_at,
                        last_login_at=user.last_login_at,
                        online=self._gateway.hub.is_online(user.username),
                    )
                    for user in found
                )
            )
        )

    async def status(self, request: web.Request) -> web.Response:
        """``GET /v1/admin/status``."""
        await self._gateway.admin.require(request, "viewer")
        gateway = self._gateway
        return json_response(
            GatewayStatus(
                version=software_version(),
                uptime_s=self._uptime_s(),
                users=await gateway.store.count_users(),
                online=gateway.hub.online,
                websockets=gateway.slots.in_use,
                sessions=await gateway.store.count_sessions(),
                store=await self._store_state(),
                master=await gateway.broker.probe(),
                master_url=gateway.config.master_url,
                master_error=gateway.broker.error,
                lockdown=gateway.switches.lockdown,
            )
        )

    async def audit(self, request: web.Request) -> web.Response:
        """``GET /v1/admin/audit?after=ID&since=TIME&limit=N``, oldest first."""
        await self._gateway.admin.require(request, "viewer")
        return await audit_response(request, self._gateway.store)

    async def _note_all(self) -> None:
        """Gauges of what is in the store or elsewhere."""
        gateway = self._gateway
        by_state: dict[str, int] | None = None
        by_path: dict[str, int] | None = None
        store, master = await self._store_state(), await gateway.broker.probe()
        gateway.metrics.note_state(ready=self._is_ready(store), master_reachable=master == "ok")
        with contextlib.suppress(StoreUnavailableError):
            by_state = await gateway.store.count_sessions()
            by_path = await gateway.store.count_paths()
        gateway.metrics.note_sessions(by_state, by_path)

    def _is_ready(self, store: str) -> bool:
        return store == "ok" and not self._gateway.stopping

    async def _shows_admin_token(self, request: web.Request) -> bool:
        try:
            return await self._gateway.admin.caller(request) is not None
        except RefusedError:
            return False  # Admin calls are off, or nobody can be asked who this is.

    def _is_near(self, request: web.Request) -> bool:
        if "X-Forwarded-For" in request.headers and not is_within(
            request.remote or "", self._proxies
        ):
            return False  # Behind a proxy that nobody declared every client looks like the proxy.
        try:
            address = ipaddress.ip_address(client_address(request, self._proxies))
        except ValueError:
            return False
        return any(address in network for network in self._metrics_networks)

    def _uptime_s(self) -> int:
        return int(self._gateway.clock.monotonic_s() - self._gateway.started_s)

    async def _store_state(self) -> str:
        now_s = self._gateway.clock.monotonic_s()
        if now_s - self._store_checked_s >= READY_CACHE_S:
            self._store_checked_s = now_s
            try:
                await self._gateway.store.ping()
            except StoreUnavailableError as error:
                self._store_answer = str(error)
            else:
                self._store_answer = ""
        return "unavailable" if self._store_answer else "ok"
