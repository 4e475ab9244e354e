"""What operators and their machines ask: health, readiness, metrics, admin lists."""

import contextlib
import re
from typing import Final

from aiohttp import web

from wavry_cp.app.http import json_response
from wavry_cp.app.refusal import RefusedError
from wavry_cp.app.routes import CallerKind, Route
from wavry_cp.app.store_errors import StoreUnavailableError
from wavry_cp.app.transport.tls import tls_state
from wavry_peer.protocol.http.api import UserInfo, UserList
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.http.ops import GatewayReady, GatewayStatus, ServiceHealth
from wavry_peer.service.version import software_version

from .gateway import Gateway

__all__ = ["OPS_ROUTES"]

MAX_USERS: Final = 1000
_NAME: Final = re.compile(r"[a-z0-9._-]{0,32}")
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


async def _health(gateway: Gateway, _request: web.Request) -> ServiceHealth:
    return ServiceHealth(
        status="ok",
        role="gateway",
        version=software_version(),
        now=gateway.clock.now_s(),
        uptime_s=_uptime_s(gateway),
        lockdown=gateway.switches.lockdown,
        tls=tls_state(gateway.tls),
    )


async def _ready(gateway: Gateway, _request: web.Request) -> web.Response:
    fault, master = await gateway.store_probe.fault(), await gateway.broker.probe()
    ready = not fault and not gateway.stopping
    reason = "stopping" if gateway.stopping else fault
    if not reason and master != "ok":
        reason = "no master: no call gets a relay"
    body = GatewayReady(
        ready=ready,
        reason=reason,
        warning=gateway.store.warning,
        store=_state(fault),
        master=master,
    )
    return json_response(body, 200 if ready else 503)


async def _metrics(gateway: Gateway, _request: web.Request) -> web.Response:
    await _note_all(gateway)
    return web.Response(body=gateway.metrics.text(), headers={"Content-Type": METRICS_TYPE})


async def _users(gateway: Gateway, request: web.Request) -> UserList:
    after, limit = request.query.get("after", ""), request.query.get("limit", str(MAX_USERS))
    if _NAME.fullmatch(after) is None:
        raise RefusedError(ErrorCode.INVALID_QUERY, "after must be a user name")
    if re.fullmatch(r"[0-9]{1,4}", limit) is None or not 1 <= int(limit) <= MAX_USERS:
        raise RefusedError(ErrorCode.INVALID_QUERY, f"limit must be 1 to {MAX_USERS}")
    found = await gateway.store.users(after=after, limit=int(limit))
    return UserList(
        users=tuple(
            UserInfo(
                username=user.username,
                created_at=user.created_at,
                last_login_at=user.last_login_at,
                online=gateway.hub.is_online(user.username),
            )
            for user in found
        )
    )


async def _status(gateway: Gateway, _request: web.Request) -> GatewayStatus:
    return GatewayStatus(
        version=software_version(),
        uptime_s=_uptime_s(gateway),
        users=await gateway.store.count_users(),
        online=gateway.hub.online,
        websockets=gateway.slots.in_use,
        sessions=await gateway.store.count_sessions(),
        store=_state(await gateway.store_probe.fault()),
        master=await gateway.broker.probe(),
        master_url=gateway.config.master_url,
        master_error=gateway.broker.error,
        lockdown=gateway.switches.lockdown,
    )


async def _note_all(gateway: Gateway) -> None:
    """Set the gauges of what is in the store or elsewhere."""
    by_state: dict[str, int] | None = None
    by_path: dict[str, int] | None = None
    fault, master = await gateway.store_probe.fault(), await gateway.broker.probe()
    ready = not fault and not gateway.stopping
    gateway.metrics.note_state(ready=ready, master_reachable=master == "ok")
    with contextlib.suppress(StoreUnavailableError):
        by_state = await gateway.store.count_sessions()
        by_path = await gateway.store.count_paths()
    gateway.metrics.note_sessions(by_state, by_path)


def _uptime_s(gateway: Gateway) -> int:
    return int(gateway.clock.monotonic_s() - gateway.started_s)


def _state(fault: str) -> str:
    return "unavailable" if fault else "ok"


OPS_ROUTES: Final = (
    Route[Gateway](
        "GET",
        "/health",
        (CallerKind.ANYONE,),
        _health,
        "Tell that the process is alive, and its clock.",
        answer=ServiceHealth,
        in_lockdown=True,
    ),
    Route[Gateway](
        "GET",
        "/ready",
        (CallerKind.ANYONE,),
        _ready,
        "Tell whether users can be served; else the same body with 503.",
        answer=GatewayReady,
        in_lockdown=True,
    ),
    Route[Gateway](
        "GET",
        "/metrics",
        (CallerKind.NETWORK, CallerKind.VIEWER),
        _metrics,
        "Give the metrics as Prometheus text.",
        media_type="text/plain",
        in_lockdown=True,
    ),
    Route[Gateway](
        "GET",
        "/v1/admin/users",
        (CallerKind.VIEWER,),
        _users,
        "List users in the order of names: those behind `after`.",
        query=("after", "limit"),
        answer=UserList,
        errors=(ErrorCode.INVALID_QUERY,),
    ),
    Route[Gateway](
        "GET",
        "/v1/admin/status",
        (CallerKind.VIEWER,),
        _status,
        "Tell what an operator asks first.",
        answer=GatewayStatus,
    ),
)
