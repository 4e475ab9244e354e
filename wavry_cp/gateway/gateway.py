"""Puts the parts of a gateway together and keeps its background work going."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self

import structlog
from aiohttp import web

from wavry_cp.app.client_address import client_address
from wavry_cp.app.directory_lock import data_directory
from wavry_cp.app.rate_limit import LIMIT_KEYS, RateLimiter
from wavry_cp.app.store_errors import StoreUnavailableError
from wavry_cp.app.store_probe import StoreProbe
from wavry_cp.app.token_files import TokenFile, require_different
from wavry_cp.app.transport.tls import TlsFiles
from wavry_cp.gateway.accounts.access import UserAccess
from wavry_cp.gateway.accounts.changes import KEEP_NAMES_S, AccountChanges
from wavry_cp.gateway.accounts.passwords import PasswordHasher
from wavry_cp.gateway.accounts.service import AccountService
from wavry_cp.gateway.sessions.broker import Broker
from wavry_cp.gateway.sessions.events import SessionEvents
from wavry_cp.gateway.sessions.leases import SessionLeases
from wavry_cp.gateway.sessions.service import SessionService
from wavry_cp.gateway.signaling.hub import Hub
from wavry_cp.gateway.signaling.limits import ConnectionSlots
from wavry_cp.gateway.signaling.service import Signaling
from wavry_cp.operators.auth_failures import AuthFailures
from wavry_cp.operators.ban_service import BanService
from wavry_cp.operators.bans import BanKind, BanTable
from wavry_cp.operators.refusals import Folder, Refusals
from wavry_cp.operators.switch_service import SwitchService
from wavry_cp.operators.switches import Switch, SwitchState, SwitchTable
from wavry_cp.store.sqlite.gateway import SqliteGatewayStore
from wavry_peer.service.address_key import address_key
from wavry_peer.service.clock import Clock
from wavry_peer.service.http_listener import connections_at_most

from .admin_access import AdminAccess
from .ban_effects import GatewayBanEffects
from .config import GatewayConfig
from .core import GatewayCore
from .metrics import GatewayMetrics

__all__ = ["Gateway", "GatewayTokens", "open_gateway"]

DATABASE_FILE: Final = "gateway.db"
SWEEP_S: Final = 1.0
CLEANING_S: Final = 60.0
KEEP_CLOSED_S: Final = 7 * 86_400
FORGET_AT_ONCE: Final = 1000

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class GatewayTokens:
    """Tokens of the operator's files; without `admin` all admin calls are off."""

    service: TokenFile
    admin: TokenFile | None

    @classmethod
    def load(cls, config: GatewayConfig) -> Self:
        """Read the files.

        Raises:
            TokenFileError: a file is missing or not fit, or holds no token.
            SettingsError: both hold the same token.
        """
        variables = ("WAVRY_GATEWAY_SERVICE_TOKEN_FILE", "WAVRY_GATEWAY_ADMIN_TOKEN_FILE")
        service = TokenFile(config.service_token_file, "service", variables[0])
        if config.admin_token_file is None:
            return cls(service, None)
        admin = TokenFile(config.admin_token_file, "admin", variables[1])
        require_different(service, admin, variables)
        return cls(service, admin)


class Gateway:
    """One gateway; `open_gateway` makes and ends it.

    Attributes:
        stopping: set on shutdown, so that /ready says so.
    """

    def __init__(
        self,
        core: GatewayCore,
        tokens: GatewayTokens,
        switches: SwitchTable,
        bans: BanTable,
        tls: TlsFiles | None = None,
    ) -> None:
        config, store, clock = core.config, core.store, core.clock
        self.config = config
        self.store = store
        self.clock = clock
        self.hub = core.hub
        self.refusals = core.refusals
        self.session_events = core.events
        self.metrics = core.metrics
        self.switches = switches
        self.bans = bans
        self.tls = tls
        self.started_s = clock.monotonic_s()
        self.stopping = False
        self.metrics.watch_online(lambda: self.hub.online)
        self.metrics.watch_tls(tls)
        self.metrics.watch_switches(switches)
        self.metrics.watch_bans(bans, clock.now_s)
        self.slots = ConnectionSlots(
            per_address=config.connections_per_address,
            total=min(config.max_connections, connections_at_most() * 3 // 4),
        )
        self.connect_limit = RateLimiter.per_minute(
            config.connects_per_minute, config.connects_burst
        )
        self.request_limit = RateLimiter(config.requests_per_s, config.requests_burst, LIMIT_KEYS)
        self._hasher = PasswordHasher(
            config.password_cost,
            concurrency=config.argon2_concurrency,
            max_waiting=config.argon2_waiting,
        )
        self.broker = Broker(
            config.master_url,
            lambda: tokens.service.token,
            timeout_s=config.master_timeout_s,
            clock=clock,
            metrics=self.metrics,
        )
        self.accounts = AccountService(core, self._hasher)
        self.sessions = SessionService(core)
        self.account_changes = AccountChanges(core, self.accounts, self.sessions, self._hasher)
        self.session_leases = SessionLeases(core, self.broker)
        self.signaling = Signaling(core, self.accounts, self.sessions, self.session_leases)
        self.switch_service = SwitchService(store, switches, now_s=clock.now_s, turned=self._turned)
        self.ban_service = BanService(
            store,
            bans,
            GatewayBanEffects(store, self.hub, self.sessions),
            kinds={BanKind.USER},
            now_s=clock.now_s,
        )
        self.admin = AdminAccess(
            tokens.admin,
            self.broker.check_admin_token,
            failures=AuthFailures(
                per_minute=config.admin_failures_per_minute,
                trusted_proxies=config.trusted_proxy_networks,
                monotonic_s=clock.monotonic_s,
                counter=self.metrics.admin_auth_failures,
            ),
            monotonic_s=clock.monotonic_s,
        )
        self.store_probe = StoreProbe(lambda: store.check(), clock.monotonic_s)
        self._sweeper = asyncio.create_task(self._sweep())

    def _turned(self, state: SwitchState) -> None:
        if state.switch is Switch.LOCKDOWN and state.on:
            self.hub.end_for_lockdown()

    def address_key(self, request: web.Request) -> str:
        """Return what limits by address count a request under."""
        return address_key(client_address(request, self.config.trusted_proxy_networks))

    def stop(self) -> None:
        """Say goodbye to every client; nothing new is taken."""
        self.stopping = True
        self.hub.end_all()

    async def close(self) -> None:
        """Release everything; connections have ended by now."""
        self._sweeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._sweeper
        await self.broker.close()
        self._hasher.close()
        await self.refusals.write(ending=True)

    async def _sweep(self) -> None:
        clean_at_s = 0.0
        while True:
            try:
                await self.refusals.write()
                await self.sessions.expire()
                self.session_leases.forget_fresh()
                await self.ban_service.lift_ended()
                if self.clock.monotonic_s() >= clean_at_s:
                    clean_at_s = self.clock.monotonic_s() + CLEANING_S
                    await self._clean()
            except StoreUnavailableError as error:
                _log.error("store_unavailable", at="sweep", cause=str(error))
            except Exception as error:  # noqa: BLE001  # the sweep must not end by one bad row
                _log.error("sweep_failed", exc_info=error)
            await asyncio.sleep(SWEEP_S)

    async def _clean(self) -> None:
        now_s = self.clock.now_s()
        await self.store.remove_expired_tokens(now_s=now_s)
        await self.store.free_names(deleted_before_s=now_s - KEEP_NAMES_S)
        await self.store.forget_sessions(
            closed_before_s=now_s - KEEP_CLOSED_S, limit=FORGET_AT_ONCE
        )
        await self.store.checkpoint()


@asynccontextmanager
async def open_gateway(config: GatewayConfig, clock: Clock | None = None) -> AsyncIterator[Gateway]:
    """Give a gateway with its store open and its upkeep running inside the block.

    Raises:
        TokenFileError: a token file is missing or not fit, or holds no token.
        TlsFileError: certificate and key do not fit.
        SettingsError: both token files hold the same token.
        DirectoryInUseError: another process has the data directory.
        StoreVersionError, StoreUnavailableError: the store cannot be opened.
    """
    clock = clock or Clock()
    tokens = GatewayTokens.load(config)
    tls = TlsFiles.of(config.tls_certificate_file, config.tls_key_file, "GATEWAY")
    with data_directory(config.data_dir, "wavry-gateway", "WAVRY_GATEWAY_DATA_DIR"):
        try:
            store = await SqliteGatewayStore.open(config.data_dir / DATABASE_FILE)
        except StoreUnavailableError as error:
            raise StoreUnavailableError(f"WAVRY_GATEWAY_DATA_DIR {error}") from error
        try:
            switches, bans = SwitchTable(await store.switches()), BanTable(await store.bans())
            metrics = GatewayMetrics()
            access = UserAccess(switches, bans, clock, metrics.banned_refused)
            refusals = Refusals(store, clock, config.trusted_proxy_networks, Folder())
            events = SessionEvents(metrics.sessions, clock.now_s)
            core = GatewayCore(config, store, Hub(), access, clock, metrics, refusals, events)
            gateway = Gateway(core, tokens, switches, bans, tls)
            try:
                yield gateway
            finally:
                await gateway.close()
        finally:
            await store.close()
