"""The promises of the forward table: each ratio, from numbers that are known."""

import pytest

from loadtest.measures.comparison import BENCH, compare_forward
from loadtest.measures.forward import ForwardCase
from loadtest.stats import Report

RELAY = "relay-native"


def costs(single=2.0, offload=1.0, many=2.0, slow=1.0):
    """Two repetitions of all cases; the second is `slow` times as slow for everybody."""

    def twice(**by_subject):
        return {name.replace("_", "-"): [cost, cost * slow] for name, cost in by_subject.items()}

    bare = {"floor_plain": 3.0, "floor_mmsg": 2.0, "floor_gso": 2.5}
    trains = {"floor_plain": 3.0, "floor_mmsg": 2.0, "floor_gso": 1.0}
    others = {"coturn": 8.0, "uvloop_relay": 10.0}
    return {
        ForwardCase(1, gso=False, sessions=64): twice(relay_native=single, **bare, **others),
        ForwardCase(16, gso=True, sessions=64): twice(relay_native=offload, **trains, **others),
        ForwardCase(48, gso=True, sessions=64): twice(relay_native=offload, **trains, **others),
        ForwardCase(1, gso=False, sessions=65536): twice(relay_native=many, **bare),
        ForwardCase(16, gso=True, sessions=65536): twice(relay_native=offload, **trains),
    }


def compared(measured, bursts=(1, 4, 16, 48)):
    report = Report({})
    compare_forward(report, measured, subject=RELAY, sessions=64, largest=65536, bursts=bursts)
    return report


def test_every_promise_of_the_forward_table_is_judged():
    got = {
        target.name: (target.want, target.got, target.ok) for target in compared(costs()).targets
    }
    assert got == {
        "relay-native cost at burst 1 per cheapest bare C forwarder": ("<= 1.15 times", 1, True),
        "relay-native cost at burst 16 per bare C forwarder with GRO and GSO": (
            "<= 1.3 times",
            1,
            True,
        ),
        "relay-native cost at burst 48 per bare C forwarder with GRO and GSO": (
            "<= 1.3 times",
            1,
            True,
        ),
        "coturn cost at burst 1 per relay-native": (">= 1.5 times", 4, True),
        "coturn cost at burst 16 per relay-native": (">= 8 times", 8, True),
        "uvloop-relay cost at burst 16 per relay-native": (">= 8 times", 10, True),
        "relay-native cost at 65536 sessions per that at 64, burst 1": ("<= 1.5 times", 1, True),
        "relay-native cost at 65536 sessions per that at 64, burst 16": ("<= 1.5 times", 1, True),
    }


@pytest.mark.parametrize(
    ("changed", "broken"),
    [
        ({"single": 2.4}, "relay-native cost at burst 1 per cheapest bare C forwarder"),
        ({"many": 3.2}, "relay-native cost at 65536 sessions per that at 64, burst 1"),
        ({"offload": 1.2}, "coturn cost at burst 16 per relay-native"),
    ],
)
def test_broken_promise_is_missed(changed, broken):
    assert [one.name for one in compared(costs(**changed)).targets if not one.ok] == [broken]


def test_machine_that_slows_down_breaks_no_promise():
    assert all(target.ok for target in compared(costs(slow=3.0)).targets)


def test_relay_against_uvloop_is_promised_where_packets_come_in_bursts():
    report = compared(costs())
    rows = {row.case: row.median for row in report.rows}
    assert rows["uvloop-relay cost at burst 16 per relay-native"] == 10
    promised = {target.name for target in report.targets}
    assert "uvloop-relay cost at burst 16 per relay-native" in promised
    assert "uvloop-relay cost at burst 1 per relay-native" not in promised


def test_comparison_without_its_other_side_is_said_to_be_missing():
    measured = costs()
    for by_subject in measured.values():
        by_subject.pop("coturn", None)
    report = compared(measured)
    assert {(one.bench, one.case) for one in report.skipped} == {
        (BENCH, "coturn cost at burst 1 per relay-native"),
        (BENCH, "coturn cost at burst 16 per relay-native"),
    }
    assert not any("coturn" in target.name for target in report.targets)
