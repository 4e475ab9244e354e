"""A relay that is short: who sends more than his share pays for it, and nobody else."""

from collections.abc import Iterator

import pytest
from support.relay.world import Peer, World, open_world, reject_reason, v4

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets
from wavry_relay.engine.base import Forward
from wavry_relay.shm.control import EngineKind, Limits

RELAY_KBPS = 20_000
PAYLOAD = bytes(1200)


@pytest.fixture
def world(engine_kind: EngineKind) -> Iterator[World]:
    limits = Limits(
        ip_per_s=1000,
        ip_burst=1000,
        identity_per_s=1000,
        identity_burst=1000,
        global_kbps=RELAY_KBPS,
    )
    with open_world(kind=engine_kind, limits=limits) as made:
        yield made


class Stream:
    """A peer that sends evenly at a rate."""

    def __init__(self, peer: Peer, kbps: int) -> None:
        self.peer, self.kbps = peer, kbps
        self.sent = self.passed = 0
        self._due_bits = 0.0

    def step(self, seconds: float) -> None:
        size_bits = 8 * len(self.peer.frame(0, PAYLOAD))
        self._due_bits += self.kbps * 1000 * seconds
        while self._due_bits >= size_bits:
            self._due_bits -= size_bits
            self.sent += 1
            self.passed += isinstance(self.peer.forward(self.sent, PAYLOAD), Forward)

    @property
    def lost_pct(self) -> float:
        return 100 * (self.sent - self.passed) / self.sent


def streams(world: World, subs: str, first_port: int, kbps: int, sessions: int = 1) -> list[Stream]:
    """Both directions of sessions of two accounts."""
    made = []
    for number in range(sessions):
        port = first_port + 2 * number
        client = world.peer(address=v4(7, port), hard_kbps=10_000_000, sub=f"{subs}-client")
        server = world.peer(
            c.Role.SERVER,
            sid=client.sid,
            address=v4(7, port + 1),
            hard_kbps=10_000_000,
            sub=f"{subs}-server",
        )
        client.accept()
        server.accept()
        made += [Stream(client, kbps), Stream(server, kbps)]
    return made


def run(world: World, every: list[Stream], seconds: float) -> None:
    for _ in range(round(seconds / 0.002)):
        world.advance(0.002)
        for stream in every:
            stream.step(0.002)


def test_pair_at_three_times_the_limit_costs_an_innocent_nothing(world: World) -> None:
    """Without shares the innocent loses 199 of its 203 datagrams each way."""
    attackers = streams(world, "greedy", 6000, 3 * RELAY_KBPS // 4, sessions=2)
    innocent = streams(world, "innocent", 5000, 1000)
    run(world, [*attackers, *innocent], 2)
    assert [stream.lost_pct for stream in innocent] == [0, 0]
    used_kbps = sum(8 * 1228 * s.passed for s in [*attackers, *innocent]) / 2 / 1000
    assert used_kbps > 0.97 * RELAY_KBPS, "what is left over is used"


def test_more_sessions_give_no_more(world: World) -> None:
    many = streams(world, "many", 6000, RELAY_KBPS // 4, sessions=6)
    one = streams(world, "one", 5000, RELAY_KBPS // 5)
    run(world, [*many, *one], 2)
    assert max(stream.lost_pct for stream in one) < 1


def test_relay_with_room_limits_nobody(world: World) -> None:
    one = streams(world, "one", 5000, RELAY_KBPS * 2 // 5)
    other = streams(world, "other", 6000, 500)
    run(world, [*one, *other], 2)
    assert all(stream.lost_pct == 0 for stream in [*one, *other])


def test_user_who_wants_every_session_leaves_some_to_others(engine_kind: EngineKind) -> None:
    with open_world(kind=engine_kind, max_sessions=90) as world:
        answers = [world.peer(sub="hog", address=v4(7, 6000)).present() for _ in range(90)]
        taken = sum(isinstance(answer.body, packets.LeaseAck) for answer in answers)
        assert taken == 80
        assert reject_reason(answers[-1]) == c.RejectReason.SESSION_FULL
        assert world.count("sessions_over_share") == 10
        for number in range(10):
            world.peer(sub=f"user-{number}", address=v4(8, 5000 + number)).accept()
        assert world.table.count_taken() == 90


def test_most_of_a_relay_is_anybodys(engine_kind: EngineKind) -> None:
    with open_world(kind=engine_kind, max_sessions=90) as world:
        for _ in range(80):
            world.peer(sub="hog", address=v4(7, 6000)).accept()
        assert world.count("sessions_over_share") == 0
