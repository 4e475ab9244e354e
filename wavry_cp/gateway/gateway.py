"""Puts the parts of a gateway together and keeps its background work going."""

import asyncio
import contextlib
import secrets
import uuid
from typing import Final, Self

import structlog
from aiohttp import web

from wavry_cp.app.client_address import client_address
from wavry_cp.app.rate_limit import RateLimiter, address_key
from wavry_cp.app.store_errors import StoreUnavailableError
from wavry_cp.app.store_probe import StoreProbe
from wavry_cp.app.token_files import TokenFile, require_different
from wavry_cp.gateway.accounts.access import UserAccess
from wavry_cp.gateway.accounts.login_delays import LoginDelays
from wavry_cp.gateway.accounts.passwords import PasswordHasher
from wavry_cp.gateway.accounts.service import AccountService
from wavry_cp.gateway.sessions.broker import Broker
from wavry_cp.gateway.sessions.leases import SessionLeases
from wavry_cp.gateway.sessions.rules import SessionKey
from wavry_cp.gateway.sessions.service import SessionService
from wavry_cp.gateway.signaling.hub import Hub
from wavry_cp.gateway.signaling.limits import ConnectionSlots
from wavry_cp.gateway.signaling.service import Signaling
from wavry_cp.operators.auth_failures import AuthFailures
from wavry_cp.operators.ban_service import BanService
from wavry_cp.operators.bans import BanKind, BanTable
from wavry_cp.operators.switch_service import SwitchService
from wavry_cp.operators.switches import Switch, SwitchState, SwitchTable
from wavry_cp.store.sqlite.gateway import SqliteGatewayStore
from wavry_peer.service.clock import Clock

from .admin_access import AdminAccess
from .ban_effects import GatewayBanEffects
from .config import GatewayConfig
from .metrics import GatewayMetrics
from .store import GatewayStore

__all__ = ["Gateway"]

ADDRESS_KEYS: Final = 65_536
"""Addresses and users that a limiter remembers, about 10 MB each when full."""
SWEEP_S: Final = 1.0
CLEANING_S: Final = 60.0
KEEP_CLOSED_S: Final = 7 * 86_400
FORGET_AT_ONCE: Final = 1000

_log = structlog.get_logger(__name__)


class Gateway:
    """One gateway; made by `open`, ended by `close`.

    Attributes:
        stopping: set on shutdown, so that /ready says so.
    """

    def __init__(
        self,
        config: GatewayConfig,
        store: GatewayStore,
        *,
        service_token: str,
        admin_token: TokenFile | None,
        switches: SwitchTable,
        bans: BanTable,
        clock: Clock,
    ) -> None:
        self.config = config
        self.store = store
        self.clock = clock
        self.started_s = clock.monotonic_s()
        self.stopping = False
        self.metrics = GatewayMetrics()
        self.hub = Hub()
        self.metrics.watch_online(lambda: self.hub.online)
        self.switches = switches
        self.metrics.watch_switches(switches)
        self.switch_service = SwitchService(store, switches, now_s=clock.now_s, turned=self._turned)
        self.metrics.watch_bans(bans, clock.now_s)
        admission = UserAccess(switches, bans, clock, self.metrics.banned_refused)
        self.slots = ConnectionSlots(
            per_address=config.connections_per_address, total=config.max_connections
        )
        self.connect_limit = _per_minute(config.connects_per_minute, config.connects_burst)
        self.request_limit = RateLimiter(config.requests_per_s, config.requests_burst, ADDRESS_KEYS)
        self._hasher = PasswordHasher(
            config.password_cost,
            concurrency=config.argon2_concurrency,
            max_waiting=config.argon2_waiting,
        )
        self.accounts = AccountService(
            store=store,
            hub=self.hub,
            hasher=self._hasher,
            delays=LoginDelays(secret=secrets.token_bytes(32)),
            register_limit=_per_minute(config.register_per_minute, config.register_burst),
            login_limit=_per_minute(config.login_per_minute, config.login_burst),
            token_ttl_s=config.token_ttl_s,
            tokens_per_user=config.tokens_per_user,
            random_bytes=secrets.token_bytes,
            admission=admission,
            clock=clock,
            metrics=self.metrics,
        )
        self.calls = SessionService(
            store=store,
            hub=self.hub,
            limits=config.call_limits,
            call_limit=_per_minute(config.calls_per_minute, config.calls_burst),
            pending_s=config.pending_s,
            session_idle_s=config.session_idle_s,
            new_id=lambda: SessionKey(str(uuid.uuid4())),
            clock=clock,
            metrics=self.metrics,
        )
        self.ban_service = BanService(
            store,
            bans,
            GatewayBanEffects(store, self.hub, self.calls),
            kinds={BanKind.USER},
            now_s=clock.now_s,
        )
        self.broker = Broker(
            config.master_url,
            service_token,
            timeout_s=config.master_timeout_s,
            metrics=self.metrics,
        )
        self.admin = AdminAccess(
            admin_token,
            self.broker.check_admin_token,
            failures=AuthFailures(
                per_minute=config.admin_failures_per_minute,
                trusted_proxies=config.trusted_proxy_networks,
                monotonic_s=clock.monotonic_s,
                counter=self.metrics.admin_auth_failures,
            ),
            monotonic_s=clock.monotonic_s,
        )
        self.relaying = SessionLeases(
            store=store,
            hub=self.hub,
            broker=self.broker,
            limit=_per_minute(config.relay_requests_per_minute, config.relay_requests_burst),
            timeout_s=config.master_timeout_s,
            session_idle_s=config.session_idle_s,
            admission=admission,
            clock=clock,
            metrics=self.metrics,
        )
        self.signaling = Signaling(
            config=config,
            accounts=self.accounts,
            hub=self.hub,
            calls=self.calls,
            relaying=self.relaying,
            message_limit=RateLimiter(config.messages_per_s, config.messages_burst, ADDRESS_KEYS),
            clock=clock,
            metrics=self.metrics,
        )
        self.store_probe = StoreProbe(lambda: store.ping(), clock.monotonic_s)
        self._sweeper = asyncio.create_task(self._sweep())

    @classmethod
    async def open(cls, config: GatewayConfig, clock: Clock | None = None) -> Self:
        """Open the store and read the token files.

        Raises:
            TokenFileError: a token file is missing or not fit, or holds no token.
            SettingsError: both token files hold the same token.
            StoreVersionError, StoreUnavailableError: the store cannot be opened.
        """
        variables = ("WAVRY_GATEWAY_SERVICE_TOKEN_FILE", "WAVRY_GATEWAY_ADMIN_TOKEN_FILE")
        service = TokenFile.load(config.service_token_file, "service", variables[0])
        admin = None
        if config.admin_token_file is not None:
            admin = TokenFile.load(config.admin_token_file, "admin", variables[1])
            require_different(service, admin, variables)
        try:
            config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailableError(
                f"WAVRY_GATEWAY_DATA_DIR {config.data_dir}: {error.strerror}"
            ) from error
        try:
            store = await SqliteGatewayStore.open(config.data_dir / "gateway.db")
        except StoreUnavailableError as error:
            raise StoreUnavailableError(f"WAVRY_GATEWAY_DATA_DIR {error}") from error
        try:
            return cls(
                config,
                store,
                service_token=service.token,
                admin_token=admin,
                switches=SwitchTable(await store.switches()),
                bans=BanTable(await store.bans()),
                clock=clock or Clock(),
            )
        except BaseException:
            await store.close()
            raise

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
        await self.store.close()

    async def _sweep(self) -> None:
        clean_at_s = 0.0
        while True:
            try:
                await self.calls.expire()
                self.relaying.forget_fresh()
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
        await self.store.forget_sessions(
            closed_before_s=now_s - KEEP_CLOSED_S, limit=FORGET_AT_ONCE
        )


def _per_minute(rate: float, burst: int) -> RateLimiter:
    return RateLimiter(rate / 60, burst, ADDRESS_KEYS)
