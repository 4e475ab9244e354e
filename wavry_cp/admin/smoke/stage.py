"""What the steps share: the two accounts, their log-ins, and connections made of them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self, TypeVar

import wavry_peer
from wavry_cp.admin.endpoints import ServiceEndpoints
from wavry_peer.errors import GatewayAuthError, GatewayError
from wavry_peer.gateway.client import GatewayClient
from wavry_peer.gateway.signaling import SignalingLink
from wavry_peer.home.identity import Identity
from wavry_peer.protocol.http import signaling as wire

from .accounts import SmokeAccount
from .report import StepFailedError

__all__ = ["Line", "Pair", "SmokeContext", "relay_of"]

NEWS_TIMEOUT_S: Final = 5.0
"""How long a message over the WebSocket may take; it is a few milliseconds where all is well."""
SETUP_TIMEOUT_S: Final = 15.0
MOVE_TIMEOUT_S: Final = 15.0
MOVE_AGAIN_S: Final = 3.0
POLL_S: Final = 0.05
MAX_EXCLUDED: Final = 32
"""As many relays as a request may exclude."""

News = TypeVar("News", bound=wire.ServerMessage)


class Line:
    """One user's connections to the gateway: HTTP with a log-in, and the WebSocket.

    Attributes:
        username: who.
        gateway: HTTP calls with the user's token.
        identity: keys made for this line.
    """

    def __init__(self, gateway: GatewayClient, username: str) -> None:
        self.username = username
        self.gateway = gateway
        self.identity = Identity.generate()
        self._news: asyncio.Queue[wire.ServerMessage] = asyncio.Queue()
        self._ended: GatewayError | None = None
        self.link = SignalingLink(gateway, self._news.put_nowait, self._end)

    async def expect(self, kind: type[News], session_id: str) -> News:
        """Return the next message of a kind about a session; others are passed over.

        Raises:
            StepFailedError: it does not come.
        """
        try:
            async with asyncio.timeout(NEWS_TIMEOUT_S):
                while True:
                    message = await self._news.get()
                    about = getattr(message, "session_id", None)
                    if isinstance(message, kind) and about == session_id:
                        return message
        except TimeoutError:
            name = kind.__struct_config__.tag
            why = f" ({self._ended.code})" if self._ended else ""
            raise StepFailedError(
                f"{name} did not reach {self.username} over its WebSocket within "
                f"{NEWS_TIMEOUT_S:g} s{why}",
                "look at the gateway's log; does a proxy before it cut WebSockets?",
            ) from None

    def _end(self, error: GatewayError) -> None:
        self._ended = error


@dataclass(slots=True)
class Pair:
    """Two peers with a session between them.

    Attributes:
        caller: the peer that called.
        callee: the called one.
        listener: takes further calls of the caller.
        session: the caller's end.
        other: the called user's end.
    """

    caller: wavry_peer.Peer
    callee: wavry_peer.Peer
    listener: wavry_peer.Listener
    session: wavry_peer.Session
    other: wavry_peer.Session

    @classmethod
    async def open(cls, caller: wavry_peer.Peer, callee: wavry_peer.Peer) -> Self:
        """Call and answer once.

        Raises:
            PeerError: no session.
        """
        listener = callee.listen(accept={caller.username})
        session, other = await _connected(caller, callee, listener)
        return cls(caller, callee, listener, session, other)

    async def another(self) -> tuple[wavry_peer.Session, wavry_peer.Session]:
        """Open a further session between the same two; the caller closes both ends.

        Raises:
            PeerError: no session.
        """
        return await _connected(self.caller, self.callee, self.listener)

    def relays(self) -> tuple[str, str]:
        """Return the ids of the relays that the two ends use."""
        return relay_of(self.session), relay_of(self.other)


async def _connected(
    caller: wavry_peer.Peer, callee: wavry_peer.Peer, listener: wavry_peer.Listener
) -> tuple[wavry_peer.Session, wavry_peer.Session]:
    taking = asyncio.create_task(listener.accept())
    try:
        session = await caller.connect(callee.username, timeout_s=SETUP_TIMEOUT_S)
        async with asyncio.timeout(SETUP_TIMEOUT_S):
            return session, await taking
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)


def relay_of(session: wavry_peer.Session) -> str:
    """Return the id of the relay that carries a session, or ``none``."""
    return session.statistics().path.split()[-1]


@dataclass(slots=True)
class SmokeContext:
    """One run against one system.

    Attributes:
        gateway_url: normalized.
        endpoints: where the other services are, and the admin token.
        accounts: caller and called user.
        accounts_may_exist: they come from a file, so they may have been registered before.
        home: directory of this run for the peers' files.
        datagrams: how many each side sends in the relay step.
        drain_relay: the relay to drain, or None for the one that carries the session.
        doing: what is under way, for the message of a time-out.
    """

    gateway_url: str
    endpoints: ServiceEndpoints
    accounts: tuple[SmokeAccount, SmokeAccount]
    accounts_may_exist: bool
    home: Path
    datagrams: int = 200
    drain_relay: str | None = None
    doing: str = "starting"
    registered: int = 0
    _tokens: dict[str, str] = field(default_factory=dict)

    async def register(self) -> None:
        """Make sure that both accounts exist.

        Raises:
            GatewayError, GatewayUnreachableError: they do not.
        """
        for account in self.accounts:
            if account.username in self._tokens:
                continue
            self.doing = f"registering {account.username}"
            async with GatewayClient(self.gateway_url) as gateway:
                if self.accounts_may_exist:
                    with contextlib.suppress(GatewayAuthError):
                        await gateway.login(account.username, account.password)
                        self._tokens[account.username] = gateway.token or ""
                        continue
                await gateway.register(account.username, account.password)
                self.registered += 1
                await gateway.login(account.username, account.password)
                self._tokens[account.username] = gateway.token or ""

    def clients(self) -> tuple[GatewayClient, GatewayClient]:
        """Return HTTP clients with the two log-ins; the caller closes them; after `register`."""
        first, second = (
            GatewayClient(self.gateway_url, token=self._tokens[account.username])
            for account in self.accounts
        )
        return first, second

    @contextlib.asynccontextmanager
    async def lines(self) -> AsyncIterator[tuple[Line, Line]]:
        """Give both users, bound to their WebSockets.

        Raises:
            GatewayError, GatewayUnreachableError: one of them cannot.
        """
        await self.register()
        async with contextlib.AsyncExitStack() as stack:
            lines = []
            for account, gateway in zip(self.accounts, self.clients(), strict=True):
                await stack.enter_async_context(gateway)
                line = Line(gateway, account.username)
                self.doing = f"opening the WebSocket of {account.username}"
                stack.push_async_callback(line.link.aclose)
                await line.link.start()
                lines.append(line)
            yield lines[0], lines[1]

    @contextlib.asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        """Give two peers and a session between them.

        Raises:
            PeerError: no session.
        """
        await self.register()
        async with contextlib.AsyncExitStack() as stack:
            self.doing = "setting up a session between two peers"
            peers = [
                await stack.enter_async_context(
                    wavry_peer.Peer(
                        self.gateway_url,
                        token=self._tokens[account.username],
                        home=self.home / account.username,
                        # The passwords are this test's own, and so are the sessions.
                        allow_http=True,
                    )
                )
                for account in self.accounts
            ]
            yield await Pair.open(*peers)

    async def move(
        self, session: wavry_peer.Session, other: wavry_peer.Session, relay_id: str, known: set[str]
    ) -> None:
        """Move a session to one relay.

        Args:
            session: the caller's end.
            other: the called user's end; its lease comes over its WebSocket.
            relay_id: where to.
            known: ids of all relays.

        Raises:
            StepFailedError: the master gives another relay, or the ends do not get there.
            GatewayError, GatewayUnreachableError: no lease.
        """
        self.doing = f"moving a session to relay {relay_id}"
        exclude = tuple(sorted(known - {relay_id}))[:MAX_EXCLUDED]
        deadline_s = time.monotonic() + MOVE_TIMEOUT_S
        while time.monotonic() < deadline_s:
            await self._ask_for(session, relay_id, exclude)
            # Peers tell the newer of two leases by its second: one of the same second may lose.
            again_s = time.monotonic() + MOVE_AGAIN_S
            while time.monotonic() < again_s:
                if (relay_of(session), relay_of(other)) == (relay_id, relay_id):
                    return
                await asyncio.sleep(POLL_S)
        raise StepFailedError(
            f"a session that was given to relay {relay_id} is at {relay_of(session)} and "
            f"{relay_of(other)} after {MOVE_TIMEOUT_S:g} s"
        )

    async def _ask_for(
        self, session: wavry_peer.Session, relay_id: str, exclude: tuple[str, ...]
    ) -> None:
        caller, callee = self.clients()
        async with caller, callee:
            credentials = await caller.request_relay(session.session_id, exclude)
        if credentials.relay_id != relay_id:
            raise StepFailedError(
                f"the master gives relay {credentials.relay_id} for a session that asked for "
                f"{relay_id}",
                f"`wavryctl relays list`: is {relay_id} ACTIVE, and does it hold the active key?",
            )
        # No application gives a session its lease, so there is no public way.
        session._connection.adopt(credentials)  # noqa: SLF001 - see above.

    async def leave(self) -> None:
        """Delete the accounts that were made for this run, log out of those of a file."""
        for account in self.accounts:
            token = self._tokens.pop(account.username, None)
            if token is None:
                continue
            with contextlib.suppress(wavry_peer.PeerError, TimeoutError):
                async with (
                    asyncio.timeout(2.0),
                    GatewayClient(self.gateway_url, token=token) as gateway,
                ):
                    if self.accounts_may_exist:
                        await gateway.logout()
                    else:
                        await gateway.delete_account(account.password)
