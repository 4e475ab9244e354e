"""The end-to-end channel over a fake link: set-up, loss, any schedule, close."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.protocol.fakelink import (
    CLIENT_KEY,
    MS,
    PERFECT,
    SECOND,
    SERVER_KEY,
    SESSION_ID,
    Conditions,
    FakeLink,
    make_channel,
)

from wavry_peer.protocol.channel.channel import MAX_DATAGRAM_BYTES
from wavry_peer.protocol.channel.events import (
    ChannelClosed,
    ChannelFailed,
    ChannelLimits,
    DropReason,
    FailureReason,
    HandshakeCompleted,
)
from wavry_peer.protocol.channel.wire import ChannelKind
from wavry_peer.protocol.constants import Role
from wavry_peer.protocol.errors import LocalError

CLIENT, SERVER = Role.CLIENT, Role.SERVER


# -- Set-up ----------------------------------------------------------------------------


def test_handshake_and_data_on_a_perfect_link() -> None:
    link = FakeLink.pair().establish()
    assert link.events[CLIENT] == [HandshakeCompleted(SERVER_KEY.public)]
    assert link.events[SERVER] == [HandshakeCompleted(CLIENT_KEY.public)]
    link.send(CLIENT, b"to the server")
    link.send(SERVER, b"")
    link.run(SECOND)
    assert link.received(SERVER) == [b"to the server"]
    assert link.received(CLIENT) == [b""]
    for channel in (link.client, link.server):
        assert channel.statistics.handshakes_completed == 1
        assert channel.statistics.datagrams_received == 1
        assert sum(channel.statistics.dropped.values()) == 0
        assert channel.get_timer() is None
    assert link.client.remote_static == SERVER_KEY.public


def test_the_client_is_established_two_round_trips_after_its_start() -> None:
    link = FakeLink.pair().start()
    began_ns = link.now_ns
    link.run(SECOND, until=link.both_established)
    assert link.now_ns - began_ns == 4 * PERFECT.delay_ns


def test_wire_form() -> None:
    link = FakeLink.pair().establish()
    link.send(CLIENT, b"x" * MAX_DATAGRAM_BYTES)
    link.send(CLIENT, b"")
    bodies = [body for sender, body in link.wire if sender is CLIENT]
    assert [int.from_bytes(body[:8], "big") for body in bodies] == [1, 2, 3, 4]
    assert [body[8] for body in bodies] == [1, 3, 4, 4]
    assert MAX_DATAGRAM_BYTES == 1381
    assert [len(body) for body in bodies] == [113, 113, 1408, 27]
    assert all(not body.startswith(b"RI") for body in bodies)
    assert len(link.sent_of_kind(SERVER, ChannelKind.MESSAGE_2)[0]) == 113


def test_the_plaintext_is_not_on_the_wire() -> None:
    link = FakeLink.pair().establish()
    link.send(CLIENT, b"attack at dawn")
    for _, body in link.wire:
        assert b"attack" not in body
        assert CLIENT_KEY.public not in body
        assert SERVER_KEY.public not in body


@pytest.mark.parametrize(
    "lost_kind",
    [ChannelKind.MESSAGE_1, ChannelKind.MESSAGE_2, ChannelKind.MESSAGE_3, ChannelKind.CONFIRM],
)
@pytest.mark.parametrize("times", [1, 3])
def test_each_handshake_packet_may_be_lost(lost_kind: ChannelKind, times: int) -> None:
    lost = 0

    def lose(sender: Role, body: bytes) -> bytes | None:
        nonlocal lost
        if body[8] == lost_kind and lost < times:
            lost += 1
            return None
        return body

    link = FakeLink.pair()
    link.tamper = lose
    link.start()
    link.run(10 * SECOND, until=link.both_established)
    assert link.both_established()
    assert lost == times
    assert len(link.completions(CLIENT)) == len(link.completions(SERVER)) == 1
    assert link.client.statistics.handshake_retransmits >= 1


def test_data_of_the_server_confirms_as_well_as_a_confirm() -> None:
    link = FakeLink.pair()
    link.tamper = lambda sender, body: None if body[8] == ChannelKind.CONFIRM else body
    link.start()
    link.run(SECOND, until=lambda: link.server.is_established)
    link.send(SERVER, b"first")
    link.run(20 * MS)
    assert link.events[CLIENT][0] == HandshakeCompleted(SERVER_KEY.public)
    assert link.received(CLIENT) == [b"first"]


def test_a_late_server_is_found_at_once() -> None:
    link = FakeLink.pair()
    link.start_one(CLIENT)
    link.tamper = lambda sender, body: None
    link.run(10 * SECOND)
    link.tamper = None
    link.start_one(SERVER)
    link.run(50 * MS)
    assert link.both_established()


def test_retransmissions_back_off_and_end_at_the_deadline() -> None:
    link = FakeLink.pair()
    began_ns = link.now_ns
    sent_ms: list[int] = []

    def lose(sender: Role, body: bytes) -> None:
        if sender is CLIENT:
            sent_ms.append((link.now_ns - began_ns) // MS)

    link.tamper = lose
    link.start()
    link.run(60 * SECOND)
    assert sent_ms[:6] == [0, 250, 750, 1750, 3750, 5750]
    assert len(sent_ms) == 18
    assert sent_ms[-1] < 30_000
    for role in Role:
        assert link.events[role] == [ChannelFailed(FailureReason.HANDSHAKE_TIMEOUT)]
        assert link.channels[role].get_timer() is None
    assert link.client.statistics.handshake_retransmits == 17


def test_the_deadline_is_kept_by_the_timer_alone() -> None:
    channel = make_channel(CLIENT, 1)
    channel.start(0)
    channel.handle_timer(30 * SECOND)
    assert channel.next_event() == ChannelFailed(FailureReason.HANDSHAKE_TIMEOUT)
    assert channel.next_event() is None


def test_another_session_id_does_not_connect() -> None:
    channels = {
        CLIENT: make_channel(CLIENT, 1),
        SERVER: make_channel(SERVER, 1, session_id=SESSION_ID[::-1]),
    }
    link = FakeLink(channels).start()
    link.run(40 * SECOND)
    for role in Role:
        assert link.events[role] == [ChannelFailed(FailureReason.HANDSHAKE_TIMEOUT)]


# -- Any schedule ------------------------------------------------------------------------

CONDITIONS = st.builds(
    Conditions,
    loss=st.sampled_from([0.0, 0.1, 0.4, 0.7, 1.0]),
    duplicate=st.sampled_from([0.0, 0.2, 1.0]),
    corrupt=st.sampled_from([0.0, 0.1, 0.5]),
    jitter_ns=st.sampled_from([0, 30 * MS, 900 * MS]),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conditions=CONDITIONS, seed=st.integers(0, 1 << 32))
def test_any_schedule(conditions: Conditions, seed: int) -> None:
    limits = ChannelLimits(rekey_after_packets=20)
    link = FakeLink.pair(conditions, seed, limits).start()
    link.run(70 * SECOND, until=link.both_established)
    for role, channel in link.channels.items():
        if not channel.is_established:
            # Only a clean end at the deadline, or the other side's.
            assert link.events[role] == [ChannelFailed(FailureReason.HANDSHAKE_TIMEOUT)]
    if conditions.loss + conditions.corrupt < 0.5:
        assert link.both_established()
    sent: dict[Role, list[bytes]] = {role: [] for role in Role}
    for index in range(60):
        for role, channel in link.channels.items():
            if channel.is_established:
                data = b"%s %d" % (role.name.encode(), index)
                link.send(role, data)
                sent[role].append(data)
        link.run(5 * MS)
    link.run(5 * SECOND)
    for role, other in [(CLIENT, SERVER), (SERVER, CLIENT)]:
        received = link.received(role)
        assert len(received) == len(set(received)), "delivered twice"
        assert set(received) <= set(sent[other]), "never sent"
        if conditions.loss == conditions.corrupt == 0 and conditions.jitter_ns <= 30 * MS:
            # More jitter than that, at 20 packets an epoch, is more than one epoch ahead.
            assert sorted(received) == sorted(sent[other])
        assert len(link.completions(role)) <= 1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_nothing_is_lost_after_completion_on_a_link_that_loses_nothing(seed: int) -> None:
    """Whoever has seen HandshakeCompleted may send: the other side holds the keys."""
    link = FakeLink.pair(Conditions(duplicate=0.5, jitter_ns=600 * MS), seed).start()
    sent: dict[Role, list[bytes]] = {role: [] for role in Role}
    for index in range(200):
        link.run(20 * MS)
        for role in Role:
            if link.completions(role):
                data = b"%s %d" % (role.name.encode(), index)
                link.send(role, data)
                sent[role].append(data)
    link.run(5 * SECOND)
    assert sorted(link.received(CLIENT)) == sorted(sent[SERVER])
    assert sorted(link.received(SERVER)) == sorted(sent[CLIENT])
    assert link.client.statistics.handshakes_completed == 1
    assert link.server.statistics.handshakes_completed == 1


def test_packets_may_take_any_path() -> None:
    """Counter, keys and window are per session: a second path needs nothing new."""
    link = FakeLink.pair().establish()
    link.send(CLIENT, b"by the relay")
    link.run(SECOND)
    link.client.send(b"direct", link.now_ns)
    (body,) = link.client.datagrams_to_send()
    link.inject(SERVER, body)
    link.inject(SERVER, body)
    assert link.received(SERVER) == [b"by the relay", b"direct"]
    assert link.server.statistics.dropped[DropReason.REPLAYED] == 1


# -- Close and misuse --------------------------------------------------------------------


@pytest.mark.parametrize("closing", list(Role))
def test_close_reaches_the_peer_even_if_two_copies_are_lost(closing: Role) -> None:
    other = SERVER if closing is CLIENT else CLIENT
    link = FakeLink.pair().establish()
    closes = 0

    def lose_two(sender: Role, body: bytes) -> bytes | None:
        nonlocal closes
        closes += body[8] == ChannelKind.CLOSE
        return None if closes <= 2 else body

    link.tamper = lose_two
    link.channels[closing].close(link.now_ns)
    link.channels[closing].close(link.now_ns)
    link.flush()
    link.run(SECOND)
    assert link.events[closing][-1] == ChannelClosed(by_remote=False)
    assert link.events[other][-1] == ChannelClosed(by_remote=True)
    for channel in link.channels.values():
        assert not channel.is_established
        assert channel.get_timer() is None
        with pytest.raises(LocalError):
            channel.send(b"too late", link.now_ns)


def test_close_before_the_handshake() -> None:
    channel = make_channel(CLIENT, 1)
    channel.close()
    assert channel.next_event() == ChannelClosed(by_remote=False)
    with pytest.raises(LocalError):
        channel.start(0)


def test_keepalive_makes_no_event() -> None:
    link = FakeLink.pair().establish()
    before = list(link.events[SERVER])
    link.client.send_keepalive(link.now_ns)
    link.flush()
    link.run(SECOND)
    assert link.events[SERVER] == before
    assert sum(link.server.statistics.dropped.values()) == 0


def test_misuse_is_a_local_error() -> None:
    channel = make_channel(CLIENT, 1)
    with pytest.raises(LocalError):
        channel.send(b"too early", 0)
    channel.start(0)
    with pytest.raises(LocalError):
        channel.start(0)
    with pytest.raises(LocalError):
        make_channel(CLIENT, 1, session_id=b"short")
    link = FakeLink.pair().establish()
    with pytest.raises(LocalError):
        link.send(CLIENT, bytes(MAX_DATAGRAM_BYTES + 1))


def test_timers_called_early_do_no_harm() -> None:
    link = FakeLink.pair().start()
    for _ in range(5):
        link.client.handle_timer(link.now_ns)
        link.server.handle_timer(link.now_ns)
    link.flush()
    assert len(link.wire) == 2
