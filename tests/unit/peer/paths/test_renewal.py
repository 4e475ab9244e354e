"""When a lease is renewed: fake clock, no I/O."""

import random

from hypothesis import given
from hypothesis import strategies as st

from wavry_peer.paths.own_lease import OwnLease
from wavry_peer.paths.renewal import RenewalSchedule

SECOND = 1_000_000_000
NOW = 77 * SECOND


def lease(now_ns: int = NOW, ttl_s: int = 300) -> OwnLease:
    return OwnLease(b"t", "jti", "rly", 1_750_000_000_000, 1_750_000_000_000 + ttl_s * 1000, now_ns)


@given(st.floats(0, 1, exclude_max=True), st.sampled_from([60, 300, 900]))
def test_due_at_80_percent_and_a_little_later(random_value: float, ttl_s: int) -> None:
    renewal = RenewalSchedule(lease(ttl_s=ttl_s), lambda: random_value)
    fraction = (renewal.due_ns - NOW) / (ttl_s * SECOND)
    assert 0.80 <= fraction <= 0.82


def test_sessions_that_began_together_do_not_renew_together() -> None:
    dice = random.Random(1)
    dues = {RenewalSchedule(lease(), dice.random).due_ns // SECOND for _ in range(100)}
    assert len(dues) >= 5


@given(st.integers(0, 2**32))
def test_fails_on_and_on_with_growing_waits_until_the_end(seed: int) -> None:
    renewal = RenewalSchedule(lease(), random.Random(seed).random)
    tries = 0
    now_ns = renewal.due_ns
    waits = []
    while not renewal.is_expired(now_ns):
        renewal.failed(now_ns)
        waits.append(renewal.due_ns - now_ns)
        now_ns = renewal.due_ns
        tries += 1
    assert 8 <= tries <= 200
    assert waits[0] <= SECOND
    assert max(waits) <= 15 * SECOND
    assert renewal.expires_ns - (now_ns - waits[-1]) < SECOND, "still trying at the very end"


def test_success_begins_a_new_schedule() -> None:
    renewal = RenewalSchedule(lease(), lambda: 0.0)
    renewal.failed(NOW + 240 * SECOND)
    renewal.restart(lease(NOW + 241 * SECOND))
    assert renewal.due_ns == NOW + (241 + 240) * SECOND
    assert renewal.expires_ns == NOW + 541 * SECOND


def test_the_gateways_wish_to_wait_is_respected() -> None:
    renewal = RenewalSchedule(lease(), lambda: 0.0)
    renewal.failed(NOW + 240 * SECOND, retry_after_s=20)
    assert renewal.due_ns == NOW + 260 * SECOND


def test_a_hint_makes_it_due_at_once_and_never_later() -> None:
    renewal = RenewalSchedule(lease(), lambda: 0.0)
    renewal.hasten(NOW + 5 * SECOND)
    assert renewal.due_ns == NOW + 5 * SECOND
    renewal.hasten(NOW + 50 * SECOND)
    assert renewal.due_ns == NOW + 5 * SECOND


def test_a_wrong_wall_clock_does_no_harm() -> None:
    # Issued, by the master's clock, 50 years from our time: only its length counts.
    ancient = OwnLease(b"t", "j", "r", 0, 300_000, NOW)
    assert RenewalSchedule(ancient, lambda: 0.0).due_ns == NOW + 240 * SECOND
