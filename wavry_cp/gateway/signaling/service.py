"""The WebSocket of one client, from the upgrade to its end.

BIND comes first and within the deadline, which is a timer and not a check at the next message.
Then each message is one call of `SessionService` or `SessionLeases`; what they refuse goes back as
ERROR and the connection stays.  Frames that do not fit and messages over the rate are forgiven a
few times, then the connection ends with a code that says why.
"""

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import structlog
from aiohttp import WSMsgType, web

from wavry_cp.app.client_address import client_address
from wavry_cp.app.rate_limit import LIMIT_KEYS, RateLimiter
from wavry_cp.app.refusal import RefusedError
from wavry_cp.app.store_errors import StoreUnavailableError
from wavry_cp.gateway.accounts.service import AccountService
from wavry_cp.gateway.accounts.tokens import token_hash
from wavry_cp.gateway.core import GatewayCore
from wavry_cp.gateway.sessions.leases import SessionLeases, credentials_message
from wavry_cp.gateway.sessions.rules import Keys, SessionKey, checked_keys
from wavry_cp.gateway.sessions.service import SessionService
from wavry_cp.operators.refusals import LIMITED
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.errors import MessageError
from wavry_peer.protocol.http import signaling as wire
from wavry_peer.protocol.http.api import RelaySessionRequest
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.service.address_key import address_key
from wavry_peer.service.http_server import awaiting_client
from wavry_peer.service.request_ids import adopt_request_id, current_request_id, quoted

from .connection import (
    CLOSE_ABUSE,
    CLOSE_AUTH,
    CLOSE_BIND_TIMEOUT,
    CLOSE_FLOOD,
    CLOSE_INTERNAL,
    CLOSE_TOO_BIG,
    SignalingConnection,
)
from .hub import end_for_token
from .limits import ConnectionFaults

__all__ = ["Signaling"]

BAD_FRAMES_ALLOWED: Final = 5
FLOOD_ALLOWED: Final = 20
RELAY_REQUESTS_AT_ONCE: Final = 4
"""A relay request may wait for the master; candidates behind it must not."""
_PREFIX: Final = 16
"""What the ids of messages keep of their connection's; a number follows."""
RECEIVE_BYTES: Final = 2 * c.MAX_SIGNALING_FRAME_BYTES
"""A frame between the limit and this gets an ERROR first; a larger one is not even read."""

_OUR_FAULT: Final = frozenset(
    {ErrorCode.STORE_UNAVAILABLE, ErrorCode.INTERNAL_ERROR, ErrorCode.LOCKDOWN}
)

_log = structlog.get_logger(__name__)


class _Ended(Exception):  # noqa: N818  # control flow: this connection has been told to end
    """Stop reading."""


class Signaling:
    """Serves WebSockets; one object for all of them."""

    def __init__(
        self,
        core: GatewayCore,
        accounts: AccountService,
        sessions: SessionService,
        session_leases: SessionLeases,
    ) -> None:
        config = core.config
        self._config = config
        self._hub = core.hub
        self._clock = core.clock
        self._metrics = core.metrics
        self._refusals = core.refusals
        self._accounts = accounts
        self._sessions = sessions
        self._session_leases = session_leases
        self._bind_limit = RateLimiter.per_minute(config.binds_per_minute, config.binds_burst)
        self._message_limit = RateLimiter(config.messages_per_s, config.messages_burst, LIMIT_KEYS)
        self._actions: Mapping[type, Callable[[SignalingConnection, str, Any], Awaitable[None]]] = {
            wire.Offer: self._offer,
            wire.OfferRift: self._offer_rift,
            wire.Answer: self._answer,
            wire.AnswerRift: self._answer,
            wire.Candidate: self._candidate,
            wire.Bye: self._bye,
            wire.Ping: self._ping,
            wire.Pong: _ignore,
            wire.Bind: _bound_twice,
        }

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """Upgrade a request and serve it to the end.

        Raises:
            RefusedError: 400 ``websocket_required``: the request is no WebSocket upgrade.
        """
        ws = web.WebSocketResponse(
            timeout=1.0,
            heartbeat=self._config.heartbeat_s,
            max_msg_size=RECEIVE_BYTES,
            # Deflate costs memory per connection and lets a small frame unpack into a large one.
            compress=False,
        )
        try:
            await ws.prepare(request)
        except web.HTTPBadRequest as error:
            raise RefusedError(
                ErrorCode.WEBSOCKET_REQUIRED,
                "this path speaks WebSocket only: send GET with Upgrade: websocket",
            ) from error
        transport = request.transport
        if transport is None:
            return ws
        connection = SignalingConnection(
            ws,
            transport,
            queue_messages=self._config.queue_messages,
            queue_bytes=self._config.queue_bytes,
            send_timeout_s=self._config.send_timeout_s,
        )
        connection.address = address_key(
            client_address(request, self._config.trusted_proxy_networks)
        )
        self._metrics.connections.inc()
        self._hub.add(connection)
        writer = asyncio.create_task(connection.write())
        try:
            await self._converse(request, connection)
        finally:
            self._hub.remove(connection)
            await connection.finish(writer)
            self._metrics.connections.dec()
            if connection.username is None:
                self._metrics.binds.labels(connection.cause).inc()
            self._metrics.connections_closed.labels(connection.cause).inc()
        return ws

    async def _converse(self, request: web.Request, connection: SignalingConnection) -> None:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._config.bind_timeout_s, self._bind_timeout, connection)
        waiting: set[asyncio.Task[None]] = set()
        try:
            with awaiting_client(request):
                username, expires_at = await self._bind(connection)
            timer.cancel()
            timer = self._expiry_timer(connection, expires_at)
            await self._read(connection, username, waiting)
        except _Ended:
            pass
        except StoreUnavailableError as error:
            _log.error("store_unavailable", at="bind", cause=str(error))
            self._fail(connection, CLOSE_INTERNAL, ErrorCode.STORE_UNAVAILABLE, "try again shortly")
        except Exception as error:  # noqa: BLE001  # last resort: the client gets an id, not a traceback
            _log.error("unhandled_error", at="websocket", exc_info=error)
            self._fail(connection, CLOSE_INTERNAL, ErrorCode.INTERNAL_ERROR, "our fault")
        finally:
            timer.cancel()
            if waiting:
                # They end within the master's time-out; the other user waits for his lease.
                await asyncio.wait(waiting)

    # -- binding ----------------------------------------------------------------------------

    async def _bind(self, connection: SignalingConnection) -> tuple[str, int]:
        message = self._decode(await _next_frame(connection))
        if isinstance(message, MessageError):
            self._fail_frame(connection, message)
            raise _Ended
        if not isinstance(message, wire.Bind):
            self._fail(
                connection, CLOSE_AUTH, ErrorCode.BIND_REQUIRED, "the first message must be BIND"
            )
            raise _Ended
        hashed = token_hash(message.token)
        if hashed is not None:
            self._hub.claim(connection, hashed)
        try:
            owner = await self._accounts.owner(message.token, via="websocket")
        except RefusedError as error:
            if error.code == ErrorCode.INVALID_TOKEN:
                self._note(connection, error.code)
                end_for_token(connection)
            else:
                self._fail(connection, CLOSE_AUTH, error.code, str(error))
            raise _Ended from error
        wait_s = self._bind_limit.check(owner.username, self._clock.monotonic_s())
        if wait_s:
            self._metrics.limited.labels("connect").inc()
            self._fail(
                connection, CLOSE_FLOOD, ErrorCode.RATE_LIMITED,
                f"this user connects too often; wait {math.ceil(wait_s)} s",
            )  # fmt: skip
        if connection.cause is not None:
            raise _Ended
        self._hub.bind(connection, owner.username)
        self._metrics.binds.labels("ok").inc()
        connection.send(wire.Bound(username=owner.username))
        return owner.username, owner.expires_at

    def _bind_timeout(self, connection: SignalingConnection) -> None:
        self._fail(connection, CLOSE_BIND_TIMEOUT, ErrorCode.BIND_TIMEOUT, "no BIND came in time")

    def _expiry_timer(
        self, connection: SignalingConnection, expires_at: int
    ) -> asyncio.TimerHandle:
        left_s = max(0.0, expires_at - self._clock.wall_s())
        return asyncio.get_running_loop().call_later(left_s, end_for_token, connection)

    # -- reading ----------------------------------------------------------------------------

    async def _read(
        self,
        connection: SignalingConnection,
        username: str,
        waiting: set[asyncio.Task[None]],
    ) -> None:
        bad, flood = ConnectionFaults(BAD_FRAMES_ALLOWED), ConnectionFaults(FLOOD_ALLOWED)
        opened_as = current_request_id()[:_PREFIX]
        for number in itertools.count(1):
            frame = await _next_frame(connection)
            adopt_request_id(f"{opened_as}-{number}")
            now_s = self._clock.monotonic_s()
            if self._message_limit.check(username, now_s):
                self._metrics.limited.labels("message").inc()
                if flood.add(now_s):
                    self._fail(connection, CLOSE_FLOOD, ErrorCode.RATE_LIMITED, "too many messages")
                    raise _Ended
                self._say(
                    connection, ErrorCode.RATE_LIMITED, "too many messages; this one was dropped"
                )
                continue
            message = self._decode(frame)
            if isinstance(message, MessageError):
                if message.code == ErrorCode.FRAME_TOO_LARGE or bad.add(now_s):
                    self._fail_frame(connection, message)
                    raise _Ended
                self._say(connection, message.code, str(message))
                continue
            self._metrics.messages.labels(type(message).__struct_config__.tag).inc()
            if isinstance(message, wire.RequestRelay):
                self._start_relay_request(connection, username, message, waiting)
            else:
                await self._answering(
                    connection, self._actions[type(message)](connection, username, message)
                )

    async def _answering(self, connection: SignalingConnection, action: Awaitable[None]) -> None:
        try:
            await action
        except RefusedError as error:
            self._say(connection, error.code, str(error))
        except StoreUnavailableError as error:
            _log.error("store_unavailable", at="websocket", cause=str(error))
            self._say(
                connection, ErrorCode.STORE_UNAVAILABLE, "the store cannot answer now; try again"
            )

    def _start_relay_request(
        self,
        connection: SignalingConnection,
        username: str,
        message: wire.RequestRelay,
        waiting: set[asyncio.Task[None]],
    ) -> None:
        if len(waiting) >= RELAY_REQUESTS_AT_ONCE:
            self._metrics.limited.labels("relay").inc()
            self._say(
                connection, ErrorCode.RATE_LIMITED, "relay requests are under way; wait for them"
            )
            return
        task = asyncio.create_task(self._request_relay_guarded(connection, username, message))
        waiting.add(task)
        task.add_done_callback(waiting.discard)

    async def _request_relay_guarded(
        self, connection: SignalingConnection, username: str, message: wire.RequestRelay
    ) -> None:
        try:
            await self._answering(connection, self._request_relay(connection, username, message))
        except Exception as error:  # noqa: BLE001  # as in _converse, for the task of its own
            _log.error("unhandled_error", at="request_relay", exc_info=error)
            self._say(connection, ErrorCode.INTERNAL_ERROR, "our fault")

    # -- actions ----------------------------------------------------------------------------

    async def _offer(
        self, _connection: SignalingConnection, username: str, message: wire.Offer
    ) -> None:
        if message.session_id is not None:
            await self._sessions.offer_again(username, message)
            return
        keys = checked_keys(message.identity_key, message.noise_key)
        await self._sessions.call(username, _target(message), keys, message)

    async def _offer_rift(
        self, _connection: SignalingConnection, username: str, message: wire.OfferRift
    ) -> None:
        await self._sessions.call(username, _target(message), Keys(), message)

    async def _answer(
        self,
        _connection: SignalingConnection,
        username: str,
        message: wire.Answer | wire.AnswerRift,
    ) -> None:
        await self._sessions.answer(username, message)

    async def _candidate(
        self, _connection: SignalingConnection, username: str, message: wire.Candidate
    ) -> None:
        await self._sessions.candidate(username, message)

    async def _bye(
        self, _connection: SignalingConnection, username: str, message: wire.Bye
    ) -> None:
        await self._sessions.bye(username, message)

    async def _ping(
        self, connection: SignalingConnection, _username: str, _message: wire.Ping
    ) -> None:
        connection.send(wire.Pong())

    async def _request_relay(
        self, connection: SignalingConnection, username: str, message: wire.RequestRelay
    ) -> None:
        target = message.target_username
        session = await self._sessions.granted_with(username, target, message.session_id)
        wanted = RelaySessionRequest(region=message.region, exclude_relays=message.exclude_relays)
        own = await self._session_leases.request(username, SessionKey(session.session_id), wanted)
        connection.send(credentials_message(own, with_username=target))

    # -- saying no --------------------------------------------------------------------------

    def _decode(self, frame: str | MessageError) -> wire.ClientMessage | MessageError:
        if isinstance(frame, MessageError):
            return frame
        try:
            return wire.decode_client_message(frame)
        except MessageError as error:
            return error

    def _say(self, connection: SignalingConnection, code: str, text: str) -> None:
        self._metrics.message_errors.labels(code).inc()
        self._note(connection, code)
        connection.send(_error(code, text))

    def _note(self, connection: SignalingConnection, code: str) -> None:
        """Tell the operator of a BIND that was refused, and of a limit that took hold."""
        if code in _OUR_FAULT:
            return
        if connection.username is None:
            self._refusals.note("bind_refused", connection.address, "/ws", code)
        elif code == ErrorCode.RATE_LIMITED:
            self._refusals.note(LIMITED, connection.address, connection.username, code)

    def _fail(self, connection: SignalingConnection, close_code: int, code: str, text: str) -> None:
        if connection.cause is None:
            self._note(connection, code)
            self._metrics.message_errors.labels(code).inc()
            connection.end(close_code, code, _error(code, text))

    def _fail_frame(self, connection: SignalingConnection, error: MessageError) -> None:
        too_big = error.code == ErrorCode.FRAME_TOO_LARGE
        self._fail(connection, CLOSE_TOO_BIG if too_big else CLOSE_ABUSE, error.code, str(error))


def _error(code: str, text: str) -> wire.Error:
    return wire.Error(code=code, message=quoted(text, current_request_id()))


async def _next_frame(connection: SignalingConnection) -> str | MessageError:
    while (message := await connection.receive()) is not None:
        if message.type is WSMsgType.TEXT:
            text: str = message.data
            return text
        if message.type is WSMsgType.BINARY:
            return MessageError(ErrorCode.INVALID_MESSAGE, "frames must be text")
        if message.type in {
            WSMsgType.CLOSE,
            WSMsgType.CLOSING,
            WSMsgType.CLOSED,
            WSMsgType.ERROR,
        }:
            break
    raise _Ended


async def _ignore(_connection: SignalingConnection, _username: str, _message: wire.Pong) -> None:
    """Answer nothing to PONG."""


async def _bound_twice(
    _connection: SignalingConnection, _username: str, _message: wire.Bind
) -> None:
    raise RefusedError(
        ErrorCode.INVALID_MESSAGE, "this connection is bound already; open another one"
    )


def _target(message: wire.Offer | wire.OfferRift) -> str:
    if message.target_username is None:
        raise RefusedError(ErrorCode.INVALID_MESSAGE, "target_username is missing")
    return message.target_username
