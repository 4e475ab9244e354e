"""NAT rebinding (protocol.md section 3) through a real NAT, in network namespaces.

A media-shaped session between a peer behind a NAT and one beside the relay, both real; the NAT
forgets its mapping in mid-stream and makes another.  What is measured on each side is the longest
gap between two datagrams beyond their normal spacing.

Towards the relay the gap cannot be under one round trip (challenge and proof).  Towards the peer
it cannot be under two: half a one before the relay can know, one for the proof, half a one for
the next datagram.  With a round trip of 40 ms both are within 1 round trip + 50 ms.
"""

import asyncio
import contextlib
import itertools
import random
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import namespaces_support as net_support
import pytest
from namespaces_support import RELAY_V4, RELAY_V6, InNamespace, Internet, Namespace, udp_packet
from relay_support import Mint, RelayProcess, UdpPeer, wait_until

from wavry_peer.errors import GatewayUnreachableError
from wavry_peer.identity import Identity
from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets
from wavry_peer.protocol.api import Credentials
from wavry_peer.session import Session

REASON = net_support.missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

ROUND_TRIP_S = 0.040
SPACING_S = 0.005
ALLOWED_S = ROUND_TRIP_S + 0.050
TRIES = 3
"""Two busy cores can hold any process for longer than what is measured: the best of so many
moves counts."""
SETTLED_S = 1.2
"""Watched after a move; more than any gap that is judged here."""


class CoreRelay(RelayProcess):
    """A relay in the middle of the network."""

    def __init__(self, net: Internet, directory: Path, mint: Mint, **environ: str) -> None:
        super().__init__(directory, mint, **environ)
        self._core = net.core

    def launch(self) -> None:
        with self._core.entered():
            super().launch()

    def get(self, path: str) -> tuple[int, bytes]:
        with self._core.entered():
            return super().get(path)

    def address(self, family: int) -> str:
        return next(text for text in self.udp if text.startswith("[") == (family == 6))


class Broker:
    """Gives nothing and remembers who asked: a NAT rebind needs no lease."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def renew(self, session_id: str, jti: str) -> Credentials:
        self.asked.append("renew")
        raise GatewayUnreachableError("there is no gateway")

    async def request_relay(self, session_id: str, exclude: tuple[str, ...] = ()) -> Credentials:
        self.asked.append("request_relay")
        raise GatewayUnreachableError("there is no gateway")

    async def close_session(self, session_id: str) -> None:
        pass


class MediaPeer:
    """One real peer in a namespace; sends numbered datagrams and notes when others came."""

    def __init__(self, namespace: Namespace) -> None:
        self.place = InNamespace(namespace)
        self.identity = Identity.generate()
        self.broker = Broker()
        self.sent: list[float] = []
        """When each number was sent."""
        self.received: list[tuple[float, int]] = []
        self.spacing_s: float | None = SPACING_S
        self.session: Session
        self._tasks: list[asyncio.Task[None]] = []

    async def establish(self, other: "MediaPeer", role: c.Role, credentials: Credentials) -> None:
        self.session = Session(
            session_id=credentials.session_id,
            role=role,
            identity=self.identity,
            remote_username="other",
            remote_noise_key=other.identity.noise.public,
            broker=self.broker,
        )
        await self.session.establish(credentials, 20)

    async def begin(self) -> None:
        self._tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._receive())]

    async def _send(self) -> None:
        due = time.monotonic()
        while True:
            if self.spacing_s is None:
                await asyncio.sleep(SPACING_S)
                due = time.monotonic()
                continue
            number = len(self.sent)
            self.sent.append(time.monotonic())
            await self.session.send(number.to_bytes(8, "big") + bytes(400))
            due += self.spacing_s
            await asyncio.sleep(max(due - time.monotonic(), 0))

    async def _receive(self) -> None:
        async for datagram in self.session:
            self.received.append((time.monotonic(), int.from_bytes(datagram[:8], "big")))

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.session.aclose()

    def close(self) -> None:
        if hasattr(self, "session"):
            self.place.run(self._end())
        self.place.close()

    def longest_gap_s(self, since: float) -> float:
        """Beyond the normal spacing, from the last datagram before `since` on."""
        times = [when for when, _ in self.received]
        first = max((at for at, when in enumerate(times) if when < since), default=0)
        gaps = (after - before for before, after in itertools.pairwise(times[first:]))
        return max(gaps, default=0.0) - SPACING_S


class Media:
    """A session of two `MediaPeer` with traffic both ways: `home` behind the NAT, `beside`."""

    def __init__(self, net: Internet, relay: CoreRelay, mint: Mint, family: int) -> None:
        self.net, self.relay = net, relay
        self.sid = uuid.uuid4()
        self.home, self.beside = MediaPeer(net.home), MediaPeer(net.beside)
        addr = relay.address(family)
        roles = {c.Role.CLIENT: self.home, c.Role.SERVER: self.beside}
        self.tokens = {
            role: mint.token(
                self.sid, role, relay.relay_id, key=peer.identity.signing,
                sub=f"{self.sid}-{role}",
            )
            for role, peer in roles.items()
        }  # fmt: skip
        credentials = {
            role: Credentials(
                session_id=str(self.sid),
                relay_id=relay.relay_id,
                token=token.decode(),
                addr=addr,
                role=c.ROLE_NAMES[role],  # type: ignore[arg-type]
                expires_at=int(time.time()) + 300,
            )
            for role, token in self.tokens.items()
        }
        work = [
            asyncio.run_coroutine_threadsafe(
                peer.establish(other, role, credentials[role]), peer.place._loop
            )
            for (role, peer), other in zip(
                roles.items(), (self.beside, self.home), strict=True
            )
        ]
        for one in work:
            one.result(30)
        for peer in roles.values():
            peer.place.run(peer.begin())
        wait_until(lambda: len(self.home.received) > 50 and len(self.beside.received) > 50)

    def move(self, *, address: bool) -> tuple[float, float]:
        """Changes the NAT's mapping in mid-stream.

        Returns:
            Interruption towards the relay and towards the peer behind the NAT, in seconds.
        """
        since = time.monotonic()
        self.net.change_mapping(address=address)
        time.sleep(SETTLED_S)
        return self.beside.longest_gap_s(since), self.home.longest_gap_s(since)

    def close(self) -> None:
        for peer in (self.home, self.beside):
            peer.close()


@pytest.fixture(scope="module")
def net() -> Iterator[Internet]:
    with Internet(round_trip_s=ROUND_TRIP_S) as made:
        yield made


@pytest.fixture(scope="module")
def mint() -> Mint:
    return Mint()


@pytest.fixture(scope="module", params=["reference", "native"])
def relay(
    request: pytest.FixtureRequest,
    net: Internet,
    mint: Mint,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[CoreRelay]:
    with CoreRelay(
        net,
        tmp_path_factory.mktemp("relay"),
        mint,
        WAVRY_RELAY_LISTEN=f"{RELAY_V4}:0,[{RELAY_V6}]:0",
        WAVRY_RELAY_ALLOW_PUBLIC_BIND="1",
        WAVRY_RELAY_ENGINE=request.param,
    ) as started:
        yield started


OpenMedia = Callable[..., Media]


@pytest.fixture
def open_media(net: Internet, relay: CoreRelay, mint: Mint) -> Iterator[OpenMedia]:
    with contextlib.ExitStack() as stack:

        def open_it(family: int = 4) -> Media:
            media = Media(net, relay, mint, family)
            stack.callback(media.close)
            return media

        yield open_it


def rebinds(relay: CoreRelay) -> float:
    return relay.metric("wavry_relay_nat_rebinds_total")


@pytest.mark.parametrize("address", [False, True], ids=["port", "address"])
@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
def test_nat_rebinding_interrupts_for_one_round_trip_and_50_ms_at_most(
    relay: CoreRelay, open_media: OpenMedia, family: int, address: bool
) -> None:
    media = open_media(family)
    gaps: list[tuple[float, float]] = []
    before = rebinds(relay)
    for number in range(1, TRIES + 1):
        gaps.append(media.move(address=address))
        assert rebinds(relay) == before + number, "one for each move"
        if max(gaps[-1]) <= ALLOWED_S:
            break
    print(f"\ninterruption up, down [ms]: {[[round(s * 1e3, 1) for s in gap] for gap in gaps]}")
    assert min(max(gap) for gap in gaps) <= ALLOWED_S
    for peer in (media.home, media.beside):
        statistics = peer.session.statistics()
        assert statistics.handshakes == 1, "the same channel"
        assert statistics.path_changes == 0
        assert peer.broker.asked == [], "no new lease"
        goal = len(peer.received) + 50
        wait_until(lambda peer=peer, goal=goal: len(peer.received) >= goal, what="more media")
