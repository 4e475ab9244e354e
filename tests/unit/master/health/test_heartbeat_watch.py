"""What heartbeats show: each cause begins and ends with patience, and counters become a minute."""

import pytest

from wavry_cp.master.health.heartbeat_watch import HeartbeatWatch
from wavry_cp.master.relays.rules import RelayReport
from wavry_peer.protocol.relay_terms import DegradedCause


def report(at_s=0, **fields):
    return RelayReport(
        **{
            "at_s": at_s, "load_pct": 0.0, "active_sessions": 0, "packet_loss_pct": 0.0,
            "held_kids": (), "keyset_serial": 1, "reported": "ready", **fields,
        }
    )  # fmt: skip


def watched(*beats):
    """Causes after each (report fields, seconds that the clock is ahead)."""
    watch, seen = HeartbeatWatch(), []
    for fields, ahead_s in beats:
        watch.take(report(**fields), clock_ahead_s=ahead_s)
        seen.append(set(watch.causes))
    return seen


WELL = ({}, 0.0)


@pytest.mark.parametrize(
    ("cause", "bad", "begins", "ends"),
    [
        (DegradedCause.WORKERS, ({"workers_wanted": 4, "workers_missing": 2}, 0.0), 1, 1),
        (DegradedCause.DISK, ({"disk_failing": True}, 0.0), 1, 2),
        (DegradedCause.CLOCK, ({}, 42.0), 2, 2),
        (DegradedCause.CLOCK, ({}, -42.0), 2, 2),
        (DegradedCause.LOSS, ({"packet_loss_pct": 30.0}, 0.0), 3, 3),
    ],
)
def test_each_cause_begins_and_ends_after_its_own_number_of_heartbeats(cause, bad, begins, ends):
    seen = watched(*[bad] * begins, *[WELL] * ends)
    assert [cause in causes for causes in seen] == [
        *[False] * (begins - 1), *[True] * ends, False,
    ]  # fmt: skip


@pytest.mark.parametrize("bad", [({}, 42.0), ({"packet_loss_pct": 30.0}, 0.0)])
def test_a_single_bad_report_is_no_fault(bad):
    assert watched(bad, WELL, bad, WELL, bad) == [set()] * 5


def test_between_the_two_thresholds_nothing_changes():
    assert watched(*[({}, 12.0)] * 4)[-1] == set()
    assert watched(*[({}, 20.0)] * 2, *[({}, 12.0)] * 4)[-1] == {DegradedCause.CLOCK}
    assert watched(*[({}, 20.0)] * 2, *[({}, 7.0)] * 2)[-1] == set()


def test_a_relay_that_does_not_tell_its_clock_has_no_clock_to_be_wrong():
    watch = HeartbeatWatch()
    watch.take(report(), clock_ahead_s=None)
    assert (watch.clock_ahead_s, watch.causes) == (None, {})


def test_texts_say_how_much():
    watch = HeartbeatWatch()
    for _ in range(3):
        watch.take(
            report(workers_wanted=4, workers_missing=2, packet_loss_pct=30.0), clock_ahead_s=-42.0
        )
    text = " ".join(watch.causes.values())
    for part in ("2 of its 4 workers", "30 %", "42 s behind"):
        assert part in text


def test_rejects_are_counted_over_a_minute_and_a_new_process_begins_again():
    watch = HeartbeatWatch()
    for at_s, count in ((0, 100), (5, 103), (30, 103), (60, 110)):
        watch.take(report(at_s, rejects={"expired": count}), clock_ahead_s=None)
    assert watch.rejects_last_minute == {"expired": 10}
    watch.take(report(90, rejects={"expired": 110}), clock_ahead_s=None)
    assert watch.rejects_last_minute == {"expired": 7}
    watch.take(report(150, rejects={"expired": 110}), clock_ahead_s=None)
    assert watch.rejects_last_minute == {}
    watch.take(report(155, rejects={"expired": 2}), clock_ahead_s=None)
    assert watch.rejects_last_minute == {}
    watch.take(report(160, rejects={"expired": 5, "rate_limited": 1}), clock_ahead_s=None)
    assert watch.rejects_last_minute == {"expired": 3, "rate_limited": 1}
