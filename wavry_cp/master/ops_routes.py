"""Routes for operators and monitors: health, readiness, metrics, status."""

import asyncio
import contextlib
from collections import Counter
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from wavry_cp.app.http import json_response
from wavry_cp.app.routes import CallerKind, Route
from wavry_cp.app.store_errors import StoreUnavailableError
from wavry_cp.app.store_probe import PROBE_TIMEOUT_S
from wavry_cp.app.transport.tls import tls_state
from wavry_peer.protocol.http.ops import MasterHealth, MasterStatus, ServiceReady
from wavry_peer.protocol.relay_terms import RelayState
from wavry_peer.service.version import software_version

from .master import Master
from .metrics import PoolFacts

__all__ = ["OPS_ROUTES"]

DAY_S: Final = 86_400


async def _health(master: Master, _request: web.Request) -> MasterHealth:
    return MasterHealth(
        status="ok",
        role="master",
        version=software_version(),
        now=master.clock.now_s(),
        uptime_s=_uptime_s(master),
        keyset_serial=master.keys.keyset.serial,
        relays=_relays(master),
        relay_mode=_relay_mode(master),
        lockdown=master.switches.lockdown,
        tls=tls_state(master.tls),
    )


async def _ready(master: Master, _request: web.Request) -> ServiceReady | web.Response:
    # Keys are loaded, or the process would not run.
    fault, warning = await master.store_probe.fault(), master.store.warning
    if fault:
        return json_response(ServiceReady(ready=False, reason=fault, warning=warning), status=503)
    return ServiceReady(ready=True, reason="store and keys work", warning=warning)


async def _metrics(master: Master, _request: web.Request) -> web.Response:
    await _note_all(master)
    return web.Response(body=master.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _status(master: Master, _request: web.Request) -> MasterStatus:
    return MasterStatus(
        role="master",
        version=software_version(),
        uptime_s=_uptime_s(master),
        keyset_serial=master.keys.keyset.serial,
        active_kid=master.keys.active_kid,
        relays=_relays(master),
        live_sessions=await master.store.live_sessions(master.clock.now_s()),
        heartbeat_interval_ms=master.config.heartbeat_interval_ms,
        relay_mode=_relay_mode(master),
        lockdown=master.switches.lockdown,
    )


async def _note_all(master: Master) -> None:
    metrics = master.metrics
    now_s, monotonic_s = master.clock.now_s(), master.clock.monotonic_s()
    sessions: int | None = None
    ready = not await master.store_probe.fault()
    if ready:
        with contextlib.suppress(StoreUnavailableError, TimeoutError):
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                sessions = await master.store.live_sessions(now_s)
    metrics.note_store(ready=ready, sessions=sessions)
    infos = master.registry.infos(monotonic_s)
    held, room = master.registry.pool_sessions(monotonic_s)
    metrics.note_pool(
        PoolFacts(
            by_state=master.registry.count_by_state(monotonic_s),
            by_enrolment=master.registry.count_by_enrolment(),
            enrolment_tokens=master.enrolments.open_count,
            heartbeat_age_s=master.registry.heartbeat_ages_s(now_s=now_s, monotonic_s=monotonic_s),
            sessions=held,
            sessions_max=room,
            without_key=_relays_without_key(master),
            degraded=Counter(
                fault.cause
                for info in infos
                if info.state == RelayState.DEGRADED
                for fault in info.faults
            ),
            clock_off_s=max(
                (
                    abs(info.clock_ahead_s)
                    for info in infos
                    if info.clock_ahead_s is not None and info.state != RelayState.OFFLINE
                ),
                default=0.0,
            ),
            probe_rtt_s=max(
                (
                    info.probe_rtt_ms / 1000
                    for info in infos
                    if info.probe_rtt_ms is not None and info.state == RelayState.ACTIVE
                ),
                default=0.0,
            ),
            is_silent=master.registry.is_pool_silent(monotonic_s),
        ),
        heartbeat_interval_s=master.config.heartbeat_interval_ms / 1000,
    )
    lifetime_s = master.config.key_lifetime_days * DAY_S
    metrics.note_keys(master.keys, now_s=now_s, lifetime_s=lifetime_s)
    metrics.revocations_in_force.set(len(master.revocations.index))
    metrics.event_streams.set(master.events.count)


def _relay_mode(master: Master) -> str:
    return "on" if master.switches.relay_mode else "off"


def _relays_without_key(master: Master) -> int:
    held = master.registry.held_by_live(master.clock.monotonic_s())
    return sum(master.keys.active_kid not in kids for kids in held.values())


def _uptime_s(master: Master) -> int:
    return int(master.clock.monotonic_s() - master.started_s)


def _relays(master: Master) -> dict[str, int]:
    counts = master.registry.count_by_state(master.clock.monotonic_s())
    return {state.value: count for state, count in sorted(counts.items())}


OPS_ROUTES: Final = (
    Route[Master](
        "GET",
        "/health",
        (CallerKind.ANYONE,),
        _health,
        "Tell that the process is alive, its clock and what it knows of the pool.",
        answer=MasterHealth,
        in_lockdown=True,
    ),
    Route[Master](
        "GET",
        "/ready",
        (CallerKind.ANYONE,),
        _ready,
        "Tell whether the store can be written; else the same body with 503.",
        answer=ServiceReady,
        in_lockdown=True,
    ),
    Route[Master](
        "GET",
        "/metrics",
        (CallerKind.NETWORK, CallerKind.VIEWER),
        _metrics,
        "Give the metrics as Prometheus text.",
        media_type="text/plain",
        in_lockdown=True,
    ),
    Route[Master](
        "GET",
        "/v1/admin/status",
        (CallerKind.VIEWER,),
        _status,
        "Tell what an operator asks first.",
        answer=MasterStatus,
    ),
)
