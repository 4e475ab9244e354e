"""`Engine.admit` in C against the rules in Python: equal answers, equal tables."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, islice
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.engine.native import Twin, twins
from support.relay.world import Peer, World, open_world, v4, v6

from wavry_peer.protocol import constants as c
from wavry_relay.admission.admission import Admission
from wavry_relay.admission.policy import RelayPolicy
from wavry_relay.admission.revocation_view import RevocationView
from wavry_relay.admission.transitions import LeaseTransitions
from wavry_relay.engine.base import Answer, ControlKind, ControlPacket, Engine
from wavry_relay.shm.control import ControlBlock, Limits
from wavry_relay.shm.layout import RATE_BUCKET
from wavry_relay.shm.tables import Tables
from wavry_relay.shm.tags import Tags

pytestmark = pytest.mark.usefixtures("native")


class Counted:
    """`Engine.admit` that remembers how often it took a lease."""

    def __init__(self, engine: Engine) -> None:
        self.taken = 0
        self._admit = engine.admit

    def __call__(self, *arguments: Any) -> Answer | None:
        taken = self._admit(*arguments)
        self.taken += taken is not None
        return taken


@dataclass
class Side:
    """A twin with an admission of its own."""

    twin: Twin
    counted: Counted
    admission: Admission
    control: ControlBlock


def side_of(twin: Twin) -> Side:
    tables = Tables(twin.segment, twin.engine.locks)
    policy = RelayPolicy(RevocationView(tables))
    transitions = LeaseTransitions(tables, twin.row, strict=True)
    counted = Counted(twin.engine)
    engine: Any = SimpleNamespace(admit=counted)
    admission = Admission(tables, engine, twin.row, policy, transitions)
    return Side(twin, counted, admission, tables.control)


LIMITS = st.builds(
    Limits,
    ip_per_s=st.sampled_from([1, 20, 1000]),
    ip_burst=st.sampled_from([1, 3, 1000]),
    network_per_s=st.sampled_from([0, 1, 500]),
    network_burst=st.sampled_from([0, 2, 500]),
    identity_per_s=st.sampled_from([1, 1000, 2_000_000_000]),
    identity_burst=st.sampled_from([1, 2, 1000, (1 << 32) - 1]),
    cookie_at_per_s=st.just(1_000_000),
)
PLACES = [v4(1), v4(1, 6000), v4(2), v6(1), v6(2, scope=3)]


def peers_of(world: World) -> list[Peer]:
    """Both sides of four sessions, for a table of three records."""
    peers: list[Peer] = []
    for number in range(4):
        client = world.peer(address=PLACES[number], sub=f"user-{number % 3}")
        server = world.peer(c.Role.SERVER, sid=client.sid, address=PLACES[number + 1], sub="host")
        peers += [client, server]
    return peers


def draw_packet(
    draw: Callable[[Any], Any], peers: list[Peer], sent: list[ControlPacket]
) -> ControlPacket:
    peer = draw(st.sampled_from(peers))
    source = peer.address if draw(st.integers(0, 3)) else draw(st.sampled_from(PLACES))
    kind = draw(st.sampled_from(["present", "present", "renew", "renew", "again", "other", "bye"]))
    if kind == "again" and sent:
        return draw(st.sampled_from(sent))
    if kind == "renew":
        peer.token = peer.new_token()
    if kind == "other":
        peer.token = peer.new_token(sub=draw(st.sampled_from(["host", "user-1", "eve"])))
    cookie = c.RELEASE_COOKIE if kind == "bye" else c.NO_COOKIE
    renew = kind == "renew" and draw(st.booleans())
    counter = draw(st.sampled_from([None, None, None, 1, (1 << 64) - 2, (1 << 64) - 1]))
    datagram = peer.datagram(cookie=cookie, renew=renew, counter=counter)
    sent.append(ControlPacket(ControlKind.LEASE, datagram, source))
    return sent[-1]


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(limits=LIMITS, data=st.data())
def test_equal_answers_counters_and_tables(limits: Limits, data: st.DataObject) -> None:
    with open_world(limits=limits, max_sessions=3) as world:
        peers, sent = peers_of(world), list[ControlPacket]()
        with twins(world) as made:
            python, native = (side_of(twin) for twin in made)
            for _ in range(data.draw(st.integers(1, 40))):
                packet = draw_packet(data.draw, peers, sent)
                for name, value in (("drain", 1), ("shedding", 1), ("log_level", 20)):
                    if data.draw(st.integers(0, 9)) == 0:
                        now = getattr(python.control, name)
                        for side in (python, native):
                            setattr(side.control, name, 0 if now == value else value)
                wanted = python.admission.handle(packet, world.now)
                assert native.admission.handle(packet, world.now) == wanted
                world.advance(data.draw(st.sampled_from([0.0, 0.0, 0.02, 0.9, 70.0])))
            assert native.twin.counters() == python.twin.counters()
            assert native.twin.tables() == python.twin.tables()


def test_engine_takes_first_leases_and_renewals_and_nothing_while_steps_are_told() -> None:
    with open_world(max_sessions=8) as world:
        client, server = world.peer(), world.peer(c.Role.SERVER, address=v4(2))
        server.sid = client.sid
        server.token = server.new_token()
        with twins(world) as made:
            side = side_of(made[1])

            def handle(peer: Peer, **options: Any) -> None:
                packet = ControlPacket(ControlKind.LEASE, peer.datagram(**options), peer.address)
                assert side.admission.handle(packet, world.now)

            handle(client)
            handle(server)
            assert side.counted.taken == 2
            client.token = client.new_token()
            handle(client, renew=True)
            assert side.counted.taken == 3
            side.control.log_level = 10
            handle(world.peer())
            assert side.counted.taken == 3


def test_limits_agree_over_a_full_bucket() -> None:
    """Six identities of one bucket of three: they take turns, and the overflow word is used."""
    limits = Limits(
        ip_per_s=1000, ip_burst=1000, identity_per_s=2, identity_burst=2, cookie_at_per_s=1_000_000
    )
    with open_world(limits=limits, max_sessions=256) as world, twins(world) as made:
        sides = [side_of(twin) for twin in made]
        tag, region = Tags(world.segment).tag, world.segment.geometry.regions["identity_rates"]
        first = tag(b"sub", b"user-0") % region.count
        same = (
            name
            for name in map("user-{}".format, count())
            if tag(b"sub", name.encode()) % region.count == first
        )
        names = list(islice(same, 6))
        for number in range(120):
            peer = world.peer(sub=names[number * 7 % 11 % 6])
            packet = ControlPacket(ControlKind.LEASE, peer.datagram(), peer.address)
            asked = [side.admission.handle(packet, world.now) for side in sides]
            assert asked[0] == asked[1]
            world.advance(0.013 * (number % 4))
        assert sides[0].twin.counters() == sides[1].twin.counters()
        assert sides[0].twin.tables() == sides[1].twin.tables()
        assert sides[1].counted.taken
        bucket = region.offset + first * RATE_BUCKET.size
        overflow = (bucket + RATE_BUCKET["overflow_tat"].offset) // 8
        assert sides[0].twin.segment.u64[overflow]
        assert sides[0].twin.row["limited_identity"]
