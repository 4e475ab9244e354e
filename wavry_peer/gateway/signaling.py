"""The signaling WebSocket: bound, kept alive, and opened again for as long as it is wanted.

Strategy: one task owns the connection.  A lost connection is opened again after a jittered,
growing wait; a connection that says nothing (not even PONG) is taken for lost.  Two answers are
final: the token is not valid any more, and another process of the same user took our place
(fighting for it would only throw out each other for ever).
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import aiohttp

from wavry_peer.errors import GatewayAuthError, GatewayError, GatewayUnreachableError
from wavry_peer.event_log import EventLog
from wavry_peer.protocol.errors import MessageError
from wavry_peer.protocol.http import signaling as s
from wavry_peer.protocol.http.codes import ErrorCode

from .client import GatewayClient

__all__ = ["LinkTimes", "SignalingLink"]

_log = EventLog(__name__)

CLOSE_INVALID_TOKEN: Final = 4401
CLOSE_DISPLACED: Final = 4409
_FINAL_CODES: Final = {
    CLOSE_INVALID_TOKEN: ErrorCode.INVALID_TOKEN,
    CLOSE_DISPLACED: ErrorCode.DISPLACED,
}


@dataclass(frozen=True, slots=True)
class LinkTimes:
    """Times of a signaling link, in seconds.

    Attributes:
        bind_timeout_s: for BOUND after the connection is open.
        ping_interval_s: between PINGs; less than the idle time of proxies (60 s).
        silence_s: without any frame for so long, the connection is lost.
        backoff_initial_s: first wait before connecting again.
        backoff_max_s: cap of the doubling wait.
    """

    bind_timeout_s: float = 10.0
    ping_interval_s: float = 20.0
    silence_s: float = 45.0
    backoff_initial_s: float = 0.5
    backoff_max_s: float = 30.0


class SignalingLink:
    """Our connection for news from the gateway.

    Args:
        gateway: where to connect, with a token.
        on_message: called in the loop for each message that is not about the link itself.
        on_end: called once if the link ends for good, with the reason.
        times: how long to wait for what.
        rng: for the jitter.

    Attributes:
        username: who we are, once bound.
        bound_count: how often we were bound; more than once after reconnects.
        bad_frames: frames of the gateway that did not fit, which were ignored.
    """

    def __init__(
        self,
        gateway: GatewayClient,
        on_message: Callable[[s.ServerMessage], None],
        on_end: Callable[[GatewayError], None],
        *,
        times: LinkTimes | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.username: str | None = None
        self.bound_count = 0
        self.bad_frames = 0
        self._gateway = gateway
        self._on_message = on_message
        self._on_end = on_end
        self._times = times or LinkTimes()
        self._rng = rng or random.Random()
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_bound(self) -> bool:
        """True while there is a bound connection."""
        return self._socket is not None and not self._socket.closed

    async def start(self) -> str:
        """Connect and bind; from then on the link reconnects by itself.

        Returns:
            The user name that the token belongs to.

        Raises:
            GatewayAuthError: the token is not valid.
            GatewayError: the gateway refused in another way.
            GatewayUnreachableError: no connection, or no answer to BIND.
        """
        socket, username = await self._connect()
        self._task = asyncio.create_task(self._run(socket), name="wavry-signaling")
        return username

    async def send(self, message: s.Message) -> bool:
        """Send a message if there is a connection; False if not."""
        socket = self._socket
        if socket is None or socket.closed:
            return False
        try:
            await socket.send_str(s.encode_message(message))
        except (aiohttp.ClientError, ConnectionError):
            return False
        return True

    async def aclose(self) -> None:
        """End the link; again it does nothing."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    # -- Connection --------------------------------------------------------------------

    async def _connect(self) -> tuple[aiohttp.ClientWebSocketResponse, str]:
        socket = await self._gateway.open_websocket()
        try:
            await socket.send_str(s.encode_message(s.Bind(token=self._gateway.token or "none")))
            async with asyncio.timeout(self._times.bind_timeout_s):
                username = await self._wait_for_bound(socket)
        except TimeoutError as error:
            await socket.close()
            raise GatewayUnreachableError("the gateway did not answer our BIND in time") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            await socket.close()
            raise GatewayUnreachableError("the connection broke during BIND") from error
        except BaseException:
            await socket.close()
            raise
        self.username = username
        self.bound_count += 1
        self._socket = socket
        return socket, username

    async def _wait_for_bound(self, socket: aiohttp.ClientWebSocketResponse) -> str:
        refusal: GatewayError | None = None
        while (message := await self._next(socket)) is not None:
            match message:
                case s.Bound():
                    return message.username
                case s.Error():
                    refusal = _error_of(message)
                    if isinstance(refusal, GatewayAuthError):
                        raise refusal
        # What was said is more than the code that the connection was closed with.
        error = refusal or self._final_error(socket)
        raise error or GatewayUnreachableError("the gateway closed the connection during BIND")

    async def _run(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        wait_s = self._times.backoff_initial_s
        try:
            while True:
                final = await self._serve(socket)
                if final is not None and not self._may_log_in_again(final):
                    self._end(final)
                    return
                while True:
                    await asyncio.sleep(wait_s * (0.5 + 0.5 * self._rng.random()))
                    wait_s = min(wait_s * 2, self._times.backoff_max_s)
                    try:
                        socket, _ = await self._connect()
                    except GatewayAuthError as error:
                        if (ended := await self._log_in_again(error)) is not None:
                            self._end(ended)
                            return
                        continue
                    except (GatewayUnreachableError, GatewayError) as error:
                        _log.info("signaling_reconnect_failed", cause=str(error))
                        continue
                    wait_s = self._times.backoff_initial_s
                    break
        finally:
            if self._socket is not None:
                await self._socket.close()
                self._socket = None

    def _may_log_in_again(self, error: GatewayError) -> bool:
        return error.code == ErrorCode.INVALID_TOKEN and self._gateway.credentials is not None

    async def _log_in_again(self, error: GatewayAuthError) -> GatewayError | None:
        """Make a new login where we hold the password; return why the link is over for good."""
        if not self._may_log_in_again(error):
            return error
        try:
            await self._gateway.log_in_again(self._gateway.token)
        except GatewayAuthError as refused:
            return refused
        except GatewayError as refused:
            if refused.code == ErrorCode.BANNED:
                return refused
            _log.info("login_failed", cause=str(refused))  # A limit or a lockdown: later.
        except GatewayUnreachableError as refused:
            _log.info("login_failed", cause=str(refused))
        return None

    async def _serve(self, socket: aiohttp.ClientWebSocketResponse) -> GatewayError | None:
        """Read until the connection is lost; return the reason if that is final."""
        pings = asyncio.create_task(self._ping(socket), name="wavry-signaling-ping")
        displaced: GatewayError | None = None
        try:
            while (message := await self._next(socket)) is not None:
                if isinstance(message, s.Error):
                    error = _error_of(message)
                    if error.code in _FINAL_CODES.values() or error.code == ErrorCode.BANNED:
                        displaced = error
                        break
                if not isinstance(message, s.Bound | s.Pong | s.Ping):
                    self._on_message(message)
        finally:
            pings.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pings
            await socket.close()
        return displaced or self._final_error(socket)

    async def _next(self, socket: aiohttp.ClientWebSocketResponse) -> s.ServerMessage | None:
        """Wait for the next message that we understand; None when the connection is lost."""
        while True:
            try:
                async with asyncio.timeout(self._times.silence_s):
                    frame = await socket.receive()
            except TimeoutError:
                _log.info("signaling_silent", seconds=self._times.silence_s)
                return None
            if frame.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                return None
            try:
                return s.decode_server_message(frame.data)
            except MessageError as error:
                # A later gateway may say more than we understand.
                self.bad_frames += 1
                _log.info("signaling_frame_ignored", cause=error.code)

    async def _ping(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            await asyncio.sleep(self._times.ping_interval_s * (0.9 + 0.2 * self._rng.random()))
            try:
                await socket.send_str(s.encode_message(s.Ping()))
            except (aiohttp.ClientError, ConnectionError):
                return  # the reader sees the end of the connection too.

    def _final_error(self, socket: aiohttp.ClientWebSocketResponse) -> GatewayError | None:
        code = _FINAL_CODES.get(socket.close_code or 0)
        return None if code is None else _error_of(s.Error(code=code, message=""))

    def _end(self, error: GatewayError) -> None:
        _log.info("signaling_ended", cause=error.code)
        self._on_end(error)


def _error_of(message: s.Error) -> GatewayError:
    if message.code == ErrorCode.DISPLACED:
        text = "another connection of the same user took the place of this one"
        return GatewayError(ErrorCode.DISPLACED, text)
    if message.code == ErrorCode.INVALID_TOKEN:
        return GatewayAuthError(
            ErrorCode.INVALID_TOKEN, "the login has ended; run: wavry-peer login"
        )
    return GatewayError(message.code, message.message)
