"""The link to the master: registration by key, heartbeats, orders, key set.

States: ``off`` (no master configured) · ``registering`` · ``registered`` · ``failing`` (registered,
but the last heartbeats failed).  A heartbeat that the master answers with 404 (it does not know
this relay), 401 or 403 (nor its token), or six failures in a row lead back to ``registering``,
with growing, jittered delays.  Sessions go on in every state: they need keys, not the master.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol, TypeVar

import aiohttp
import msgspec
import structlog

from wavry_peer.protocol import base64url
from wavry_peer.protocol.errors import KeySetError, MessageError
from wavry_peer.protocol.http import api
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.keyset import MAX_DOCUMENT_BYTES, encode_keyset, relay_id
from wavry_peer.protocol.registration import sign_registration
from wavry_peer.protocol.relay_terms import DrainOrder, MasterLinkState, ReportedState
from wavry_peer.service.clock import Clock
from wavry_peer.service.http_client import CallError, JsonAnswer, JsonCaller
from wavry_peer.service.request_ids import quoted

from .call_error import MasterCallError
from .description import RelayDescription, RelayLoad
from .enrolment_token import read_enrolment_token
from .key_ring import KeyRing

__all__ = ["MasterLink", "Orders"]

FAILURES_BEFORE_REGISTERING: Final = 6
JITTER: Final = 0.2
"""A thousand relays that start together must not call together ever after."""
BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 60.0
WATCHED_HEARTBEAT_S: Final = 1.0
"""While it drains: somebody waits for the sessions to become none."""
CALL_TIMEOUT_S: Final = 5.0
FAREWELL_TIMEOUT_S: Final = 1.0
_HEARTBEAT_MIN_S: Final = 0.1
_HEARTBEAT_MAX_S: Final = 300.0
BACKOFF_REFUSED_S: Final = 10.0
_FORGOTTEN: Final = (401, 403, 404)
_LASTING: Final = (400, 403, 409)

_MESSAGE_CHARS: Final = 300

_log = structlog.get_logger(__name__)
Body = TypeVar("Body", bound=msgspec.Struct)


class Orders(Protocol):
    """What the master may order.

    Attributes:
        report_due: set when the master should hear of the relay at once: a drain began or ended,
            workers are missing or are there again.
    """

    report_due: asyncio.Event

    def clear_blocks_by_master(self, subnet: str | None) -> None:
        """Lift the block of a subnet, or all."""

    def drain_by_master(self, *, drain: bool) -> None:
        """Take no new sessions, or take them again."""


class MasterLink:
    """Keeps the relay registered.

    Attributes:
        last_error: why the master was not reached or refused us, None while all is well.
        keys_error: the same for the last key set that was fetched by itself.

    Args:
        base_url: of the master.
        description: for registration.
        keyring: takes key sets.
        orders: carries out commands.
        measure_load: since the last heartbeat.
        clock: time.
        uniform: source of jitter, ``random.uniform``.
    """

    def __init__(
        self,
        base_url: str,
        description: RelayDescription,
        keyring: KeyRing,
        orders: Orders,
        measure_load: Callable[[], RelayLoad],
        clock: Clock,
        *,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.url = base_url.rstrip("/")
        self.relay_id = relay_id(description.identity.public_key)
        self._description = description
        self._keyring = keyring
        self._orders = orders
        self._measure_load = measure_load
        self._uniform = uniform
        self._token = ""
        self._description_changed = False
        self._interval_s = 5.0
        self._failures = 0
        self._is_watched = False
        self._banned = False
        self._is_known = False
        """It registered once: the master knows its key, and an enrolment token is used up."""
        self._http: JsonCaller | None = None
        self.state = MasterLinkState.REGISTERING
        self.last_error: str | None = None
        self.keys_error: str | None = None
        self._clock = clock
        self._heard_s = clock.monotonic_s()
        self.registrations: Counter[str] = Counter()
        self.heartbeats: Counter[str] = Counter()

    def tell_capacity(self, max_bitrate_kbps: int) -> None:
        """Register again, under the same id, with another limit at the next heartbeat."""
        self._description = replace(self._description, max_bitrate_kbps=max_bitrate_kbps)
        self._description_changed = True

    def unheard_s(self) -> float:
        """Return the seconds since the master took a registration or heartbeat, or the start."""
        return self._clock.monotonic_s() - self._heard_s

    async def run(self) -> None:
        """Register and send heartbeats until cancelled."""
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
        async with JsonCaller(timeout) as self._http:
            while True:
                try:
                    await self._until_registered()
                    await self._while_registered()
                except Exception as error:  # noqa: BLE001 - a defect here must not end the link
                    self.last_error = "internal error, see the log"
                    _log.error(
                        "master_link_failed",
                        exc_info=error,
                        next_step="report this with the traceback; the relay registers again",
                    )
                    await asyncio.sleep(self._uniform(BACKOFF_FIRST_S, BACKOFF_MAX_S))

    async def _until_registered(self) -> None:
        self.state = MasterLinkState.REGISTERING
        delay_s = BACKOFF_FIRST_S
        while True:
            try:
                await self._register()
            except MasterCallError as error:
                self._failed(self.registrations, error)
                self._heed_ban(error)
                if error.status in _LASTING:
                    # Asking faster changes nothing: somebody has to do something first.
                    delay_s = max(delay_s, BACKOFF_REFUSED_S)
                wait_s = max(error.retry_after_s, self._uniform(delay_s * 0.5, delay_s))
                _log.warning(
                    "registration_failed",
                    cause=str(error),
                    retry_in_s=round(wait_s, 1),
                    next_step=error.next_step
                    or "check WAVRY_RELAY_MASTER_URL and the master's log",
                )
                await asyncio.sleep(wait_s)
                delay_s = min(delay_s * 2, BACKOFF_MAX_S)
                continue
            self.registrations["ok"] += 1
            self.state, self.last_error, self._failures = MasterLinkState.REGISTERED, None, 0
            if self._banned:
                # A drain that stands besides the ban is ordered again by the next heartbeat.
                self._banned = False
                self._orders.drain_by_master(drain=False)
            _log.info("registered", heartbeat_s=self._interval_s)
            return

    async def _while_registered(self) -> None:
        wait_s = 0.0  # The first heartbeat makes the master give us sessions: at once.
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._orders.report_due.wait()
            self._orders.report_due.clear()
            wait_s = self._interval_s * self._uniform(1 - JITTER, 1 + JITTER)
            try:
                if self._description_changed:
                    await self._register()
                    self.registrations["ok"] += 1
                commands = await self._heartbeat()
            except MasterCallError as error:
                self._failed(self.heartbeats, error)
                self._heed_ban(error)
                self._failures += 1
                self.state = MasterLinkState.FAILING
                lost = error.status in _FORGOTTEN or self._failures >= FAILURES_BEFORE_REGISTERING
                _log.warning(
                    "heartbeat_failed",
                    cause=str(error),
                    failures=self._failures,
                    next_step="registering again" if lost else "trying again",
                )
                if lost:
                    return
                continue
            self.heartbeats["ok"] += 1
            self._heard_s = self._clock.monotonic_s()
            self.state, self.last_error, self._failures = MasterLinkState.REGISTERED, None, 0
            held = self._keyring.serial
            for command in commands:
                await self._execute(command)
                if command.type == "clear_blocks":
                    wait_s = 0.0  # An operator waits for the report that it is done.
            if self._is_watched:
                wait_s = min(wait_s, WATCHED_HEARTBEAT_S)
            if self._keyring.serial != held:
                wait_s = 0.0  # A rotation waits for this report.

    def _failed(self, counter: Counter[str], error: MasterCallError) -> None:
        counter["failed"] += 1
        self.last_error = str(error)

    def _heed_ban(self, error: MasterCallError) -> None:
        """Let the sessions of a banned relay go; a registration that is accepted ends that."""
        if error.code == ErrorCode.BANNED and not self._banned:
            self._banned = True
            _log.warning(
                "relay_banned",
                cause="the operator banned this relay: it takes no new sessions, and live ones"
                " move to another",
                next_step="`wavryctl audit` says why; `wavryctl bans lift relay` ends it",
            )
            self._orders.drain_by_master(drain=True)

    async def _register(self) -> None:
        described = self._description
        token = None if self._is_known else read_enrolment_token(described.enrolment_token_file)
        challenge = await self._call(
            "POST",
            "/v1/relays/register",
            api.RegisterResponse,
            api.RegisterRequest(
                relay_id=self.relay_id,
                public_key=base64url.encode(described.identity.public_key),
                endpoints=described.endpoints,
                region=described.region,
                max_sessions=described.max_sessions,
                max_bitrate_kbps=described.max_bitrate_kbps,
                features=described.features,
                version=described.version,
                name=described.name,
                enrolment_token=token,
            ),
        )
        try:
            # The pinned root is who we mean; another master must not be able to use this.
            master_id = self._keyring.root or base64url.decode(challenge.master_id)
            signature = sign_registration(
                described.identity,
                base64url.decode(challenge.challenge),
                master_id,
                described.endpoints,
            )
        except ValueError as error:
            raise MasterCallError("/v1/relays/register: challenge is not base64url") from error
        answer = await self._call(
            "POST",
            "/v1/relays/register/verify",
            api.VerifyResponse,
            api.VerifyRequest(
                challenge_id=challenge.challenge_id, signature=base64url.encode(signature)
            ),
        )
        self._token = answer.relay_token
        self._is_known = True
        self._heard_s = self._clock.monotonic_s()
        interval_s = answer.heartbeat_interval_ms / 1000
        self._interval_s = min(max(interval_s, _HEARTBEAT_MIN_S), _HEARTBEAT_MAX_S)
        self._description_changed = self._description is not described
        self._accept_keys(encode_keyset(answer.keyset))

    async def _heartbeat(self) -> tuple[api.Command, ...]:
        self._keyring.cache_again()
        load = self._measure_load()
        # An operator waits for the end of a drain, callers for the end of a shortage.
        self._is_watched = load.draining or load.workers_missing > 0
        answer = await self._call(
            "POST",
            "/v1/relays/heartbeat",
            api.HeartbeatResponse,
            api.HeartbeatRequest(
                relay_id=self.relay_id,
                load_pct=load.load_pct,
                active_sessions=load.active_sessions,
                bandwidth_in_kbps=load.bandwidth_in_kbps,
                bandwidth_out_kbps=load.bandwidth_out_kbps,
                packet_loss_pct=load.packet_loss_pct,
                held_kids=self._keyring.key_ids,
                keyset_serial=self._keyring.serial,
                state=ReportedState.DRAINING if load.draining else ReportedState.READY,
                workers_wanted=load.workers_wanted,
                workers_missing=load.workers_missing,
                clock_ms=self._clock.now().wall_ms,
                disk_failing=load.disk_failing,
                rejects=dict(load.rejects),
                blocks=load.blocks,
            ),
        )
        return answer.commands

    async def _execute(self, command: api.Command) -> None:
        if command.type in tuple(DrainOrder):
            self._orders.drain_by_master(drain=command.type == DrainOrder.DRAIN)
        elif command.type == "refresh_keys":
            await self.refresh_keys()
        elif command.type == "clear_blocks":
            self._orders.clear_blocks_by_master(command.subnet)
        else:
            _log.debug("command_unknown", next_step="update the relay to understand it")

    @property
    def token(self) -> str:
        """Relay token, empty before the first registration."""
        return self._token

    @property
    def keyset_serial(self) -> int:
        """Serial of the key set in use."""
        return self._keyring.serial

    async def get(self, path: str, limit: int) -> bytes:
        """Ask with the relay token, for at most `limit` bytes.

        Raises:
            MasterCallError: no answer, a status from 300 on, or a longer one.
        """
        return (await self._fetch("GET", path, None, limit)).raw

    async def refresh_keys(self) -> None:
        """Fetch the key set; a failure is logged, and the keys in use stay."""
        try:
            raw = await self.get("/.well-known/wavry-keys.json", MAX_DOCUMENT_BYTES)
        except MasterCallError as error:
            self.keys_error = str(error)
            _log.warning(
                "keyset_refresh_failed",
                cause=str(error),
                next_step="the keys in use stay; the master asks again",
            )
            return
        self._accept_keys(raw)

    def _accept_keys(self, raw: bytes) -> None:
        self.keys_error = None
        try:
            self._keyring.accept(raw)
        except KeySetError as error:
            _log.error(
                "keyset_refused",
                cause=str(error),
                next_step="the keys in use stay; compare the master's root with"
                " WAVRY_RELAY_ROOT_KEY",
            )

    async def farewell(self) -> None:
        """Tell the master that this relay is gone; best effort within a second."""
        if not self._token:
            return
        timeout = aiohttp.ClientTimeout(total=FAREWELL_TIMEOUT_S)
        try:
            async with JsonCaller(timeout) as self._http:
                await self._fetch("DELETE", f"/v1/relays/{self.relay_id}")
        except MasterCallError as error:
            _log.warning(
                "deregistration_failed",
                cause=str(error),
                next_step="none: the master notices by the missing heartbeats",
            )

    async def _call(self, method: str, path: str, kind: type[Body], body: api.Body) -> Body:
        answer = await self._fetch(method, path, body)
        try:
            return answer.read(kind)
        except MessageError as error:
            raise MasterCallError(f"{path}: the answer does not fit: {error}") from error

    async def _fetch(
        self,
        method: str,
        path: str,
        body: api.Body | None = None,
        limit: int = api.MAX_BODY_BYTES,
    ) -> JsonAnswer:
        """Make one HTTP call.

        Raises:
            MasterCallError: no answer, a status from 300 on, or more than `limit` bytes.
        """
        if self._http is None:
            raise MasterCallError("link is not running")
        token = None if path == "/v1/relays/register" else self._token
        try:
            answer = await self._http.call(
                method, self.url + path, body, token=token, max_bytes=limit
            )
        except CallError as error:
            raise MasterCallError(f"{path}: {error}") from error
        if not answer.ok:
            reason = answer.error_body()
            code = "" if reason is None else reason.error[:64]
            said = f"{path}: {answer.status} {code or 'without a reason'}"
            if reason is not None:
                said += f": {_printable(reason.message)}"
            raise MasterCallError(
                quoted(said, answer.request_id),
                answer.status,
                code,
                min(answer.retry_after_s() or 0.0, BACKOFF_MAX_S),
            )
        return answer


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:_MESSAGE_CHARS])
