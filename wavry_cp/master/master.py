"""Puts the parts of a master together and keeps its background work going."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self

import structlog

from wavry_cp.app.client_address import MetricsReaders
from wavry_cp.app.directory_lock import DirectoryInUseError, data_directory, held_directory
from wavry_cp.app.http import IpNetwork, TokenFile, parse_networks
from wavry_cp.app.rate_limit import LIMIT_KEYS, RateLimiter
from wavry_cp.app.store_errors import StoreUnavailableError
from wavry_cp.app.store_probe import StoreProbe
from wavry_cp.app.token_files import require_different
from wavry_cp.app.transport.tls import TlsFiles
from wavry_cp.master.blocks.service import BlockService
from wavry_cp.master.enrolment.registrar import Registrar
from wavry_cp.master.enrolment.service import EnrolmentService
from wavry_cp.master.health.prober import RelayProber
from wavry_cp.master.health.state_watch import StateWatch
from wavry_cp.master.health.store import HistoryStore
from wavry_cp.master.keys.files import DOCUMENT_FILE, KeyFileError
from wavry_cp.master.keys.live import LiveKeys
from wavry_cp.master.keys.service import KeyService
from wavry_cp.master.leases.service import LeaseService, Vetoes
from wavry_cp.master.relays.event_stream import EventStreams
from wavry_cp.master.relays.registry import RelayRegistry
from wavry_cp.master.revocations.service import RevocationIndex, RevocationService
from wavry_cp.operators.admin_tokens import TokenTable
from wavry_cp.operators.auth_failures import AuthFailures
from wavry_cp.operators.ban_service import BanService
from wavry_cp.operators.bans import BanKind, BanTable
from wavry_cp.operators.refusals import Folder, Refusals
from wavry_cp.operators.switch_service import SwitchService
from wavry_cp.operators.switches import SwitchTable
from wavry_cp.operators.token_service import TokenService
from wavry_cp.store.sqlite.master import MasterSqlite
from wavry_peer.service.clock import Clock

from .access import Access
from .ban_effects import MasterBanEffects
from .config import MasterConfig
from .metrics import MasterMetrics
from .store import MasterStore

__all__ = ["Master", "MasterTokens", "open_master"]

PROGRAM: Final = "wavry-master"
DATABASE_FILE: Final = "master.db"
OPEN_CALLS_PER_S: Final = 20.0
OPEN_BURST: Final = 200
"""Of the public key-set document; relays behind one address ask once a minute at most."""
LIFT_INTERVAL_S: Final = 1.0
PRUNE_INTERVAL_S: Final = 60.0
PRUNE_BATCH: Final = 5_000
KEEP_EXPIRED_S: Final = 3600
"""An expired session is kept for an hour, so that a late caller is told why and not "unknown"."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class MasterTokens:
    """Tokens of the operator's files."""

    service: TokenFile
    admin: TokenFile

    @classmethod
    def load(cls, config: MasterConfig) -> Self:
        """Read the files.

        Raises:
            TokenFileError: a file is missing or not fit, or holds no token.
            SettingsError: both hold the same token.
        """
        variables = ("WAVRY_MASTER_SERVICE_TOKEN_FILE", "WAVRY_MASTER_ADMIN_TOKEN_FILE")
        service = TokenFile(config.service_token_file, "service", variables[0])
        admin = TokenFile(config.admin_token_file, "admin", variables[1])
        require_different(service, admin, variables)
        return cls(service, admin)


@dataclass(frozen=True, slots=True)
class Master:
    """One master; `open_master` makes and ends it."""

    config: MasterConfig
    store: MasterStore
    registry: RelayRegistry
    keys: LiveKeys
    key_service: KeyService
    lease_service: LeaseService
    access: Access
    tokens: TokenTable
    token_service: TokenService
    switches: SwitchTable
    switch_service: SwitchService
    bans: BanTable
    ban_service: BanService
    block_service: BlockService
    enrolments: EnrolmentService
    registrar: Registrar
    metrics: MasterMetrics
    clock: Clock
    history: HistoryStore
    revocations: RevocationService
    events: EventStreams
    register_limit: RateLimiter
    open_limit: RateLimiter
    trusted_proxies: tuple[IpNetwork, ...]
    store_probe: StoreProbe
    refusals: Refusals
    started_s: float
    tls: TlsFiles | None

    def forget_relay(self, relay_id: str) -> None:
        """Forget what was told about a relay whose record is gone."""
        self.events.forget(relay_id)
        self.block_service.forget(relay_id)


@asynccontextmanager
async def open_master(config: MasterConfig, clock: Clock | None = None) -> AsyncIterator[Master]:
    """Give a master with its store open and its upkeep running inside the block.

    Raises:
        KeyFileError: no keys; says which command makes them.
        TokenFileError: a token file is missing or open to others, or holds no token.
        TlsFileError: certificate and key do not fit.
        SettingsError: both token files hold the same token.
        DirectoryInUseError: another process has the data or the key directory.
        StoreUnavailableError: the database cannot be opened.
        StoreVersionError: the database is of a newer version.
    """
    clock = clock or Clock()
    with _held_directories(config):
        async with _opened(config, clock) as master:
            yield master


@contextlib.contextmanager
def _held_directories(config: MasterConfig) -> Iterator[None]:
    """Hold data and keys: a second master would rotate the keys that this one signs with."""
    with contextlib.ExitStack() as held:
        if (config.keys_dir / DOCUMENT_FILE).exists():  # Else `load_keys` says what is missing.
            try:
                held.enter_context(held_directory(config.keys_dir, PROGRAM, may_be_read_only=True))
            except DirectoryInUseError as error:
                raise DirectoryInUseError(f"WAVRY_MASTER_KEYS_DIR {error}") from None
            except OSError as error:
                raise StoreUnavailableError(
                    f"WAVRY_MASTER_KEYS_DIR {config.keys_dir}: {error.strerror}"
                ) from error
        if config.data_dir.resolve() != config.keys_dir.resolve():
            held.enter_context(data_directory(config.data_dir, PROGRAM, "WAVRY_MASTER_DATA_DIR"))
        yield


@asynccontextmanager
async def _opened(config: MasterConfig, clock: Clock) -> AsyncIterator[Master]:
    try:
        keys = LiveKeys.open(config.keys_dir)
    except KeyFileError as error:
        raise KeyFileError(f"WAVRY_MASTER_KEYS_DIR: {error}") from error
    files = MasterTokens.load(config)
    tls = TlsFiles.of(config.tls_certificate_file, config.tls_key_file, "MASTER")
    try:
        store = await MasterSqlite.open(
            config.data_dir / DATABASE_FILE, used_before=_signs_of_use(keys)
        )
    except StoreUnavailableError as error:
        raise StoreUnavailableError(f"WAVRY_MASTER_DATA_DIR {error}") from error
    try:
        metrics = MasterMetrics()
        proxies = parse_networks(config.trusted_proxies)
        tokens = TokenTable(await store.admin_tokens())
        switches = SwitchTable(await store.switches())
        metrics.watch_switches(switches)
        metrics.watch_tls(tls)
        bans = BanTable(await store.bans())
        metrics.watch_bans(bans, clock.now_s)
        registry = RelayRegistry(
            store,
            heartbeat_interval_s=config.heartbeat_interval_ms / 1000,
            is_door_open=config.open_enrolment,
            probe_interval_s=config.probe_interval_ms / 1000,
        )
        await registry.load(now_s=clock.now_s(), monotonic_s=clock.monotonic_s())
        access = Access(
            files.service,
            files.admin,
            tokens,
            relays=registry,
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
        revocations = RevocationService(
            store.revocations, index, events.wake_all, registry.strangers
        )
        key_service = KeyService(keys, store, registry, clock, metrics)
        await key_service.load()
        key_service.on_change.append(lambda _keyset: events.wake_all())
        enrolments = EnrolmentService(store, registry, clock)
        await enrolments.load()
        lease_service = LeaseService(
            config, store, registry, keys, clock, Vetoes(switches, bans, index)
        )
        await lease_service.load()
        watch = StateWatch(store.history)
        await watch.load()
        registry.on_state.append(lambda _relay_id: watch.changed.set())
        master = Master(
            config=config,
            store=store,
            registry=registry,
            keys=keys,
            key_service=key_service,
            lease_service=lease_service,
            access=access,
            tokens=tokens,
            token_service=TokenService(store, tokens, clock),
            switches=switches,
            switch_service=SwitchService(store, switches, now_s=clock.now_s),
            bans=bans,
            ban_service=BanService(
                store,
                bans,
                MasterBanEffects(store, registry, revocations, events.wake),
                kinds=frozenset(BanKind),
                now_s=clock.now_s,
            ),
            block_service=BlockService(),
            enrolments=enrolments,
            registrar=Registrar(config, registry, enrolments, keys, bans, clock),
            metrics=metrics,
            clock=clock,
            history=store.history,
            revocations=revocations,
            events=events,
            register_limit=RateLimiter(
                config.register_per_minute / 60, config.register_per_minute, LIMIT_KEYS
            ),
            open_limit=RateLimiter(OPEN_CALLS_PER_S, OPEN_BURST, LIMIT_KEYS),
            trusted_proxies=proxies,
            store_probe=StoreProbe(lambda: store.check(), clock.monotonic_s),
            refusals=Refusals(store, clock, proxies, Folder()),
            started_s=clock.monotonic_s(),
            tls=tls,
        )
        upkeep = [
            asyncio.create_task(_watch_relays(master, watch)),
            asyncio.create_task(_prune(master)),
            asyncio.create_task(_lift_bans(master)),
            asyncio.create_task(_write_refusals(master)),
        ]
        if config.probe_interval_ms:
            prober = RelayProber(registry, keys, clock, metrics.note_probe)
            registry.on_ready.append(prober.wake)
            upkeep.append(asyncio.create_task(prober.run()))
        else:
            _log.warning(
                "relays_not_probed",
                cause="WAVRY_MASTER_PROBE_INTERVAL_MS=0",
                effect="relays are taken at their word",
            )
        try:
            yield master
        finally:
            for task in upkeep:
                task.cancel()
            await asyncio.gather(*upkeep, return_exceptions=True)
            await master.refusals.write(ending=True)
            with contextlib.suppress(StoreUnavailableError):
                await registry.save_heartbeats()
    finally:
        await store.close()


def _signs_of_use(keys: LiveKeys) -> str:
    """Return why a master must have run with these keys before, or an empty text."""
    serial = keys.keyset.serial  # 1 is what `wavryctl keys init` made; a master makes the others.
    return f"its keys were changed {serial - 1} times by a master" if serial > 1 else ""


async def _watch_relays(master: Master, watch: StateWatch) -> None:
    """See states change, and write heartbeats once in each heartbeat interval."""
    interval_s = master.config.heartbeat_interval_ms / 1000
    saved_s = master.clock.monotonic_s()
    silent = False
    while True:
        watch.changed.clear()
        now_s = master.clock.monotonic_s()
        await watch.step(
            master.registry.seen_infos(now_s),
            now_s=master.clock.now_s(),
            is_known=master.registry.record,
        )
        silent = _tell_silence(before=silent, now=master.registry.is_pool_silent(now_s))
        if now_s - saved_s >= interval_s:
            saved_s = now_s
            try:
                await master.registry.save_heartbeats()
            except StoreUnavailableError as error:
                _log.error("heartbeats_not_saved", cause=str(error))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval_s):
                await watch.changed.wait()


def _tell_silence(*, before: bool, now: bool) -> bool:
    if now and not before:
        _log.error(
            "relays_all_silent",
            cause="no relay answers this master's probes any more",
            effect="new sessions still get relays: this host's own network is as likely the cause",
            next_step="can this host send UDP? `wavryctl doctor` from here and from elsewhere",
        )
    elif before and not now:
        _log.info("relays_answer_again")
    return now


async def _lift_bans(master: Master) -> None:
    """Take banned relays back in when their time is over."""
    while True:
        try:
            await master.ban_service.lift_ended()
        except StoreUnavailableError as error:
            _log.error("bans_not_lifted", cause=str(error), next_step="tried again every second")
        await asyncio.sleep(LIFT_INTERVAL_S)


async def _write_refusals(master: Master) -> None:
    while True:
        await asyncio.sleep(LIFT_INTERVAL_S)
        await master.refusals.write()


async def _prune(master: Master) -> None:
    """Delete rows of sessions, tokens and revocations that ended long ago."""
    while True:
        try:
            before_s = master.clock.now_s() - KEEP_EXPIRED_S
            pruned = PRUNE_BATCH
            while pruned == PRUNE_BATCH:
                pruned = await master.store.prune_sessions(before_s, PRUNE_BATCH)
            await master.token_service.forget_expired()
            await master.enrolments.forget_ended()
            for relay_id in await master.registry.forget_strangers(master.clock.now_s()):
                master.forget_relay(relay_id)
                _log.info(
                    "relay_forgotten", relay_id=relay_id, cause="a stranger, silent for a day"
                )
            await master.revocations.prune(master.clock.now_s())
            await master.store.checkpoint()
        except StoreUnavailableError as error:
            _log.error("rows_not_pruned", cause=str(error))
        await asyncio.sleep(PRUNE_INTERVAL_S)
