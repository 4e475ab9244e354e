"""Routes for operators and monitors: health, readiness, metrics, keys, status, audit log."""

import asyncio
import contextlib
from typing import Final

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from wavry_cp.app.http import client_address, is_within, json_response, rate_limited
from wavry_cp.app.rate_limit import address_key
from wavry_cp.app.store_errors import StoreUnavailableError
from wavry_cp.operators.audit_routes import audit_response
from wavry_peer.service.version import software_version

from .context import MasterContext
from .metrics import PoolFacts

__all__ = ["MasterHealth", "MasterReadiness", "MasterStatus", "OpsRoutes"]

READY_TIMEOUT_S: Final = 2.0
READY_CACHE_S: Final = 1.0
"""/ready is open to everyone: it may not become a way to keep the store busy."""

KEYS_MAX_AGE_S: Final = 30
DAY_S: Final = 86_400


class MasterHealth(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /health``: the process answers; `now` is its clock, unix seconds."""

    status: str
    role: str
    version: str
    now: int
    uptime_s: int
    keyset_serial: int
    relays: dict[str, int]
    relay_mode: str
    lockdown: bool


class MasterReadiness(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /ready``: 200 where `ready`, else 503 with the reason."""

    ready: bool
    reason: str


class MasterStatus(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /v1/admin/status``."""

    role: str
    version: str
    uptime_s: int
    keyset_serial: int
    active_kid: str
    relays: dict[str, int]
    live_sessions: int
    heartbeat_interval_ms: int
    relay_mode: str
    lockdown: bool


class OpsRoutes:
    """Handlers."""

    def __init__(self, context: MasterContext) -> None:
        self._context = context
        self._checked_s = float("-inf")
        self._reason = ""

    def routes(self) -> list[web.RouteDef]:
        """The route table."""
        return [
            web.get("/health", self.health),
            web.get("/ready", self.ready),
            web.get("/metrics", self.metrics),
            web.get("/.well-known/wavry-keys.json", self.keys),
            web.get("/v1/admin/keys", self.admin_keys),
            web.get("/v1/admin/status", self.status),
            web.get("/v1/admin/audit", self.audit),
        ]

    async def health(self, _request: web.Request) -> web.Response:
        """The process is alive."""
        return json_response(
            MasterHealth(
                status="ok",
                role="master",
                version=software_version(),
                now=self._context.clock.now_s(),
                uptime_s=self._uptime_s(),
                keyset_serial=self._context.keys.keyset.serial,
                relays=self._relays(),
                relay_mode=self._relay_mode(),
                lockdown=self._context.switches.lockdown,
            )
        )

    async def ready(self, _request: web.Request) -> web.Response:
        """The store works; keys are loaded, or the process would not run."""
        reason = await self._not_ready()
        if reason:
            return json_response(MasterReadiness(ready=False, reason=reason), status=503)
        return json_response(MasterReadiness(ready=True, reason="store and keys work"))

    async def metrics(self, request: web.Request) -> web.Response:
        """Prometheus text, for the networks of the operator."""
        context = self._context
        address = client_address(request, context.trusted_proxies)
        hidden = "X-Forwarded-For" in request.headers and not is_within(
            request.remote or "", context.trusted_proxies
        )
        # Behind a proxy that nobody declared, every client looks like the proxy.
        if hidden or not is_within(address, context.metrics_networks):
            context.access.require(request, "viewer")
        await self._note_all()
        return web.Response(
            body=context.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def keys(self, request: web.Request) -> web.Response:
        """The key-set document; public."""
        context = self._context
        key = address_key(client_address(request, context.trusted_proxies))
        wait_s = context.open_limit.check(key, context.clock.monotonic_s())
        if wait_s > 0:
            raise rate_limited(wait_s)
        response = self._document()
        response.headers["Cache-Control"] = f"public, max-age={KEYS_MAX_AGE_S}"
        return response

    async def admin_keys(self, request: web.Request) -> web.Response:
        """The key-set document, for wavryctl."""
        self._context.access.require(request, "viewer")
        return self._document()

    async def status(self, request: web.Request) -> web.Response:
        """What an operator asks first."""
        context = self._context
        context.access.require(request, "viewer")
        return json_response(
            MasterStatus(
                role="master",
                version=software_version(),
                uptime_s=self._uptime_s(),
                keyset_serial=context.keys.keyset.serial,
                active_kid=context.keys.active_kid,
                relays=self._relays(),
                live_sessions=await context.store.live_sessions(context.clock.now_s()),
                heartbeat_interval_ms=context.config.heartbeat_interval_ms,
                relay_mode=self._relay_mode(),
                lockdown=context.switches.lockdown,
            )
        )

    async def audit(self, request: web.Request) -> web.Response:
        """Who did what, when."""
        self._context.access.require(request, "viewer")
        return await audit_response(request, self._context.store)

    async def _note_all(self) -> None:
        context, metrics = self._context, self._context.metrics
        now_s, monotonic_s = context.clock.now_s(), context.clock.monotonic_s()
        sessions: int | None = None
        reason = await self._not_ready()
        if not reason:
            with contextlib.suppress(StoreUnavailableError, TimeoutError):
                async with asyncio.timeout(READY_TIMEOUT_S):
                    sessions = await context.store.live_sessions(now_s)
        metrics.note_store(ready=not reason, sessions=sessions)
        held, room = context.directory.pool_sessions(monotonic_s)
        metrics.note_pool(
            PoolFacts(
                by_state=context.directory.count_by_state(monotonic_s),
                heartbeat_age_s=context.directory.heartbeat_ages_s(
                    now_s=now_s, monotonic_s=monotonic_s
                ),
                sessions=held,
                sessions_max=room,
                without_key=self._relays_without_key(),
            ),
            heartbeat_interval_s=context.config.heartbeat_interval_ms / 1000,
        )
        lifetime_s = context.config.key_lifetime_days * DAY_S
        metrics.note_keys(context.keys, now_s=now_s, lifetime_s=lifetime_s)
        metrics.revocations_in_force.set(len(context.revocations.book))
        metrics.event_streams.set(context.events.count)

    async def _not_ready(self) -> str:
        now_s = self._context.clock.monotonic_s()
        if now_s - self._checked_s >= READY_CACHE_S:
            self._checked_s = now_s
            self._reason = await self._check()
        return self._reason

    def _document(self) -> web.Response:
        return web.Response(body=self._context.keys.document, content_type="application/json")

    def _relay_mode(self) -> str:
        return "on" if self._context.switches.relay_mode else "off"

    def _relays_without_key(self) -> int:
        held = self._context.directory.held_by_live(self._context.clock.monotonic_s())
        active_kid = self._context.keys.active_kid
        return sum(active_kid not in kids for kids in held.values())

    def _uptime_s(self) -> int:
        return int(self._context.clock.monotonic_s() - self._context.started_s)

    def _relays(self) -> dict[str, int]:
        counts = self._context.directory.count_by_state(self._context.clock.monotonic_s())
        return {state.value: count for state, count in sorted(counts.items())}

    async def _check(self) -> str:
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await self._context.store.check()
        except StoreUnavailableError as error:
            return str(error)
        except TimeoutError:
            return "store does not answer in time"
        return ""
