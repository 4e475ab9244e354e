"""The master as an aiohttp application: wiring, routes, upkeep."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog
from aiohttp import web

from wavry_cp.app.client_address import MetricsReaders
from wavry_cp.app.http import (
    Handler,
    TokenFile,
    new_application,
    parse_networks,
    route_template,
)
from wavry_cp.app.rate_limit import RateLimiter
from wavry_cp.app.routes import bind
from wavry_cp.app.store_errors import StoreUnavailableError
from wavry_cp.app.store_probe import StoreProbe
from wavry_cp.app.token_files import require_different
from wavry_cp.master.blocks.service import BlockService
from wavry_cp.master.keys.files import KeyFileError
from wavry_cp.master.keys.live import LiveKeys
from wavry_cp.master.keys.service import KeyService
from wavry_cp.master.leases.service import LeaseService
from wavry_cp.master.relays.challenges import Challenges
from wavry_cp.master.relays.event_stream import EventStreams
from wavry_cp.master.relays.registry import RelayRegistry
from wavry_cp.master.relays.rules import RelayState
from wavry_cp.master.revocations.service import RevocationIndex, RevocationService
from wavry_cp.operators.admin_tokens import TokenTable
from wavry_cp.operators.auth_failures import AuthFailures
from wavry_cp.operators.ban_service import BanService
from wavry_cp.operators.bans import BanKind, BanTable
from wavry_cp.operators.lockdown import lockdown_middleware
from wavry_cp.operators.switch_service import SwitchService
from wavry_cp.operators.switches import SwitchTable
from wavry_cp.operators.token_service import TokenService
from wavry_cp.store.sqlite.master import MasterSqlite
from wavry_peer.service.clock import Clock

from .access import Access
from .ban_effects import MasterBanEffects
from .config import MasterConfig
from .context import MasterContext
from .metrics import MasterMetrics
from .routes import ROUTES

__all__ = ["DATABASE_FILE", "build_app", "open_master"]

DATABASE_FILE: Final = "master.db"
LIMIT_KEYS: Final = 65_536
OPEN_CALLS_PER_S: Final = 20.0
OPEN_BURST: Final = 200
"""Of the public key-set document; relays behind one address ask once a minute at most."""

LIFT_INTERVAL_S: Final = 1.0
PRUNE_INTERVAL_S: Final = 60.0
PRUNE_BATCH: Final = 5_000
KEEP_EXPIRED_S: Final = 3600
"""An expired session is kept for an hour, so that a late caller is told why and not "unknown"."""

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_master(
    config: MasterConfig, clock: Clock | None = None
) -> AsyncIterator[web.Application]:
    """The application of a master, with its store open and its upkeep running inside the block.

    Raises:
        KeyFileError: no keys; says which command makes them.
        TokenFileError: a token file is missing or open to others, or holds no token.
        SettingsError: both token files hold the same token.
        StoreUnavailableError: the database cannot be opened.
        StoreVersionError: the database is of a newer version.
    """
    clock = clock or Clock()
    try:
        keys = LiveKeys.open(config.keys_dir)
    except KeyFileError as error:
        raise KeyFileError(f"WAVRY_MASTER_KEYS_DIR: {error}") from error
    variables = ("WAVRY_MASTER_SERVICE_TOKEN_FILE", "WAVRY_MASTER_ADMIN_TOKEN_FILE")
    service = TokenFile.load(config.service_token_file, "service", variables[0])
    admin = TokenFile.load(config.admin_token_file, "admin", variables[1])
    require_different(service, admin, variables)
    try:
        config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailableError(
            f"WAVRY_MASTER_DATA_DIR {config.data_dir}: {error.strerror}"
        ) from error
    try:
        store = await MasterSqlite.open(config.data_dir / DATABASE_FILE)
    except StoreUnavailableError as error:
        raise StoreUnavailableError(f"WAVRY_MASTER_DATA_DIR {error}") from error
    try:
        metrics = MasterMetrics()
        proxies = parse_networks(config.trusted_proxies)
        tokens = TokenTable(await store.admin_tokens())
        switches = SwitchTable(await store.switches())
        metrics.watch_switches(switches)
        bans = BanTable(await store.bans())
        metrics.watch_bans(bans, clock.now_s)
        directory = RelayRegistry(store, heartbeat_interval_s=config.heartbeat_interval_ms / 1000)
        await directory.load(now_s=clock.now_s(), monotonic_s=clock.monotonic_s())
        access = Access(
            service,
            admin,
            tokens,
            relays=directory,
            near=MetricsReaders(parse_networks(config.metrics_networks), proxies),
            failures=AuthFailures(
                per_minute=config.admin_failures_per_minute,
                trusted_proxies=proxies,
                monotonic_s=clock.monotonic_s,
                counter=metrics.admin_auth_failures,
            ),
            now_s=clock.now_s,
        )
        index = RevocationIndex(await store.revocations.revocation_log())
        events = EventStreams()
        revocations = RevocationService(store.revocations, index, events.wake_all)
        key_service = KeyService(keys, store, directory, clock, metrics)
        await key_service.load()
        key_service.on_change.append(lambda _keyset: events.wake_all())
        context = MasterContext(
            config=config,
            store=store,
            directory=directory,
            keys=keys,
            key_service=key_service,
            lease_service=LeaseService(
                config, store, directory, keys, clock, switches, bans, index
            ),
            access=access,
            tokens=tokens,
            token_service=TokenService(store, tokens, clock),
            switches=switches,
            switch_service=SwitchService(store, switches, now_s=clock.now_s),
            bans=bans,
            ban_service=BanService(
                store,
                bans,
                MasterBanEffects(store, directory, revocations, events.wake),
                kinds=frozenset(BanKind),
                now_s=clock.now_s,
            ),
            block_service=BlockService(),
            challenges=Challenges(),
            metrics=metrics,
            clock=clock,
            revocations=revocations,
            events=events,
            register_limit=RateLimiter(
                config.register_per_minute / 60, config.register_per_minute, LIMIT_KEYS
            ),
            open_limit=RateLimiter(OPEN_CALLS_PER_S, OPEN_BURST, LIMIT_KEYS),
            trusted_proxies=proxies,
            store_probe=StoreProbe(lambda: store.check(), clock.monotonic_s),
            started_s=clock.monotonic_s(),
        )
        upkeep = [
            asyncio.create_task(_watch_relays(context)),
            asyncio.create_task(_prune(context)),
            asyncio.create_task(_lift_bans(context)),
        ]
        try:
            yield build_app(context)
        finally:
            for task in upkeep:
                task.cancel()
            await asyncio.gather(*upkeep, return_exceptions=True)
            with contextlib.suppress(StoreUnavailableError):
                await directory.save_heartbeats()
    finally:
        await store.close()


def build_app(context: MasterContext) -> web.Application:
    """The routes over a context."""
    lockdown = lockdown_middleware(
        context.switches,
        open_routes={route.path for route in ROUTES if route.in_lockdown},
        is_admin=context.access.is_admin,
        refused=context.metrics.lockdown_refused,
    )
    app = new_application(lockdown, observers=[_request_metrics(context.metrics)])
    app.router.add_routes(bind(ROUTES, context, context.access))

    async def end_waits(_app: web.Application) -> None:
        context.events.close()
        context.block_service.close()

    app.on_shutdown.append(end_waits)
    return app


def _request_metrics(metrics: MasterMetrics) -> object:
    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        begin_s = time.perf_counter()
        response = await handler(request)
        metrics.count_http(
            route_template(request),
            request.method,
            response.status,
            time.perf_counter() - begin_s,
        )
        return response

    return observe


async def _watch_relays(context: MasterContext) -> None:
    """Log changes of state and write heartbeats, once in each heartbeat interval."""
    seen: dict[str, str] = {}
    while True:
        infos = context.directory.infos(context.clock.monotonic_s())
        for info in infos:
            before = seen.get(info.relay_id)
            if before is not None and before != info.state:
                level = "warning" if info.state == RelayState.OFFLINE else "info"
                getattr(_log, level)(
                    "relay_state", relay_id=info.relay_id, before=before, now=info.state
                )
        seen = {info.relay_id: info.state for info in infos}
        try:
            await context.directory.save_heartbeats()
        except StoreUnavailableError as error:
            _log.error("heartbeats_not_saved", cause=str(error))
        await asyncio.sleep(context.config.heartbeat_interval_ms / 1000)


async def _lift_bans(context: MasterContext) -> None:
    """Take banned relays back in when their time is over."""
    while True:
        try:
            await context.ban_service.lift_ended()
        except StoreUnavailableError as error:
            _log.error("bans_not_lifted", cause=str(error), next_step="tried again every second")
        await asyncio.sleep(LIFT_INTERVAL_S)


async def _prune(context: MasterContext) -> None:
    """Delete rows of sessions, tokens and revocations that ended long ago."""
    while True:
        try:
            before_s = context.clock.now_s() - KEEP_EXPIRED_S
            pruned = PRUNE_BATCH
            while pruned == PRUNE_BATCH:
                pruned = await context.store.prune_sessions(before_s, PRUNE_BATCH)
            await context.token_service.forget_expired()
            await context.revocations.prune(context.clock.now_s())
        except StoreUnavailableError as error:
            _log.error("rows_not_pruned", cause=str(error))
        await asyncio.sleep(PRUNE_INTERVAL_S)
