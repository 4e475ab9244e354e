import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Final

from wavry_peer.protocol.packets import Buffer
from wavry_peer.service.clock import Clock, Instant
from wavry_relay.engine.base import Answer, ControlPacket, Decision
from wavry_relay.engine.verified_lease import VerifiedLease
from wavry_relay.shm.address import Address
from wavry_relay.shm.counters import CounterRow
from wavry_relay.shm.segment import Segment

LAYOUT_DIGEST: Final[str]
SOURCES_DIGEST: Final[str]

class NativeLocks:
    def table(self) -> AbstractContextManager[None]: ...
    def session(self, record: int) -> AbstractContextManager[None]: ...
    def rate(self, bucket_offset: int) -> AbstractContextManager[None]: ...
    def global_rate(self) -> AbstractContextManager[None]: ...
    def free_locks_of(self, worker: int) -> int: ...

class NativeEngine:
    name: str
    locks: NativeLocks
    def __init__(
        self,
        segment: Segment,
        sockets: Sequence[socket.socket],
        counters: CounterRow,
        clock: Clock,
        *,
        wake_fd: int | None = None,
        busy_poll_us: int = 0,
    ) -> None: ...
    def decide(self, datagram: Buffer, source: Address, now: Instant) -> Decision: ...
    def run(self, timeout_ms: int) -> list[ControlPacket]: ...
    def answer(self, packets: list[ControlPacket], answers: list[Answer]) -> None: ...
    def send(self, datagram: bytes, to: Address) -> bool: ...
    def admit(
        self, session: tuple[int, int], lease: VerifiedLease, source: Address, mono_ns: int
    ) -> Answer | None: ...
    def close(self) -> None: ...
    @property
    def offload(self) -> list[tuple[bool, bool]]: ...
    @property
    def statistics(self) -> dict[str, int]: ...
    def inject_fault(
        self, error: int, count: int, *, only_gso: bool = False, port: int = 0
    ) -> None: ...
