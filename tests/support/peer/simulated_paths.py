"""Two peers in the middle of a move between relays, with a clock of their own."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from support.protocol.fakelink import MS, SECOND, FakeLink
from wavry_peer.paths.path_switch import CandidateFailed, PathRetired, PathSwitch, PathSwitched
from wavry_peer.protocol.channel.channel import Channel
from wavry_peer.protocol.channel.events import DataReceived, ProbeReceived
from wavry_peer.protocol.channel.wire import ProbeStage
from wavry_peer.protocol.constants import Role

FRAME_NS = 16 * MS


@dataclass
class FakeRelay:
    """Forwards between the peers that are there; keeps nothing."""

    name: str
    issued: int
    delay_ns: int = 10 * MS
    jitter_ns: int = 0
    loss: float = 0.0
    dead: bool = False
    deaf_to: set[Role] = field(default_factory=set)
    there: set[Role] = field(default_factory=set)

    @property
    def order(self) -> tuple[int, str]:
        return self.issued, self.name


class Side:
    """One peer: a channel, a switch, and an application that sends numbered datagrams."""

    def __init__(self, role: Role, channel: Channel) -> None:
        self.role = role
        self.channel = channel
        self.switch: PathSwitch[str] = PathSwitch()
        self.open: set[str] = set()
        self.sent: dict[int, int] = {}
        self.received: dict[int, int] = {}
        self.switched: list[str] = []
        self.retired: list[str] = []
        self.failed: list[str] = []
        self.probes = 0


class Move:
    """Relays, two sides that send 60 datagrams a second each, and time."""

    def __init__(self, *relays: FakeRelay, seed: int = 0) -> None:
        link = FakeLink.pair(seed=seed).establish()
        link.run(SECOND)
        self.now_ns = link.now_ns
        self.random = random.Random(seed)
        self.relays = {relay.name: relay for relay in relays}
        self.sides = {role: Side(role, link.channels[role]) for role in Role}
        self._flying: list[tuple[int, int, Role, str, bytes]] = []
        self._launched = 0
        self._todo: list[tuple[int, int, Callable[[], None]]] = []
        self._next_frame_ns = self.now_ns
        self.sending = True
        first = relays[0].name
        for role in Role:
            self.arrive(role, first)
        assert all(side.switch.active == first for side in self.sides.values())

    @property
    def client(self) -> Side:
        return self.sides[Role.CLIENT]

    @property
    def server(self) -> Side:
        return self.sides[Role.SERVER]

    # -- What happens ------------------------------------------------------------------

    def arrive(self, role: Role, name: str) -> None:
        """A relay acknowledged the lease of one side."""
        relay, side = self.relays[name], self.sides[role]
        relay.there.add(role)
        side.open.add(name)
        side.switch.ready(name, relay.order, self.now_ns, can_probe=True)
        self._follow(side)

    def prefer(self, role: Role, name: str, issued: int) -> None:
        side = self.sides[role]
        side.switch.prefer(name, (issued, name), self.now_ns)
        self._follow(side)

    def lose(self, role: Role, name: str) -> None:
        """One side finds out that a relay is gone."""
        side = self.sides[role]
        side.open.discard(name)
        side.switch.gone(name, self.now_ns)
        self._follow(side)

    def after(self, delay_ns: int, what: Callable[[], None]) -> None:
        self._launched += 1
        heapq.heappush(self._todo, (self.now_ns + delay_ns, self._launched, what))

    def run(self, duration_ns: int) -> None:
        end_ns = self.now_ns + duration_ns
        while True:
            times = [side.switch.get_timer() for side in self.sides.values()]
            times += [self._flying[0][0] if self._flying else None]
            times += [self._todo[0][0] if self._todo else None]
            times += [self._next_frame_ns if self.sending else None]
            now_ns = min((t for t in times if t is not None), default=None)
            if now_ns is None or now_ns > end_ns:
                break
            self.now_ns = max(self.now_ns, now_ns)
            self._step()
        self.now_ns = end_ns

    def _step(self) -> None:
        while self._todo and self._todo[0][0] <= self.now_ns:
            heapq.heappop(self._todo)[2]()
        if self.sending and self._next_frame_ns <= self.now_ns:
            self._next_frame_ns += FRAME_NS
            for side in self.sides.values():
                self._send_frame(side)
        while self._flying and self._flying[0][0] <= self.now_ns:
            _, _, role, name, body = heapq.heappop(self._flying)
            self._deliver(self.sides[role], name, body)
        for side in self.sides.values():
            timer = side.switch.get_timer()
            if timer is not None and timer <= self.now_ns:
                side.switch.handle_timer(self.now_ns)
                self._follow(side)
                after = side.switch.get_timer()
                assert after is None or after > self.now_ns, "a timer that is due for ever"

    def _send_frame(self, side: Side) -> None:
        number = len(side.sent)
        side.sent[number] = self.now_ns
        side.channel.send(number.to_bytes(4, "big"), self.now_ns)
        for body in side.channel.datagrams_to_send():
            if side.switch.active is not None:
                self._launch(side, side.switch.active, body)

    def _follow(self, side: Side) -> None:
        while (event := side.switch.next_event()) is not None:
            match event:
                case PathSwitched():
                    side.switched.append(event.key)
                case PathRetired():
                    side.retired.append(event.key)
                    side.open.discard(event.key)
                case CandidateFailed():
                    side.failed.append(event.key)
                    side.open.discard(event.key)
        for name, stage in side.switch.probes_to_send(self.now_ns):
            body = side.channel.make_probe(stage, self.now_ns)
            assert body is not None
            side.probes += 1
            self._launch(side, name, body)

    def _launch(self, side: Side, name: str, body: bytes) -> None:
        relay = self.relays[name]
        other = Role.SERVER if side.role is Role.CLIENT else Role.CLIENT
        lost = relay.dead or side.role in relay.deaf_to or relay.there != set(Role)
        if lost or self.random.random() < relay.loss:
            return
        self._launched += 1
        due_ns = self.now_ns + relay.delay_ns + self.random.randrange(relay.jitter_ns + 1)
        heapq.heappush(self._flying, (due_ns, self._launched, other, name, body))

    def _deliver(self, side: Side, name: str, body: bytes) -> None:
        if name not in side.open or self.relays[name].dead:
            return
        side.channel.receive_datagram(body, self.now_ns)
        while (event := side.channel.next_event()) is not None:
            if isinstance(event, DataReceived):
                number = int.from_bytes(event.data, "big")
                assert number not in side.received, "delivered twice"
                side.received[number] = self.now_ns
                side.switch.heard(name, ProbeStage.SETTLED, self.now_ns)
            elif isinstance(event, ProbeReceived):
                side.switch.heard(name, event.stage, self.now_ns)
        self._follow(side)

    # -- What came of it ---------------------------------------------------------------

    def finish(self) -> None:
        """Stops the applications and lets everything arrive."""
        self.sending = False
        self.run(SECOND)

    def lost(self) -> int:
        a, b = self.client, self.server
        return len(a.sent) - len(b.received) + len(b.sent) - len(a.received)

    def lost_since(self, sent_ns: int) -> int:
        """As `lost`, of what was sent from a moment on."""
        a, b = self.client, self.server
        return sum(
            at_ns >= sent_ns and number not in to.received
            for by, to in ((a, b), (b, a))
            for number, at_ns in by.sent.items()
        )

    def longest_way_ns(self) -> int:
        a, b = self.client, self.server
        return max(
            to.received[number] - sent_ns
            for by, to in ((a, b), (b, a))
            for number, sent_ns in by.sent.items()
            if number in to.received
        )

    def is_settled_at(self, name: str) -> bool:
        return all(
            side.switch.active == name and side.open == {name} and not side.switch.is_moving
            for side in self.sides.values()
        )
