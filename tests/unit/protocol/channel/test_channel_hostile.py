"""What an attacker on the path may try against a channel, and what must come of it: nothing."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.protocol.fakelink import (
    CLIENT_KEY,
    MS,
    SECOND,
    SERVER_KEY,
    STRANGER_KEY,
    FakeLink,
    make_channel,
)

from wavry_peer.protocol.channel.channel import Channel
from wavry_peer.protocol.channel.events import ChannelFailed, DropReason, FailureReason
from wavry_peer.protocol.channel.wire import HANDSHAKE_REST_BYTES, ChannelKind
from wavry_peer.protocol.constants import Role
from wavry_peer.protocol.errors import LocalError

CLIENT, SERVER = Role.CLIENT, Role.SERVER


def packet(kind: int, rest: bytes = b"", sequence: int = 1) -> bytes:
    return sequence.to_bytes(8, "big") + bytes([kind]) + rest


def works(link: FakeLink) -> bool:
    """Data goes both ways."""
    before = {role: len(link.received(role)) for role in Role}
    for role in Role:
        link.send(role, b"still here")
    link.run(SECOND)
    return all(len(link.received(role)) == before[role] + 1 for role in Role)


def answer_of(channel: Channel, body: bytes, now_ns: int) -> list[bytes]:
    channel.datagrams_to_send()
    channel.receive_datagram(body, now_ns)
    return channel.datagrams_to_send()


# -- Identity ----------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", list(Role))
def test_a_wrong_static_key_is_refused(wrong: Role) -> None:
    right = SERVER if wrong is CLIENT else CLIENT
    channels = {
        wrong: make_channel(wrong, 1, static=STRANGER_KEY),
        right: make_channel(right, 1),
    }
    link = FakeLink(channels).start()
    link.run(40 * SECOND)
    assert link.events[right] == [ChannelFailed(FailureReason.WRONG_IDENTITY)]
    assert link.channels[right].statistics.dropped[DropReason.WRONG_IDENTITY] >= 1
    assert not link.completions(wrong)


def test_a_stranger_who_answers_first_does_not_stop_the_right_server() -> None:
    link = FakeLink.pair()
    stranger = make_channel(SERVER, 3, static=STRANGER_KEY)
    stranger.start(link.now_ns)
    link.start()
    (message_1,) = link.sent_of_kind(CLIENT, ChannelKind.MESSAGE_1)
    (forged,) = answer_of(stranger, message_1, link.now_ns)
    link.inject(CLIENT, forged)
    assert link.client.statistics.dropped[DropReason.WRONG_IDENTITY] == 1
    link.run(SECOND)
    assert link.both_established()
    assert link.client.remote_static == SERVER_KEY.public


def test_a_stranger_cannot_take_over_an_established_server() -> None:
    link = FakeLink.pair().establish()
    stranger = make_channel(CLIENT, 3, static=STRANGER_KEY)
    stranger.start(link.now_ns)
    (message_1,) = stranger.datagrams_to_send()
    (message_2,) = answer_of(link.server, message_1, link.now_ns)
    (message_3,) = answer_of(stranger, message_2, link.now_ns)
    link.inject(SERVER, message_3)
    assert link.server.statistics.dropped[DropReason.WRONG_IDENTITY] == 1
    assert works(link)


def test_a_later_handshake_needs_the_same_key_even_if_verify_takes_any() -> None:
    link = FakeLink.pair().establish()
    link.server._verify_remote_static = lambda key: True  # pinned on first use
    stranger = make_channel(CLIENT, 3, static=STRANGER_KEY)
    stranger.start(link.now_ns)
    (message_1,) = stranger.datagrams_to_send()
    (message_2,) = answer_of(link.server, message_1, link.now_ns)
    (message_3,) = answer_of(stranger, message_2, link.now_ns)
    link.inject(SERVER, message_3)
    assert link.server.remote_static == CLIENT_KEY.public
    assert works(link)


# -- Forged handshake messages -----------------------------------------------------------


@pytest.mark.parametrize("kind", [1, 2, 3])
@pytest.mark.parametrize("length", [0, 31, 32, 95, 103, 104, 105, 1399])
def test_garbage_handshakes_do_not_stop_the_handshake(kind: int, length: int) -> None:
    rng = random.Random(length)
    link = FakeLink.pair()

    def flood(sender: Role, body: bytes) -> bytes:
        for role in Role:
            link.channels[role].receive_datagram(packet(kind, rng.randbytes(length)), link.now_ns)
        return body

    link.tamper = flood
    link.start()
    link.run(SECOND)
    link.tamper = None
    assert link.both_established()
    assert works(link)


def test_a_damaged_message_2_does_not_harm_the_initiator() -> None:
    link = FakeLink.pair()
    link.tamper = lambda sender, body: None if body[8] == ChannelKind.MESSAGE_2 else body
    link.start()
    link.run(20 * MS)
    message_2 = link.sent_of_kind(SERVER, ChannelKind.MESSAGE_2)[0]
    for position in range(9, len(message_2)):
        forged = bytearray(message_2)
        forged[position] ^= 0x80
        link.inject(CLIENT, bytes(forged))
    assert link.client.statistics.dropped[DropReason.BAD_HANDSHAKE] == HANDSHAKE_REST_BYTES
    link.tamper = None
    link.inject(CLIENT, message_2)
    link.run(SECOND)
    assert link.both_established()


def test_a_flood_of_messages_1_leaves_no_state_and_displaces_nobody() -> None:
    link = FakeLink.pair()
    link.tamper = lambda sender, body: None if body[8] == ChannelKind.MESSAGE_3 else body
    link.start()
    link.run(20 * MS)
    assert link.sent_of_kind(CLIENT, ChannelKind.MESSAGE_3)
    memory = set(vars(link.server._responder))
    for seed in range(200):
        stranger = make_channel(CLIENT, seed, static=STRANGER_KEY)
        stranger.start(link.now_ns)
        (message_1,) = stranger.datagrams_to_send()
        (answer,) = answer_of(link.server, message_1, link.now_ns)
        assert len(answer) <= len(message_1), "an answer is never larger than its cause"
    assert set(vars(link.server._responder)) == memory
    link.inject(SERVER, link.sent_of_kind(CLIENT, ChannelKind.MESSAGE_3)[0])
    assert link.server.is_established


def test_the_same_message_1_always_gets_the_same_message_2() -> None:
    link = FakeLink.pair().start()
    (message_1,) = link.sent_of_kind(CLIENT, ChannelKind.MESSAGE_1)
    answers = [answer_of(link.server, message_1, link.now_ns)[0] for _ in range(3)]
    assert len({answer[9:] for answer in answers}) == 1
    assert len({answer[:8] for answer in answers}) == 3
    link.run(SECOND)
    late = answer_of(link.server, message_1, link.now_ns)[0]
    assert late[9:] == answers[0][9:]


def test_each_copy_of_message_2_gets_message_3_until_confirmed() -> None:
    link = FakeLink.pair()
    link.tamper = lambda sender, body: None if body[8] == ChannelKind.MESSAGE_3 else body
    link.start()
    link.run(20 * MS)
    (message_2,) = link.sent_of_kind(SERVER, ChannelKind.MESSAGE_2)
    first = link.sent_of_kind(CLIENT, ChannelKind.MESSAGE_3)[0]
    (again,) = answer_of(link.client, message_2, link.now_ns)
    assert again[9:] == first[9:]
    assert again[:8] != first[:8]


def test_a_recorded_handshake_cannot_be_played_again() -> None:
    link = FakeLink.pair().establish()
    recorded = [body for sender, body in link.wire if sender is CLIENT]
    for body in recorded:
        link.inject(SERVER, body)
    assert link.server.statistics.handshakes_completed == 1
    fresh = make_channel(SERVER, 50)
    fresh.start(link.now_ns)
    for body in recorded:
        fresh.receive_datagram(body, link.now_ns)
    assert not fresh.is_established
    assert works(link)


def test_an_older_handshake_cannot_be_played_after_a_newer_one() -> None:
    """It would put dead keys in place of the living ones."""
    link = FakeLink.pair().establish()
    recorded = [body for sender, body in link.wire if sender is CLIENT]
    link.restart(CLIENT, make_channel(CLIENT, 99))
    link.run(SECOND)
    for body in recorded:
        link.inject(SERVER, body)
    assert link.server.statistics.handshakes_completed == 2
    assert works(link)


def test_small_order_ephemerals_are_refused() -> None:
    link = FakeLink.pair().start()
    link.inject(SERVER, packet(1, bytes(HANDSHAKE_REST_BYTES)))
    link.inject(CLIENT, packet(2, bytes(HANDSHAKE_REST_BYTES)))
    link.inject(SERVER, packet(3, bytes(HANDSHAKE_REST_BYTES)))
    assert link.server.statistics.dropped[DropReason.BAD_HANDSHAKE] == 2
    assert link.client.statistics.dropped[DropReason.BAD_HANDSHAKE] == 1


# -- Forged knocks -----------------------------------------------------------------------


def test_forged_knocks_cost_little_and_are_not_seen_by_the_application() -> None:
    link = FakeLink.pair().establish()
    link.run(SECOND)
    sent = link.client.statistics.packets_sent
    for _ in range(1000):
        link.inject(CLIENT, packet(ChannelKind.KNOCK))
        link.run(20 * MS)
    assert link.client.statistics.packets_sent - sent <= 5 * 4
    assert link.client.statistics.handshakes_completed > 1
    assert len(link.completions(CLIENT)) == len(link.completions(SERVER)) == 1
    assert works(link)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_no_datagram_is_lost_while_knocks_renew_the_keys(seed: int) -> None:
    link = FakeLink.pair(seed=seed).establish()
    link.run(6 * SECOND)
    link.inject(CLIENT, packet(ChannelKind.KNOCK))
    for index in range(40):
        for role in Role:
            link.send(role, b"%d" % index)
        link.run(link.random.randrange(5 * MS))
    link.run(SECOND)
    assert link.client.statistics.handshakes_completed == 2
    for role in Role:
        assert link.received(role) == [b"%d" % index for index in range(40)]


def test_an_unanswered_knock_costs_the_keys_nothing() -> None:
    link = FakeLink.pair().establish()
    link.run(6 * SECOND)
    link.tamper = lambda sender, body: None if body[8] == ChannelKind.MESSAGE_1 else body
    link.inject(CLIENT, packet(ChannelKind.KNOCK))
    link.run(40 * SECOND)
    assert link.client.get_timer() is None
    link.tamper = None
    assert works(link)


def test_a_renewal_whose_confirmations_are_lost_heals() -> None:
    """The server has the new keys, the client never heard of it: both directions must go on."""
    link = FakeLink.pair().establish()
    link.run(6 * SECOND)
    link.tamper = lambda sender, body: (
        None if sender is SERVER and body[8] != ChannelKind.MESSAGE_2 else body
    )
    link.inject(CLIENT, packet(ChannelKind.KNOCK))
    link.run(60 * SECOND)
    assert link.server.statistics.handshakes_completed == 2
    assert link.client.statistics.handshakes_completed == 1
    link.tamper = None
    assert works(link)
    assert works(link)


# -- Transport ---------------------------------------------------------------------------


def test_a_replayed_packet_is_dropped() -> None:
    link = FakeLink.pair().establish()
    link.send(CLIENT, b"once")
    link.run(SECOND)
    (body,) = link.sent_of_kind(CLIENT, ChannelKind.DATA)
    for _ in range(3):
        link.inject(SERVER, body)
    assert link.received(SERVER) == [b"once"]
    assert link.server.statistics.dropped[DropReason.REPLAYED] == 3


def test_a_packet_behind_the_window_is_dropped() -> None:
    link = FakeLink.pair().establish()
    link.client.send(b"slow", link.now_ns)
    (slow,) = link.client.datagrams_to_send()
    for _ in range(1024):
        link.send(CLIENT, b"fast")
    link.run(SECOND)
    link.inject(SERVER, slow)
    assert link.server.statistics.dropped[DropReason.TOO_OLD] == 1


@pytest.mark.parametrize(
    "sequence", [1 << 20, 1 << 48, (1 << 62) - 1, (1 << 64) - 2, (1 << 64) - 1]
)
@pytest.mark.parametrize("kind", [4, 5, 6])
def test_a_forged_huge_sequence_does_not_blackhole(kind: int, sequence: int) -> None:
    link = FakeLink.pair().establish()
    for role in Role:
        for epoch in (0, 1, 0xFFFF):
            rest = epoch.to_bytes(2, "big") + bytes(40)
            link.inject(role, packet(kind, rest, sequence))
    assert works(link)


def test_each_byte_of_a_transport_packet_is_authenticated() -> None:
    link = FakeLink.pair().establish()
    link.client.send(b"genuine", link.now_ns)
    (body,) = link.client.datagrams_to_send()
    for position in range(len(body)):
        for bit in (0x01, 0x80):
            forged = bytearray(body)
            forged[position] ^= bit
            link.inject(SERVER, bytes(forged))
    assert link.received(SERVER) == []
    assert link.both_established()
    link.inject(SERVER, body)
    assert link.received(SERVER) == [b"genuine"]


def test_a_reflected_packet_is_dropped() -> None:
    link = FakeLink.pair().establish()
    link.send(CLIENT, b"mine")
    link.run(SECOND)
    for body in [body for sender, body in link.wire if sender is CLIENT]:
        link.inject(CLIENT, body)
    assert link.received(CLIENT) == []
    assert works(link)


def test_a_close_cannot_be_forged() -> None:
    link = FakeLink.pair().establish()
    link.send(CLIENT, b"")
    link.run(SECOND)
    data = link.sent_of_kind(CLIENT, ChannelKind.DATA)[0]
    link.inject(SERVER, data[:8] + bytes([ChannelKind.CLOSE]) + data[9:])
    link.inject(SERVER, packet(ChannelKind.CLOSE, bytes(18), 9))
    assert works(link)


def test_a_packet_of_another_session_of_the_same_peers_is_dropped() -> None:
    link, other = FakeLink.pair(seed=1).establish(), FakeLink.pair(seed=2).establish()
    other.send(CLIENT, b"elsewhere")
    link.inject(SERVER, other.sent_of_kind(CLIENT, ChannelKind.DATA)[0])
    assert link.server.statistics.dropped[DropReason.UNAUTHENTIC] == 1


GARBAGE = st.one_of(
    st.binary(max_size=200),
    st.builds(packet, st.integers(0, 8), st.binary(max_size=130), st.integers(0, (1 << 64) - 1)),
    st.builds(packet, st.integers(1, 3), st.binary(min_size=104, max_size=104)),
    st.builds(bytes, st.sampled_from([1408, 1409, 9000])),
)


@settings(max_examples=60, deadline=None)
@given(garbage=st.lists(st.tuples(st.sampled_from(list(Role)), GARBAGE), max_size=25))
def test_garbage_is_counted_and_nothing_else(garbage: list[tuple[Role, bytes]]) -> None:
    link = FakeLink.pair()
    for role, body in garbage[:3]:
        link.inject(role, body)  # before the start
    link.start()
    for role, body in garbage:
        link.inject(role, body)
        link.run(4 * MS)
    link.run(5 * SECOND)
    assert link.both_established()
    assert works(link)
    for role, body in garbage:
        link.inject(role, body)
    assert works(link)
    assert len(link.completions(CLIENT)) == len(link.completions(SERVER)) == 1


def test_a_channel_that_ended_drops_everything() -> None:
    link = FakeLink.pair().establish()
    link.send(CLIENT, b"in flight")
    link.server.close(link.now_ns)
    for _, body in list(link.wire):
        link.inject(SERVER, body)
    assert link.received(SERVER) == []
    assert link.server.statistics.dropped[DropReason.CLOSED] == len(link.wire) - 3
    assert link.server.get_timer() is None


def test_sequences_never_reach_the_rift_magic() -> None:
    link = FakeLink.pair().establish()
    link.client._next_sequence = int.from_bytes(b"RI", "big") << 48
    with pytest.raises(LocalError):
        link.client.send(b"", link.now_ns)
