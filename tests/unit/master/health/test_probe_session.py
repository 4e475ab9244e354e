"""One probe against simulated relays: what each fault is called, and how little a stranger gets."""

import random

import pytest
from support.control.simulated_relay import MS, SimulatedRelay, made_session, probed

from wavry_cp.master.health.probe_session import MAX_UNANSWERED, SIZES_BYTES
from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets, stun
from wavry_peer.protocol.relay_terms import ProbeFault


def forwards(relay):
    kinds = [(role, data) for role, data in relay.got if not stun.is_stun(data)]
    return [(role, data) for role, data in kinds if data[2] == c.PacketType.FORWARD]


def test_an_honest_relay_passes_with_all_its_datagrams_and_gets_its_slots_back():
    relay = SimulatedRelay()
    outcome = probed(relay)
    assert outcome.passed
    assert (outcome.sent, outcome.arrived) == (2 * len(SIZES_BYTES), 2 * len(SIZES_BYTES))
    assert outcome.rtt_ms == pytest.approx(10)
    assert relay.released == {c.Role.CLIENT, c.Role.SERVER}


def test_both_addresses_are_proved_before_payload_is_sent():
    relay = SimulatedRelay()
    probed(relay)
    at = [data[2] == c.PacketType.FORWARD and not stun.is_stun(data) for _, data in relay.got]
    proved = {
        role
        for role, data in relay.got[: at.index(True)]
        if not stun.is_stun(data) and packets.parse_packet(data).body.proof.cookie == b"cookie!!"
    }
    assert proved == {c.Role.CLIENT, c.Role.SERVER}


@pytest.mark.parametrize(
    ("relay", "fault", "text"),
    [
        (SimulatedRelay(answers_stun=False), ProbeFault.SILENT, "does not answer"),
        (SimulatedRelay(acks=False), ProbeFault.UNACKNOWLEDGED, "unanswered"),
        (
            SimulatedRelay(rejects=c.RejectReason.SESSION_FULL),
            ProbeFault.REFUSED,
            "SESSION_FULL",
        ),
        (
            SimulatedRelay(rejects=c.RejectReason.NOT_YET_VALID),
            ProbeFault.REFUSED,
            "NOT_YET_VALID",
        ),
        (
            SimulatedRelay(passes=lambda _role, _data: False),
            ProbeFault.NO_PAYLOAD,
            "forwards nothing",
        ),
        (
            SimulatedRelay(passes=lambda role, _data: role is c.Role.CLIENT),
            ProbeFault.ONE_WAY,
            "from server to client",
        ),
        (
            SimulatedRelay(passes=lambda _role, data: len(data) < 1000),
            ProbeFault.LARGE_LOST,
            "1200 bytes",
        ),
        (SimulatedRelay(alters=True), ProbeFault.ALTERED, "alters"),
    ],
)
def test_each_fault_is_told_apart(relay, fault, text):
    outcome = probed(relay)
    assert outcome.fault is fault
    assert text in outcome.text
    assert not outcome.passed
    assert outcome.is_conclusive


def test_one_lost_datagram_is_counted_and_no_fault():
    lost = []

    def passes(role, data):
        if not lost:
            lost.append(data)
            return False
        return True

    outcome = probed(SimulatedRelay(passes=passes))
    assert outcome.passed
    assert outcome.sent - outcome.arrived == 1


def test_heavy_loss_is_counted_over_both_directions():
    dice = random.Random(7)
    outcomes = [
        probed(SimulatedRelay(passes=lambda _role, _data: dice.random() > 0.3)) for _ in range(30)
    ]
    sent = sum(outcome.sent for outcome in outcomes)
    lost = sent - sum(outcome.arrived for outcome in outcomes)
    assert lost / sent == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize(
    ("relay", "packets_sent", "bytes_each"),
    [
        (SimulatedRelay(answers_stun=False), MAX_UNANSWERED, 48),
        # A STUN server of somebody else: it answers, and gets as many lease packets once.
        (SimulatedRelay(acks=False), 1 + MAX_UNANSWERED, 700),
    ],
)
def test_who_does_not_answer_gets_three_small_packets(relay, packets_sent, bytes_each):
    probed(relay)
    assert len(relay.got) == packets_sent
    assert all(len(data) <= bytes_each for _, data in relay.got)


@pytest.mark.parametrize("fault", [{"answers_stun": False}, {"passes": lambda *_: False}])
def test_a_master_that_was_late_itself_concludes_nothing(fault):
    outcome = probed(SimulatedRelay(**fault), late_ns=2000 * MS)
    assert not outcome.is_conclusive
    assert not outcome.passed
    assert "late" in outcome.text


def test_no_route_ends_the_probe_without_a_verdict():
    session = made_session()
    session.abandon()
    assert session.outcome is not None
    assert not session.outcome.has_route
    assert not session.outcome.is_conclusive


@pytest.mark.parametrize("seed", range(20))
def test_garbage_does_not_disturb(seed):
    dice = random.Random(seed)
    relay, session, now = SimulatedRelay(), made_session(), 0
    while session.outcome is None:
        answers = [
            answer
            for role, data in session.datagrams_to_send()
            for answer in relay.answer(role, data)
        ]
        for role, data in answers:
            now += MS
            session.receive_datagram(role, dice.randbytes(dice.randrange(0, 80)), now)
            session.receive_datagram(role, data, now)
            session.receive_datagram(role, data, now)
        if session.outcome is None and not answers:
            now = session.get_timer()
            session.handle_timer(now)
    assert session.outcome.passed
