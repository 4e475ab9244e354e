"""A link between two channels with a clock of its own: loses, duplicates, reorders, corrupts."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from wavry_peer.protocol.channel.channel import Channel
from wavry_peer.protocol.channel.events import (
    ChannelLimits,
    DataReceived,
    Event,
    HandshakeCompleted,
)
from wavry_peer.protocol.channel.noise import KeyPair
from wavry_peer.protocol.channel.wire import MAX_BODY_BYTES
from wavry_peer.protocol.constants import Role

MS = 1_000_000
SECOND = 1000 * MS
SESSION_ID = bytes(range(16))
CLIENT_KEY = KeyPair.from_private(b"\x11" * 32)
SERVER_KEY = KeyPair.from_private(b"\x22" * 32)
STRANGER_KEY = KeyPair.from_private(b"\x33" * 32)


def make_channel(
    role: Role,
    seed: int,
    *,
    static: KeyPair | None = None,
    expected: bytes | None = None,
    session_id: bytes = SESSION_ID,
    limits: ChannelLimits | None = None,
) -> Channel:
    """A channel of the client or the server that knows the other's key, with seeded randomness."""
    own, other = (CLIENT_KEY, SERVER_KEY) if role is Role.CLIENT else (SERVER_KEY, CLIENT_KEY)
    wanted = expected or other.public
    return Channel(
        role=role,
        session_id=session_id,
        static_private=(static or own).private,
        verify_remote_static=lambda key: key == wanted,
        random_bytes=random.Random(f"{role.name}-{seed}").randbytes,
        limits=limits or ChannelLimits(),
    )


@dataclass(frozen=True)
class Conditions:
    """Probabilities per packet, and the longest extra delay (which reorders)."""

    loss: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    delay_ns: int = 10 * MS
    jitter_ns: int = 0


PERFECT = Conditions()


@dataclass
class FakeLink:
    """Two channels by role, a heap of packets on their way, and everything that was seen."""

    channels: dict[Role, Channel]
    conditions: Conditions = PERFECT
    seed: int = 0
    now_ns: int = 1_000 * SECOND
    tamper: Callable[[Role, bytes], bytes | None] | None = None
    """Sees each packet with its sender; gives what goes on instead, or None to lose it."""
    wire: list[tuple[Role, bytes]] = field(default_factory=list)
    events: dict[Role, list[Event]] = field(default_factory=lambda: {role: [] for role in Role})
    _flying: list[tuple[int, int, Role, bytes]] = field(default_factory=list)
    _order: int = 0
    _highest: dict[Role, int] = field(default_factory=lambda: dict.fromkeys(Role, 0))

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    @classmethod
    def pair(
        cls,
        conditions: Conditions = PERFECT,
        seed: int = 0,
        limits: ChannelLimits | None = None,
    ) -> "FakeLink":
        """A link between a client and a server that expect each other."""
        channels = {role: make_channel(role, seed, limits=limits) for role in Role}
        return cls(channels, conditions, seed)

    @property
    def client(self) -> Channel:
        return self.channels[Role.CLIENT]

    @property
    def server(self) -> Channel:
        return self.channels[Role.SERVER]

    def start(self) -> "FakeLink":
        for role in Role:
            self.start_one(role)
        return self

    def start_one(self, role: Role) -> None:
        self.channels[role].start(self.now_ns)
        self.flush()

    def restart(self, role: Role, channel: Channel) -> None:
        """The process of one side died; another takes its place."""
        self.channels[role] = channel
        self._highest[role] = 0
        self.start_one(role)

    def establish(self) -> "FakeLink":
        """Starts both sides and runs until both are established."""
        self.start()
        self.run(5 * SECOND, until=self.both_established)
        assert self.both_established()
        return self

    def both_established(self) -> bool:
        return all(channel.is_established for channel in self.channels.values())

    def send(self, role: Role, data: bytes) -> None:
        self.channels[role].send(data, self.now_ns)
        self.flush()

    def inject(self, target: Role, body: bytes) -> None:
        """An attacker's packet arrives now."""
        self.channels[target].receive_datagram(body, self.now_ns)
        self.flush()

    def run(self, duration_ns: int, until: Callable[[], bool] = lambda: False) -> None:
        """Lets time pass, from one packet or timer to the next."""
        end_ns = self.now_ns + duration_ns
        while not until():
            timers = {role: channel.get_timer() for role, channel in self.channels.items()}
            times = [time for time in timers.values() if time is not None]
            if self._flying:
                times.append(self._flying[0][0])
            if not times or min(times) > end_ns:
                self.now_ns = end_ns
                return
            self.now_ns = max(self.now_ns, min(times))
            for role, time in timers.items():
                if time is not None and time <= self.now_ns:
                    channel = self.channels[role]
                    channel.handle_timer(self.now_ns)
                    after = channel.get_timer()
                    assert after is None or after > self.now_ns, "a timer that is due for ever"
            while self._flying and self._flying[0][0] <= self.now_ns:
                _, _, target, body = heapq.heappop(self._flying)
                self.channels[target].receive_datagram(body, self.now_ns)
                self.flush()
            self.flush()

    def flush(self) -> None:
        """Puts what the channels want to send on its way, and collects their events."""
        for role, channel in self.channels.items():
            for body in channel.datagrams_to_send():
                sequence = int.from_bytes(body[:8], "big")
                assert sequence > self._highest[role], "the relay would drop this sequence"
                assert len(body) <= MAX_BODY_BYTES
                self._highest[role] = sequence
                self.wire.append((role, body))
                self._launch(role, body)
            while (event := channel.next_event()) is not None:
                self.events[role].append(event)

    def _launch(self, sender: Role, body: bytes) -> None:
        if self.tamper is not None:
            tampered = self.tamper(sender, body)
            if tampered is None:
                return
            body = tampered
        copies = 2 if self.random.random() < self.conditions.duplicate else 1
        for _ in range(copies):
            if self.random.random() < self.conditions.loss:
                continue
            flying = bytearray(body)
            if self.random.random() < self.conditions.corrupt:
                flying[self.random.randrange(len(flying))] ^= 1 << self.random.randrange(8)
            delay_ns = self.conditions.delay_ns
            delay_ns += self.random.randrange(self.conditions.jitter_ns + 1)
            self._order += 1
            target = Role.SERVER if sender is Role.CLIENT else Role.CLIENT
            heapq.heappush(
                self._flying, (self.now_ns + delay_ns, self._order, target, bytes(flying))
            )

    def received(self, role: Role) -> list[bytes]:
        return [e.data for e in self.events[role] if isinstance(e, DataReceived)]

    def completions(self, role: Role) -> list[HandshakeCompleted]:
        return [e for e in self.events[role] if isinstance(e, HandshakeCompleted)]

    def sent_of_kind(self, role: Role, kind: int) -> list[bytes]:
        return [body for sender, body in self.wire if sender is role and body[8] == kind]
