"""Sessions of real peers between two places, watched while something happens to the system."""

import asyncio
import contextlib
import functools
import itertools
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import wavry_peer
from support.machines.namespaces import InNamespace, Namespace
from support.waiting import wait_until
from wavry_peer.gateway.client import GatewayClient
from wavry_peer.gateway.signaling import LinkTimes
from wavry_peer.paths.relay_events import PathLimits

SPACING_S = 0.05
SETUP_TIMEOUT_S = 20.0
SILENCE_NS = 6_000_000_000
"""A path so long silent is asked whether it lives; 25 s in service, but a test has no time."""


class End:
    """One side of a session: sends numbered datagrams and notes when others came."""

    def __init__(self, session: wavry_peer.Session) -> None:
        self.session = session
        self.received_s: list[float] = []
        self._tasks = [asyncio.create_task(work) for work in (self._send(), self._receive())]

    async def _send(self) -> None:
        with contextlib.suppress(wavry_peer.SessionClosedError):
            for number in itertools.count():
                await self.session.send(number.to_bytes(8, "big") + bytes(100))
                await asyncio.sleep(SPACING_S)

    async def _receive(self) -> None:
        async for _ in self.session:
            self.received_s.append(time.monotonic())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.session.aclose()


class Live:
    """A session with traffic both ways; `ends` are the caller's and the called side's."""

    def __init__(self, ends: tuple[End, End]) -> None:
        self.ends = ends

    @property
    def path(self) -> str:
        """``relay rly-…``, as the caller sees it."""
        return self.ends[0].session.statistics().path

    def goes_on(self, *, timeout_s: float = 30.0) -> None:
        """Both sides receive what was sent from now on, over the channel they began with."""
        since_s = time.monotonic() + 0.2

        def is_well() -> bool:
            return all(end.received_s and end.received_s[-1] > since_s for end in self.ends)

        wait_until(is_well, timeout_s=timeout_s, what=f"a session on {self.path} goes on")
        assert [end.session.statistics().handshakes for end in self.ends] == [1, 1]

    def stands_still(self, *, for_s: float) -> bool:
        """Whether nothing came to a side for so long."""
        now_s = time.monotonic()
        return any(now_s - max(end.received_s, default=0) > for_s for end in self.ends)

    def longest_gap_s(self, since_s: float) -> float:
        """Between two datagrams of the same direction, since then and up to now."""
        worst = 0.0
        for end in self.ends:
            times = [since_s, *(at for at in end.received_s if at > since_s), time.monotonic()]
            worst = max(worst, *(b - a for a, b in itertools.pairwise(times)))
        return worst


class Users:
    """Alice calls, Bob takes every call.

    Args:
        gateway_url: as both reach it.
        alice: where Alice is.
        bob: where Bob is.
        directory: for their keys.
    """

    def __init__(self, gateway_url: str, alice: Namespace, bob: Namespace, directory: Path) -> None:
        self._url, self._directory = gateway_url, directory
        self._alice_place, self._bob_place = InNamespace(alice), InNamespace(bob)
        self._peers: dict[str, wavry_peer.Peer] = {}
        self.lives: list[Live] = []
        self._patch = pytest.MonkeyPatch()
        impatient = functools.partial(PathLimits, silence_ns=SILENCE_NS)
        self._patch.setattr("wavry_peer.connection.PathLimits", impatient)
        self._bob_place.run(self._join("bob"))
        self._alice_place.run(self._join("alice"))
        self._listener: Any = self._bob_place.run(self._listen())

    async def _join(self, name: str) -> None:
        credentials = (name, secrets.token_urlsafe(16))
        async with GatewayClient(self._url) as gateway:
            await gateway.register(*credentials)
        peer = wavry_peer.Peer(
            self._url, credentials=credentials, home=self._directory / name, allow_http=True,
            link_times=LinkTimes(backoff_max_s=2.0),
        )  # fmt: skip
        await peer.start()
        self._peers[name] = peer

    async def _listen(self) -> Any:
        return self._peers["bob"].listen(accept="all")

    async def _call(self) -> End:
        return End(await self._peers["alice"].connect("bob", timeout_s=SETUP_TIMEOUT_S))

    async def _take(self) -> End:
        async with asyncio.timeout(SETUP_TIMEOUT_S):
            return End(await self._listener.accept())

    def call(self) -> Live:
        """A new session with traffic; raises what the caller gets."""
        alice = self._alice_place.run(self._call(), 3 * SETUP_TIMEOUT_S)
        live = Live((alice, self._bob_place.run(self._take(), 3 * SETUP_TIMEOUT_S)))
        self.lives.append(live)
        return live

    def hang_up(self, live: Live) -> None:
        self.lives.remove(live)
        self._alice_place.run(live.ends[0].close(), 30)
        self._bob_place.run(live.ends[1].close(), 30)

    @contextlib.contextmanager
    def calling(self, count: int = 1) -> Iterator[list[Live]]:
        """So many sessions for the length of a block."""
        made = [self.call() for _ in range(count)]
        try:
            for live in made:
                live.goes_on()
            yield made
        finally:
            for live in made:
                self.hang_up(live)

    def calls_work(self, timeout_s: float = 40.0) -> None:
        """A new call gets through; again and again until then, as people do."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                with self.calling():
                    return
            except wavry_peer.PeerError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.3)

    def calls_fail(self) -> bool:
        """Whether a new call does not get through."""
        try:
            with self.calling():
                return False
        except wavry_peer.PeerError:
            return True

    async def _leave(self, name: str) -> None:
        await self._peers[name].aclose()

    def close(self) -> None:
        for live in list(self.lives):
            self.hang_up(live)
        self._alice_place.run(self._leave("alice"))
        self._bob_place.run(self._leave("bob"))
        self._patch.undo()
        for place in (self._alice_place, self._bob_place):
            place.close()
