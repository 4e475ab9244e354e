import json

import pytest

from loadtest.stats import Report, Skipped, find, judge, summarise
from loadtest.table import number


def test_summary_is_median_and_range_not_mean():
    row = summarise("forward", "floor", "cpu_per_packet", "ns", [9.0, 1.0, 2.0])
    assert (row.median, row.min, row.max, row.runs) == (2.0, 1.0, 9.0, 3)


def test_even_number_of_runs_takes_the_middle_of_two():
    assert summarise("b", "c", "m", "u", [4.0, 1.0, 2.0, 100.0]).median == 3.0


def test_no_measurement_is_an_error_and_not_a_row():
    with pytest.raises(ValueError, match="no measurement"):
        summarise("b", "c", "m", "u", [])


@pytest.mark.parametrize(
    ("direction", "got", "ok"),
    [
        ("at_least", 0.7, True),
        ("at_least", 0.6999, False),
        ("at_least", 2.0, True),
        ("at_most", 0.7, True),
        ("at_most", 0.7001, False),
        ("at_most", 0.0, True),
    ],
)
def test_a_target_is_met_at_its_limit_and_on_the_good_side(direction, got, ok):
    assert judge("share", direction, 0.7, got).ok is ok


def test_target_says_what_was_wanted():
    assert judge("silence", "at_most", 300, 120.0, "ms").want == "<= 300 ms"
    assert judge("share", "at_least", 0.7, 1.0).want == ">= 0.7"


def test_find_needs_all_three_names():
    rows = [summarise("b", "c", "m", "u", [1.0]), summarise("b", "c", "n", "u", [2.0])]
    assert find(rows, "b", "c", "n") is rows[1]
    assert find(rows, "b", "x", "n") is None


def test_document_has_the_form_of_the_design():
    report = Report({"cores": 2})
    report.rows.append(summarise("b", "c", "m", "ns", [1.0, 3.0]))
    report.targets.append(judge("t", "at_most", 5, 4.0))
    report.skipped.append(Skipped(bench="b", case="d", reason="not installed"))
    assert json.loads(report.to_json()) == {
        "machine": {"cores": 2},
        "rows": [
            {
                "bench": "b",
                "case": "c",
                "metric": "m",
                "unit": "ns",
                "median": 2.0,
                "min": 1.0,
                "max": 3.0,
                "runs": 2,
            }
        ],
        "targets": [{"name": "t", "want": "<= 5", "got": 4.0, "ok": True}],
        "skipped": [{"bench": "b", "case": "d", "reason": "not installed"}],
    }


@pytest.mark.parametrize(
    ("value", "text"), [(1234567.8, "1,234,568"), (12.345, "12.3"), (0.01234, "0.0123"), (0, "0")]
)
def test_numbers_have_the_digits_they_deserve(value, text):
    assert number(value) == text
