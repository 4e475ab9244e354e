"""What several probes say together: patience, two thresholds, and how soon one asks again."""

import pytest

from wavry_cp.master.health.probe_outcome import ProbeOutcome
from wavry_cp.master.health.probe_session import ROUNDS, STEP_NS
from wavry_cp.master.health.probe_verdict import ProbeVerdict
from wavry_peer.protocol.relay_terms import ProbeFault

V4, V6 = "192.0.2.7:4500", "[2001:db8::7]:4500"
INTERVAL_S = 60.0
JITTER = 1.15


def good(endpoint=V4, *, sent=12, arrived=12):
    return ProbeOutcome(endpoint, None, sent=sent, arrived=arrived, rtt_ms=10.0)


def bad(endpoint=V4, fault=ProbeFault.NO_PAYLOAD, *, sent=24):
    return ProbeOutcome(endpoint, fault, "drops all", sent=sent)


def late(endpoint=V4):
    return ProbeOutcome(endpoint, ProbeFault.SILENT, "late", is_conclusive=False)


def no_route(endpoint=V6):
    return ProbeOutcome(endpoint, None, "no route", is_conclusive=False, has_route=False)


def verdict(*outcomes, endpoints=(V4,), presumed=False):
    made = ProbeVerdict(endpoints, presumed=presumed)
    for outcome in outcomes:
        made.take(outcome)
    return made


def test_a_new_relay_is_reached_when_every_endpoint_let_a_session_through():
    made = verdict(endpoints=(V4, V6))
    assert not made.reached
    made.take(good(V4))
    assert not made.reached
    made.take(good(V6))
    assert made.reached


def test_an_endpoint_that_the_master_has_no_route_to_is_not_held_against_it():
    made = verdict(good(V4), no_route(V6), endpoints=(V4, V6))
    assert made.reached
    assert made.usable() == (V4, V6)
    assert not verdict(no_route(V6), endpoints=(V6,)).reached


def test_what_a_master_before_this_one_found_holds_until_probes_say_otherwise():
    assert verdict(presumed=True).reached
    assert verdict(bad(), bad(), presumed=True).failing() == {}
    assert verdict(bad(), bad(), bad(), presumed=True).failing()


def test_one_failed_probe_says_nothing_and_three_do():
    made = verdict(good(), bad())
    assert not made.failing()
    made.take(bad())
    assert not made.failing()
    made.take(bad())
    assert V4 in made.failing()
    assert made.fault_text() == f"{V4} drops all"


def test_failing_ends_with_two_good_probes_in_a_row():
    made = verdict(good(), bad(), bad(), bad(), good(), bad(), good())
    assert made.failing()
    made.take(good())
    assert not made.failing()


def test_a_probe_that_the_master_was_late_for_counts_for_nothing():
    made = verdict(good(), bad(), bad(), late(), late(), late())
    assert not made.failing()
    made.take(bad())
    assert made.failing()


def test_only_silence_is_told_apart_from_a_relay_that_answers_and_drops():
    silent = [bad(fault=ProbeFault.SILENT, sent=0)] * 3
    assert verdict(good(), *silent).only_silent()
    assert verdict(*silent, presumed=True).only_silent()
    assert not verdict(*silent).only_silent()
    assert not verdict(good(), bad(), bad(), bad()).only_silent()
    assert not verdict(good()).only_silent()


def test_a_failing_endpoint_is_not_given_to_peers_while_another_is_good():
    made = verdict(good(V4), good(V6), *[bad(V6)] * 3, endpoints=(V4, V6))
    assert made.usable() == (V4,)


def test_loss_needs_several_probes_and_has_two_thresholds():
    assert verdict(good(arrived=6)).loss_text() == ""
    lossy = [good(arrived=9)] * 3
    made = verdict(*lossy)
    assert "25 %" in made.loss_text()
    made.take(good())
    made.take(good())
    assert made.loss_text()  # 15 %: over the lower threshold
    for _ in range(3):
        made.take(good())
    assert made.loss_text() == ""
    assert verdict(*[good(arrived=11)] * 5).loss_text() == ""


def test_a_relay_that_begins_to_drop_everything_is_found_within_two_minutes():
    made = verdict(good(), good(), good())
    # The last good probe was just before it began; a probe that finds it takes all its time.
    probe_s = (2 * 1.75 + 1.5) + ROUNDS * 0.5 + STEP_NS / 1e9
    elapsed_s = made.next_in_s(INTERVAL_S) * JITTER
    while not made.failing():
        elapsed_s += probe_s
        made.take(bad())
        if not made.failing():
            elapsed_s += made.next_in_s(INTERVAL_S) * JITTER
    assert elapsed_s < 120


@pytest.mark.parametrize("fault", [ProbeFault.SILENT, ProbeFault.UNACKNOWLEDGED])
def test_an_endpoint_that_never_answered_is_asked_more_and_more_rarely(fault):
    made, waits = verdict(), []
    for _ in range(12):
        made.take(bad(fault=fault))
        waits.append(made.next_in_s(INTERVAL_S))
    assert waits[:4] == [1, 2, 4, 8]
    assert waits[-1] == INTERVAL_S


def test_what_cannot_be_checked_is_not_asked_about_all_the_time():
    made = verdict(good(V4), no_route(V6), endpoints=(V4, V6))
    assert made.next_in_s(INTERVAL_S) == INTERVAL_S
    assert verdict(good(), late()).next_in_s(INTERVAL_S) < INTERVAL_S / 10


def test_of_a_relay_that_nobody_enrolled_only_what_was_reached_counts():
    made = ProbeVerdict((V4, V6), strict=True)
    assert made.usable() == ()
    for outcome in (good(V4), no_route(V6)):
        made.take(outcome)
    assert not made.reached
    assert made.usable() == (V4,)
