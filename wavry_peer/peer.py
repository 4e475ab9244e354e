"""A peer at a gateway: makes calls, answers calls, and hands out sessions.

Strategy: what we ask goes over HTTP, where each answer belongs to its question; what others do
comes over the signaling WebSocket.  A message that got lost because the WebSocket was just being
opened again is made up for: the caller asks for the state of its call now and then, the called
side asks for its lease if none came.

The other peer's key is checked three times: against the pin when signaling names it, in the
handshake by the channel, and it is pinned only after the other peer proved to hold it.
"""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any, Final, Self, Unpack

from wavry_peer.gateway.calls import AcceptPolicy, IncomingCall, PendingCalls, read_noise_key
from wavry_peer.gateway.client import GatewayClient, normalize_gateway_url
from wavry_peer.gateway.signaling import SignalingLink
from wavry_peer.home.identity import default_home, load_identity
from wavry_peer.home.known_peers import KnownPeers
from wavry_peer.home.logins import LoginStore
from wavry_peer.paths.environment import Environment
from wavry_peer.paths.terms import SessionTerms
from wavry_peer.protocol.constants import Role
from wavry_peer.protocol.errors import LocalError
from wavry_peer.protocol.http import signaling as s
from wavry_peer.protocol.http.api import Credentials
from wavry_peer.protocol.http.codes import ErrorCode

from .connection import Connection
from .errors import (
    GatewayAuthError,
    GatewayError,
    GatewayUnreachableError,
    PeerError,
    PeerKeyChangedError,
    PeerUnavailableError,
    SessionFailedError,
)
from .event_log import EventLog
from .listener import AcceptQueue, Listener
from .options import PeerKeywords, PeerOptions
from .session import Closable, Session

__all__ = ["Peer"]

_log = EventLog(__name__)

SETUP_TIMEOUT_S: Final = 30.0
"""As long as a relay waits for the second peer."""
POLL_S: Final = 3.0
"""A caller asks for the state of its call so often, in case the ANSWER got lost."""
LOGOUT_TIMEOUT_S: Final = 2.0
"""A gateway that is away must not hold up the end of a program; the login ends by itself."""
CREDENTIALS_PATIENCE_S: Final = 5.0
MAX_CALLS: Final = 16
"""Calls being set up, and sessions nobody has taken yet: more are refused, so that callers
cannot make us work without bound."""


class Peer:
    """One user at one gateway.

    ::

        async with Peer("https://gateway.example", credentials=("alice", password)) as peer:
            session = await peer.connect("bob")

    Args:
        gateway_url: ``https://HOST[:PORT]``.
        options: ``token``, ``credentials``, ``home`` …: see `PeerOptions`.

    Attributes:
        username: who we are, after `start`.
    """

    def __init__(self, gateway_url: str, **options: Unpack[PeerKeywords]) -> None:
        self.username = ""
        self._options = chosen = PeerOptions(**options)
        self._url = normalize_gateway_url(gateway_url, allow_http=chosen.allow_http)
        home = chosen.home or default_home()
        self._identity = chosen.identity or load_identity(home)
        self._known_peers = chosen.known_peers or KnownPeers.in_home(home)
        self._logins = LoginStore.in_home(home)
        self._rng = random.Random()
        self._gateway: GatewayClient | None = None
        self._logs_out = False
        self._link: SignalingLink | None = None
        self._link_error: GatewayError | None = None
        self._pending = PendingCalls()
        self._connections: dict[str, Connection] = {}
        self._setting_up: set[str] = set()
        self._queue: AcceptQueue | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Log in if need be, and open the signaling connection.

        Raises:
            GatewayAuthError: no login, or it is not valid.
            GatewayError, GatewayUnreachableError: see `wavry_peer.errors`.
        """
        options = self._options
        gateway = GatewayClient(self._url, token=options.token)
        try:
            if options.credentials is not None:
                await gateway.login(*options.credentials, temporary=True)
                gateway.credentials = options.credentials
                self._logs_out = True
            elif gateway.token is None:
                gateway.token = self._stored_token()
            link = SignalingLink(
                gateway,
                self._on_message,
                self._on_link_end,
                times=options.link_times,
                rng=self._rng,
            )
            self.username = await link.start()
        except BaseException:
            await self._leave(gateway)
            raise
        self._gateway, self._link = gateway, link

    async def connect(self, username: str, *, timeout_s: float = SETUP_TIMEOUT_S) -> Session:
        """Call a user and wait for the encrypted session.

        Args:
            username: whom to call.
            timeout_s: for the answer, and again for relay and handshake.

        Raises:
            PeerUnavailableError: offline, refused, or no answer.
            PeerKeyChangedError: the user's key is not the pinned one.
            SessionFailedError: no relay, or no handshake.
            GatewayError, GatewayUnreachableError: see `wavry_peer.errors`.
        """
        gateway = self._started()
        try:
            info = await gateway.call_user(username, self._identity)
        except GatewayError as error:
            if error.code == ErrorCode.USER_OFFLINE:
                raise PeerUnavailableError(f"{username} is not online; try again later") from error
            raise
        session_id = info.session_id
        try:
            noise_key = await self._wait_for_answer(session_id, username, timeout_s)
            self._known_peers.check(self._url, username, noise_key)
            try:
                credentials = await gateway.request_relay(session_id)
            except GatewayError as error:
                if error.status == 503:
                    text = f"the gateway has no relay for the session: {error}"
                    raise SessionFailedError(text) from error
                raise
            terms = SessionTerms(session_id, Role.CLIENT, self._identity, username, noise_key)
            return Session(await self._establish(terms, credentials, timeout_s), self._owner())
        except BaseException:
            await self._give_up(session_id)
            raise
        finally:
            self._pending.forget(session_id)

    def listen(self, *, accept: AcceptPolicy) -> Listener:
        """Take calls from now on.

        Args:
            accept: ``"all"``, user names, or a function of `IncomingCall`.

        Raises:
            LocalError: not started, or there is a listener already.
        """
        self._started()
        if self._open_queue() is not None:
            raise LocalError("there is a listener already: close it first")
        self._queue = AcceptQueue(accept)
        if self._link_error is not None:
            self._queue.put(self._link_error)
        return Listener(self.username, self._queue, self._owner())

    async def aclose(self) -> None:
        """End all sessions, calls and the connection; again it does nothing."""
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in tuple(self._connections.values()):
            await connection.aclose()
        if self._link is not None:
            await self._link.aclose()
        if self._gateway is not None:
            await self._leave(self._gateway)
        self._link = self._gateway = None
        if (queue := self._open_queue()) is not None:
            queue.put(LocalError("the listener was closed"))
        self._queue = None

    async def _leave(self, gateway: GatewayClient) -> None:
        """Close the client; a login that we made is not left behind."""
        try:
            if self._logs_out:
                self._logs_out = False
                gateway.credentials = None
                async with asyncio.timeout(LOGOUT_TIMEOUT_S):
                    await gateway.logout()
        except (GatewayError, GatewayUnreachableError, TimeoutError) as error:
            _log.info("not_logged_out", cause=type(error).__name__)
        finally:
            await gateway.aclose()

    # -- Setting up --------------------------------------------------------------------

    def _started(self) -> GatewayClient:
        if self._gateway is None:
            raise LocalError("the peer is not started: use `async with`, or call start()")
        return self._gateway

    def _open_queue(self) -> AcceptQueue | None:
        return None if self._queue is None or self._queue.is_closed else self._queue

    def _owner(self) -> Closable | None:
        """Return what ends with the session or listener that the application asked for."""
        return None

    def _stored_token(self) -> str:
        login = self._logins.get(self._url)
        if login is None:
            text = f"not logged in at {self._url}; run: wavry-peer login"
            raise GatewayAuthError("not_logged_in", text)
        return login.token

    async def _wait_for_answer(self, session_id: str, username: str, timeout_s: float) -> bytes:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._poll_for_answer(session_id, username)
        except TimeoutError as error:
            raise PeerUnavailableError(f"{username} did not answer the call") from error

    async def _poll_for_answer(self, session_id: str, username: str) -> bytes:
        future = self._pending.answer(session_id)
        while True:
            done, _ = await asyncio.wait({future}, timeout=POLL_S)
            if done:
                answer = future.result()
                if not answer.accept:
                    raise PeerUnavailableError(f"{username} refused the call")
                return read_noise_key(answer.noise_key)
            try:
                info = await self._started().session_info(session_id)
            except GatewayUnreachableError:
                continue
            if info.state == "closed":
                raise PeerUnavailableError(f"{username} refused the call")
            if info.state != "pending" and info.peer_noise_key is not None:
                return read_noise_key(info.peer_noise_key)

    async def _establish(
        self, terms: SessionTerms, credentials: Credentials, timeout_s: float
    ) -> Connection:
        environment = Environment(clock=self._options.clock)
        connection = Connection(terms, self._started(), environment)
        self._connections[terms.session_id] = connection
        try:
            await connection.establish(credentials, timeout_s)
            self._known_peers.pin(self._url, terms.remote_username, terms.remote_noise_key)
        except BaseException:
            del self._connections[terms.session_id]
            await connection.aclose()
            raise
        self._spawn(self._forget_when_closed(connection))
        return connection

    async def _forget_when_closed(self, connection: Connection) -> None:
        await connection.wait_closed()
        self._connections.pop(connection.terms.session_id, None)

    async def _give_up(self, session_id: str) -> None:
        try:
            async with asyncio.timeout(2.0):
                await self._started().close_session(session_id)
        except (GatewayError, GatewayUnreachableError, TimeoutError) as error:
            # What made us give up is the error to tell, not this one.
            _log.info("call_not_closed", cause=type(error).__name__)

    # -- Called ------------------------------------------------------------------------

    async def _take_call(self, queue: AcceptQueue, offer: s.Offer) -> None:
        session_id, username = offer.session_id or "", offer.from_username or ""
        try:
            connection = await self._answer_call(queue, session_id, username, offer.noise_key)
        except PeerKeyChangedError as error:
            _log.warning("call_refused", username=username, cause=str(error))
            await self._refuse(session_id, username)
        except PeerError as error:
            _log.info("call_failed", username=username, cause=str(error))
            await self._refuse(session_id, username)
        else:
            if connection is not None:
                queue.put(Session(connection))
        finally:
            self._setting_up.discard(session_id)
            self._pending.forget(session_id)

    async def _answer_call(
        self, queue: AcceptQueue, session_id: str, username: str, noise_key_text: str | None
    ) -> Connection | None:
        noise_key = read_noise_key(noise_key_text)
        self._known_peers.check(self._url, username, noise_key)
        if not await queue.wants(IncomingCall(session_id, username, noise_key)):
            await self._refuse(session_id, username)
            return None
        gateway = self._started()
        future = self._pending.credentials(session_id)
        await gateway.accept_call(session_id, self._identity)
        done, _ = await asyncio.wait({future}, timeout=CREDENTIALS_PATIENCE_S)
        if not done:
            # The caller is slow, or the message got lost with the connection.
            credentials = await gateway.request_relay(session_id)
        else:
            credentials = self._pending.credentials(session_id).result()
        terms = SessionTerms(session_id, Role.SERVER, self._identity, username, noise_key)
        return await self._establish(terms, credentials, SETUP_TIMEOUT_S)

    async def _refuse(self, session_id: str, username: str) -> None:
        refusal = s.Answer(target_username=username, session_id=session_id, accept=False)
        if self._link is not None:
            await self._link.send(refusal)

    # -- News --------------------------------------------------------------------------

    def _on_message(self, message: s.ServerMessage) -> None:
        match message:
            case s.Offer():
                self._on_offer(message)
            case s.Answer() if message.session_id:
                self._pending.put_answer(message.session_id, message)
            case s.RelayCredentials():
                self._on_credentials(message)
            case s.Bye():
                self._on_bye(message)
            case s.Error():
                _log.info("gateway_error", code=message.code, text=message.message)
            case _:
                _log.info("signaling_ignored", kind=type(message).__name__)

    def _on_offer(self, offer: s.Offer) -> None:
        session_id, username = offer.session_id, offer.from_username
        if not session_id or not username or session_id in self._connections:
            return
        if session_id in self._setting_up:
            return
        queue = self._open_queue()
        if queue is None or len(self._setting_up) + queue.waiting >= MAX_CALLS:
            self._spawn(self._refuse(session_id, username))
            return
        self._setting_up.add(session_id)
        self._spawn(self._take_call(queue, offer))

    def _on_credentials(self, message: s.RelayCredentials) -> None:
        session_id = message.session_id
        connection = self._connections.get(session_id)
        credentials = Credentials(
            session_id=session_id,
            relay_id=message.relay_id,
            token=message.token,
            addr=message.addr,
            addrs=message.addrs,
            role="client" if message.role == "client" else "server",
            expires_at=message.expires_at,
        )
        if connection is None:
            self._pending.put_credentials(session_id, credentials)
            return
        try:
            connection.adopt(credentials)
        except PeerError as error:
            _log.warning("credentials_unusable", cause=str(error))

    def _on_bye(self, bye: s.Bye) -> None:
        if bye.session_id is not None:
            if connection := self._connections.get(bye.session_id):
                connection.end_soon(by_remote=bye.from_username is not None)
            else:
                self._pending.put_bye(bye.session_id)
            return
        for connection in self._connections.values():
            if connection.terms.remote_username == bye.from_username:
                connection.end_soon()

    def _on_link_end(self, error: GatewayError) -> None:
        # Sessions go on: their leases are renewed over HTTP.  Only new calls cannot come.
        self._link_error = error
        if (queue := self._open_queue()) is not None:
            queue.put(error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        # What an accept function or a damaged file raised belongs to the application.
        queue = self._open_queue()
        if queue is not None and isinstance(error, Exception):
            queue.put(error)
        else:
            _log.error("call_crashed", error)
