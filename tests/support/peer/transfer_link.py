"""A link with its own clock between a `FileSender` and a `FileReceiver`."""

import hashlib
import heapq
import random
from dataclasses import dataclass, field

from wavry_peer.files.frames import ResultCode, TransferOffer
from wavry_peer.files.receiver import FileReceiver
from wavry_peer.files.sender import FileSender

MS = 1_000_000
SECOND = 1000 * MS


@dataclass
class TransferLink:
    """Loses, duplicates, delays (and so reorders), corrupts; and has a bottleneck if wanted."""

    content: bytes
    seed: int = 0
    loss: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    delay_ns: int = 10 * MS
    jitter_ns: int = 0
    packets_per_s: int = 0
    queue_packets: int = 100
    chunk_bytes: int = 1000
    now_ns: int = 1000 * SECOND
    cut: bool = False
    sent_frames: int = 0
    queue_drops: int = 0
    _flying: list = field(default_factory=list)
    _order: int = 0
    _busy_until_ns: dict = field(default_factory=lambda: {True: 0, False: 0})

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        digest = hashlib.sha256(self.content).digest()
        self.offer = TransferOffer(b"transfer", len(self.content), self.chunk_bytes, digest, "name")
        self.stored = bytearray(len(self.content))
        self.writes: list[int] = []
        self.sender = FileSender(
            self.offer, lambda at, size: self.content[at : at + size], self.now_ns
        )
        self.receiver: FileReceiver | None = None

    def write(self, offset: int, data: bytes) -> None:
        self.writes.append(offset)
        self.stored[offset : offset + len(data)] = data

    def run(self, limit_ns: int = 600 * SECOND) -> "TransferLink":
        """Until both are over; returns itself."""
        end_ns = self.now_ns + limit_ns
        self._flush()
        while not (self.sender.is_over and (self.receiver is None or self.receiver.is_over)):
            cores = [core for core in (self.sender, self.receiver) if core is not None]
            times = [time for core in cores if (time := core.get_timer()) is not None]
            if self._flying:
                times.append(self._flying[0][0])
            assert times, "nobody has anything to do, and it is not over"
            self.now_ns = max(self.now_ns, min(times))
            assert self.now_ns < end_ns, "it takes for ever"
            while self._flying and self._flying[0][0] <= self.now_ns:
                _, _, to_receiver, frame = heapq.heappop(self._flying)
                self._deliver(to_receiver, frame)
            for core in cores:
                core.handle_timer(self.now_ns)
            self._flush()
        return self

    def _deliver(self, to_receiver: bool, frame: bytes) -> None:
        if not to_receiver:
            self.sender.receive(frame, self.now_ns)
            return
        if self.receiver is None:
            if frame != self.offer.pack():
                return
            self.receiver = FileReceiver(self.offer, self.write, self.now_ns)
        self.receiver.receive(frame, self.now_ns)
        if self.receiver.is_complete:
            good = hashlib.sha256(self.stored).digest() == self.offer.sha256
            code = ResultCode.OK if good else ResultCode.HASH_MISMATCH
            self.receiver.finish(code, self.now_ns)

    def _flush(self) -> None:
        for frame in self.sender.frames_to_send(self.now_ns):
            self._launch(True, frame)
        if self.receiver is not None:
            for frame in self.receiver.frames_to_send(self.now_ns):
                self._launch(False, frame)
            if self.receiver.is_complete and not self.content:
                self.receiver.finish(ResultCode.OK, self.now_ns)

    def _launch(self, to_receiver: bool, frame: bytes) -> None:
        self.sent_frames += 1
        if self.cut:
            return
        for _ in range(2 if self.random.random() < self.duplicate else 1):
            if self.random.random() < self.loss:
                continue
            flying = bytearray(frame)
            if self.random.random() < self.corrupt:
                flying[self.random.randrange(len(flying))] ^= 1 << self.random.randrange(8)
            at_ns = self.now_ns + self.delay_ns + self.random.randrange(self.jitter_ns + 1)
            if self.packets_per_s:
                gap_ns = SECOND // self.packets_per_s
                begin_ns = max(self._busy_until_ns[to_receiver], self.now_ns)
                if begin_ns - self.now_ns > self.queue_packets * gap_ns:
                    self.queue_drops += 1
                    continue
                self._busy_until_ns[to_receiver] = begin_ns + gap_ns
                at_ns += begin_ns - self.now_ns
            self._order += 1
            heapq.heappush(self._flying, (at_ns, self._order, to_receiver, bytes(flying)))
