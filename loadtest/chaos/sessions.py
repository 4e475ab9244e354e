"""Who must not notice: pairs of real peers with media both ways, for as long as the run lasts."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

import wavry_peer
from loadtest.media.histogram import Histogram
from loadtest.media.shape import MediaShape, read_packet
from wavry_peer.gateway.client import GatewayClient
from wavry_peer.gateway.signaling import LinkTimes

from .journal import Journal, LostSession

__all__ = ["MediaPair", "RunTime"]

SHAPE: Final = MediaShape(fps=20, frame_packets=1, keyframe_packets=4, packet_bytes=600)
"""A voice call: light enough that ten pairs cost a tenth of a core."""
_LINK: Final = LinkTimes(backoff_max_s=2.0)
_SETUP_S: Final = 20.0
_WATCH_S: Final = 0.25


class RunTime:
    """Seconds since the run began; datagrams carry the same clock in nanoseconds."""

    def __init__(self) -> None:
        self._began_ns = time.monotonic_ns()

    def now_s(self) -> float:
        """Return the time now."""
        return self.of_ns(time.monotonic_ns())

    def of_ns(self, now_ns: int) -> float:
        """Return the time of a moment of CLOCK_MONOTONIC."""
        return (now_ns - self._began_ns) / 1e9


class _End:
    """One side of a session: sends frames, and notes what came."""

    def __init__(
        self, session: wavry_peer.Session, journal: Journal, times: RunTime, late: Histogram
    ) -> None:
        self.session = session
        self.newest_s = 0.0
        self.reason: str | None = None
        self._journal, self._times, self._late = journal, times, late
        self._tasks = [asyncio.create_task(work) for work in (self._send(), self._receive())]

    async def _send(self) -> None:
        """Send frames.  One that this process is late with is not made up for.

        A backlog of our own would look like one of the relay.
        """
        next_ns = time.monotonic_ns()
        frame = number = 0
        with contextlib.suppress(wavry_peer.SessionClosedError):
            while True:
                await asyncio.sleep(max(0.0, (next_ns - time.monotonic_ns()) / 1e9))
                sent_ns = time.monotonic_ns()
                for payload in SHAPE.payloads(frame, number, sent_ns):
                    await self.session.send(payload)
                    self._journal.datagrams.sent(self._times.of_ns(sent_ns))
                    number += 1
                frame += 1
                next_ns = max(next_ns + SHAPE.due_ns(1), sent_ns)

    async def _receive(self) -> None:
        try:
            while True:
                packet = read_packet(await self.session.receive())
                if packet is None:
                    self._journal.found("a peer received a datagram that the other never sent")
                    continue
                sent_s = self._times.of_ns(packet.due_ns)
                self._journal.datagrams.received(sent_s)
                self.newest_s = max(self.newest_s, sent_s)
                self._late.add(time.monotonic_ns() - packet.due_ns)
        except wavry_peer.SessionClosedError as error:
            self.reason = str(error)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.session.aclose()


class MediaPair:
    """Two users who are in a session with each other; one that they lose is noted, and made again.

    Args:
        name: of the pair.
        journal: takes datagrams and losses.
        times: of the run.
        late: takes how long the datagrams were under way.
        relay_names: names of the relays by their ids.
    """

    def __init__(
        self,
        name: str,
        journal: Journal,
        times: RunTime,
        late: Histogram,
        relay_names: Mapping[str, str],
    ) -> None:
        self.name = name
        self._late = late
        self._journal, self._times, self._relay_names = journal, times, relay_names
        self._relays: list[tuple[float, str]] = []
        self._ends: tuple[_End, _End] | None = None
        self._count = 0

    @property
    def is_alive(self) -> bool:
        """Whether there is a session that nobody has lost."""
        return self._ends is not None and all(end.reason is None for end in self._ends)

    @property
    def relays(self) -> frozenset[str]:
        """Relays that carry it: one, or two while it moves."""
        if self._ends is None:
            return frozenset()
        names = self._relay_names
        paths = {end.session.statistics().path for end in self._ends}
        return frozenset(names.get(path.removeprefix("relay "), path) for path in paths)

    def carried_since(self, since_s: float) -> bool:
        """Whether both sides have received what was sent after a time."""
        return self._ends is not None and all(end.newest_s >= since_s for end in self._ends)

    @contextlib.asynccontextmanager
    async def talking(self, gateway_url: str, directory: Path) -> AsyncIterator[None]:
        """Be in a session for the length of a block.

        Raises:
            PeerError: the first session could not be set up.
        """
        users = (f"{self.name}-caller", f"{self.name}-called")
        async with contextlib.AsyncExitStack() as stack:
            caller, called = [
                await stack.enter_async_context(await _peer(gateway_url, user, directory))
                for user in users
            ]
            listener = called.listen(accept={users[0]})
            await self._call(caller, listener)
            watch = asyncio.create_task(self._watch(caller, listener))
            try:
                yield
                if watch.done():
                    watch.result()
            finally:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)
                await self._hang_up()

    async def _call(self, caller: wavry_peer.Peer, listener: wavry_peer.Listener) -> None:
        called = asyncio.create_task(listener.accept())
        try:
            made = await caller.connect(listener.username, timeout_s=_SETUP_S)
            async with asyncio.timeout(_SETUP_S):
                taken = await called
        finally:
            called.cancel()
        self._count += 1
        self._relays.clear()
        self._ends = (
            _End(made, self._journal, self._times, self._late),
            _End(taken, self._journal, self._times, self._late),
        )
        self._note_relays()

    async def _watch(self, caller: wavry_peer.Peer, listener: wavry_peer.Listener) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            if self.is_alive:
                self._note_relays()
            else:
                await self._lose()
                with contextlib.suppress(wavry_peer.PeerError, TimeoutError):
                    await self._call(caller, listener)

    def _note_relays(self) -> None:
        known = {relay for _, relay in self._relays[-2:]}
        now_s = self._times.now_s()
        self._relays += [(now_s, relay) for relay in sorted(self.relays - known)]

    async def _lose(self) -> None:
        if self._ends is None:
            return
        self._note_relays()
        reasons = [end.reason for end in self._ends if end.reason is not None]
        name = f"{self.name}/{self._count}"
        relays = tuple(self._relays)
        self._journal.lost.append(LostSession(name, self._times.now_s(), reasons[0], relays))
        await self._hang_up()

    async def _hang_up(self) -> None:
        ends, self._ends = self._ends, None
        for end in ends or ():
            await end.close()


async def _peer(gateway_url: str, user: str, directory: Path) -> wavry_peer.Peer:
    credentials = (user, secrets.token_urlsafe(16))
    async with GatewayClient(gateway_url) as gateway:
        await gateway.register(*credentials)
    home = directory / user
    return wavry_peer.Peer(gateway_url, credentials=credentials, home=home, link_times=_LINK)
