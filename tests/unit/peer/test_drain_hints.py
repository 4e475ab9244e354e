"""Hints that a relay drains: followed at once, then more and more rarely."""

from wavry_peer.paths.drain_hints import DrainHints

SECOND = 10**9


def test_the_wait_between_two_questions_doubles_up_to_two_minutes() -> None:
    hints, now_ns, waits = DrainHints(), 50 * SECOND, []
    for _ in range(8):
        began_ns = now_ns
        while not hints.is_due(now_ns):
            now_ns += SECOND
        waits.append((now_ns - began_ns) // SECOND)
        hints.followed(now_ns)
    assert waits == [0, 4, 8, 16, 32, 64, 120, 120]


def test_a_hint_is_fresh_for_three_intervals_of_the_relay() -> None:
    hints = DrainHints()
    assert not hints.is_fresh(0)
    hints.heard(100 * SECOND)
    assert hints.is_fresh(100 * SECOND)
    assert hints.is_fresh(115 * SECOND - 1)
    assert not hints.is_fresh(115 * SECOND)
    hints.heard(116 * SECOND)
    assert hints.is_fresh(130 * SECOND)
