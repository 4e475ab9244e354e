"""Changes of keys under a channel: rekey by epoch, and peers that are started anew."""

import pytest
from support.protocol.fakelink import MS, PERFECT, SECOND, Conditions, FakeLink, make_channel

from wavry_peer.protocol.channel.channel import Channel
from wavry_peer.protocol.channel.events import ChannelLimits, DropReason
from wavry_peer.protocol.channel.wire import ChannelKind
from wavry_peer.protocol.constants import Role
from wavry_peer.protocol.errors import LocalError

CLIENT, SERVER = Role.CLIENT, Role.SERVER


# -- Rekey -------------------------------------------------------------------------------


def epoch_of(body: bytes) -> int:
    return int.from_bytes(body[9:11], "big")


def sealed(channel: Channel, data: bytes, now_ns: int) -> bytes:
    channel.send(data, now_ns)
    return channel.datagrams_to_send()[-1]


def test_rekey_by_packets() -> None:
    link = FakeLink.pair(limits=ChannelLimits(rekey_after_packets=10)).establish()
    for index in range(35):
        link.send(CLIENT, b"%d" % index)
        link.run(20 * MS)
    assert link.received(SERVER) == [b"%d" % index for index in range(35)]
    epochs = [epoch_of(body) for body in link.sent_of_kind(CLIENT, ChannelKind.DATA)]
    assert epochs == [index // 10 for index in range(35)]
    assert link.client.statistics.rekeys_sent == 3
    assert link.server.statistics.rekeys_received == 3
    assert link.server.statistics.rekeys_sent == 0


def test_rekey_by_age() -> None:
    link = FakeLink.pair(limits=ChannelLimits(rekey_after_ns=60 * SECOND)).establish()
    link.send(SERVER, b"young")
    link.run(61 * SECOND)
    link.send(SERVER, b"old")
    link.run(SECOND)
    assert [epoch_of(body) for body in link.sent_of_kind(SERVER, ChannelKind.DATA)] == [0, 1]
    assert link.received(CLIENT) == [b"young", b"old"]


def test_reordering_around_a_rekey() -> None:
    conditions = Conditions(jitter_ns=200 * MS, duplicate=0.3)
    link = FakeLink.pair(conditions, 5, ChannelLimits(rekey_after_packets=50)).establish()
    for index in range(300):
        link.send(CLIENT, b"%d" % index)
        link.run(5 * MS)
    link.run(SECOND)
    assert sorted(link.received(SERVER)) == sorted(b"%d" % index for index in range(300))


def test_the_previous_epoch_is_forgotten_after_a_while() -> None:
    limits = ChannelLimits(rekey_after_packets=2, previous_keys_ns=30 * SECOND)
    link = FakeLink.pair(limits=limits).establish()
    old = [sealed(link.client, b"old", link.now_ns) for _ in range(2)]
    new = sealed(link.client, b"new", link.now_ns)
    assert [epoch_of(body) for body in (*old, new)] == [0, 0, 1]
    link.inject(SERVER, new)
    link.inject(SERVER, old[0])
    assert link.server.get_timer() == link.now_ns + 30 * SECOND
    link.run(31 * SECOND)
    assert link.server.get_timer() is None
    link.inject(SERVER, old[1])
    assert link.received(SERVER) == [b"new", b"old"]
    assert link.server.statistics.dropped[DropReason.EPOCH_OUT_OF_RANGE] == 1


def test_at_most_one_epoch_ahead_and_an_epoch_must_prove_itself() -> None:
    link = FakeLink.pair(limits=ChannelLimits(rekey_after_packets=1)).establish()
    first, second, third = (sealed(link.client, b"%d" % i, link.now_ns) for i in range(3))
    assert [epoch_of(body) for body in (first, second, third)] == [0, 1, 2]
    link.inject(SERVER, third)
    assert link.server.statistics.dropped[DropReason.EPOCH_OUT_OF_RANGE] == 1
    forged = second[:-1] + bytes([second[-1] ^ 1])
    link.inject(SERVER, forged)
    relabelled = first[:9] + b"\x00\x01" + first[11:]
    link.inject(SERVER, relabelled)
    assert link.server.statistics.dropped[DropReason.UNAUTHENTIC] == 2
    for body in (first, second, third):
        link.inject(SERVER, body)
    assert link.received(SERVER) == [b"0", b"1", b"2"]


@pytest.mark.parametrize(
    "impossible",
    [
        {"rekey_after_packets": (1 << 48) + 1},
        {"rekey_after_ns": 24 * 3600 * SECOND + 1},
        {"rekey_after_packets": 0},
        {"retransmit_initial_ns": 0},
        {"handshake_deadline_ns": 0},
        {"restart_interval_ns": -1},
    ],
)
def test_impossible_limits(impossible: dict[str, int]) -> None:
    with pytest.raises(LocalError):
        ChannelLimits(**impossible)


# -- Restart -----------------------------------------------------------------------------


@pytest.mark.parametrize("restarted", list(Role))
@pytest.mark.parametrize("conditions", [PERFECT, Conditions(loss=0.3, jitter_ns=50 * MS)])
def test_a_restarted_peer_takes_over(restarted: Role, conditions: Conditions) -> None:
    other = SERVER if restarted is CLIENT else CLIENT
    link = FakeLink.pair(conditions, 7).start()
    link.run(29 * SECOND, until=link.both_established)
    link.run(60 * SECOND)
    link.restart(restarted, make_channel(restarted, 99))
    link.run(29 * SECOND, until=link.both_established)
    assert link.both_established()
    link.run(10 * SECOND)
    assert [event.is_restart for event in link.completions(other)] == [False, True]
    assert [event.is_restart for event in link.completions(restarted)] == [False, False]
    link.conditions = PERFECT
    link.send(other, b"welcome back")
    link.send(restarted, b"here I am")
    link.run(SECOND)
    assert link.received(restarted) == [b"welcome back"]
    assert link.received(other) == [b"here I am"]


def test_packets_of_the_life_before_are_still_taken_but_not_its_close() -> None:
    link = FakeLink.pair().establish()
    late = sealed(link.client, b"late", link.now_ns)
    link.client.close(link.now_ns)
    late_close = link.client.datagrams_to_send()[0]
    link.run(60 * SECOND)
    link.restart(CLIENT, make_channel(CLIENT, 99))
    link.run(SECOND)
    link.inject(SERVER, late)
    link.inject(SERVER, late_close)
    assert link.received(SERVER) == [b"late"]
    assert link.server.statistics.dropped[DropReason.SUPERSEDED] == 1
    assert link.both_established()
    link.send(CLIENT, b"alive")
    link.run(31 * SECOND)
    assert link.received(SERVER) == [b"late", b"alive"]
    assert link.server._keys.previous is None
    link.inject(SERVER, late)
    assert link.received(SERVER) == [b"late", b"alive"]


def test_steady_traffic_does_not_keep_the_keys_of_the_life_before() -> None:
    link = FakeLink.pair().establish()
    link.restart(CLIENT, make_channel(CLIENT, 99))
    for _ in range(40):
        link.run(SECOND)
        link.send(CLIENT, b"tick")
    assert link.server._keys.previous is None
    assert len(link.received(SERVER)) == 39
