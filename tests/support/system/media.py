"""Media-shaped traffic: numbered datagrams, 60 bursts a second, with the way each one took."""

import asyncio
import contextlib
import dataclasses
import struct
import time
from collections.abc import Sequence

import wavry_peer

_HEAD = struct.Struct("!IQ")
FRAME_S = 1 / 60


@dataclasses.dataclass
class Media:
    """One direction of a session."""

    sender: wavry_peer.Session
    receiver: wavry_peer.Session
    datagrams: int = 1
    payload: bytes = bytes(200)
    every_s: float = FRAME_S
    sent: int = 0
    sending: bool = True
    latency_ns: dict[int, int] = dataclasses.field(default_factory=dict)

    async def send(self) -> None:
        started_s = time.monotonic()
        frame = 0
        while self.sending:
            for _ in range(self.datagrams):
                head = _HEAD.pack(self.sent, time.monotonic_ns())
                await self.sender.send(head + self.payload)
                self.sent += 1
            frame += 1
            await asyncio.sleep(max(0.0, started_s + frame * self.every_s - time.monotonic()))

    async def receive(self) -> None:
        with contextlib.suppress(wavry_peer.SessionClosedError):
            while True:
                datagram = await self.receiver.receive()
                number, sent_ns = _HEAD.unpack_from(datagram)
                self.latency_ns[number] = time.monotonic_ns() - sent_ns

    @property
    def lost(self) -> int:
        return self.sent - len(self.latency_ns)

    def worst_ms(self, first: int, end: int | None = None) -> float:
        ways = [ns for number, ns in self.latency_ns.items() if first <= number < (end or 1 << 62)]
        return max(ways, default=0) / 1e6


class Traffic:
    """Both directions of many sessions.

    Args:
        pairs: caller and called.
        every_s: from one frame of the called (who sends the media) to the next; one for all pairs,
            or one for each.
        back_every_s: the same for the callers, who send input; None for the same pace.
    """

    def __init__(
        self,
        pairs: list[tuple[wavry_peer.Session, wavry_peer.Session]],
        every_s: float | Sequence[float] = FRAME_S,
        back_every_s: float | None = None,
    ) -> None:
        paces_s = [every_s] * len(pairs) if isinstance(every_s, float) else every_s
        self.media = []
        for (caller, called), pace_s in zip(pairs, paces_s, strict=True):
            back_s = pace_s if back_every_s is None else back_every_s
            self.media.append(Media(called, caller, every_s=pace_s))
            self.media.append(Media(caller, called, every_s=back_s))
        self._senders: list[asyncio.Task[None]] = []
        self._receivers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._receivers = [asyncio.create_task(media.receive()) for media in self.media]
        self._senders = [asyncio.create_task(media.send()) for media in self.media]

    async def stop(self) -> None:
        """End of sending; what is under way arrives."""
        for media in self.media:
            media.sending = False
        await asyncio.gather(*self._senders)
        deadline_s = time.monotonic() + 5
        while self.lost and time.monotonic() < deadline_s:  # noqa: ASYNC110  # a count, no event
            await asyncio.sleep(0.05)
        for task in self._receivers:
            task.cancel()
        await asyncio.gather(*self._receivers, return_exceptions=True)

    @property
    def sent(self) -> int:
        return sum(media.sent for media in self.media)

    @property
    def lost(self) -> int:
        return sum(media.lost for media in self.media)
