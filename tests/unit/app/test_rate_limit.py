"""Properties of the limiter: fair, bounded, and no way out by flooding."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wavry_cp.app.rate_limit import RateLimiter
from wavry_peer.service.address_key import address_key

SALT = b"fixed"
steps = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from([0.0, 0.01, 0.3, 1.0, 7.0])), max_size=120
)


@settings(max_examples=80)
@given(steps, st.integers(1, 4), st.sampled_from([0.5, 1.0, 3.0]), st.integers(1, 40))
def test_no_key_ever_exceeds_its_allowance_however_full_the_table(calls, burst, rate, max_keys):
    limiter = RateLimiter(rate, burst, max_keys, salt=SALT)
    now = 0.0
    allowed = {}
    for number, later in calls:
        now += later
        key = str(number)
        if limiter.check(key, now) == 0.0:
            allowed.setdefault(key, []).append(now)
        assert len(limiter) <= max_keys
    for times in allowed.values():
        for first in range(len(times)):
            for last in range(first, len(times)):
                span = times[last] - times[first]
                assert last - first + 1 <= burst + rate * span + 1e-6


@given(steps, st.integers(1, 4), st.sampled_from([0.5, 1.0, 3.0]))
def test_retry_after_is_true(calls, burst, rate):
    limiter = RateLimiter(rate, burst, 100, salt=SALT)
    now = 0.0
    for number, later in calls:
        now += later
        wait = limiter.check(str(number), now)
        assert wait >= 0
        if wait > 0:
            assert limiter.check(str(number), now + wait * 0.98 - 1e-6) > 0
            now += wait + 1e-6
            assert limiter.check(str(number), now) == 0.0


def test_burst_then_steady_rate_without_an_edge():
    limiter = RateLimiter(10, 5, 100)
    assert [limiter.check("a", 0.0) == 0.0 for _ in range(6)] == [True] * 5 + [False]
    # A fixed window would let another burst pass just after its edge.
    passed = sum(limiter.check("a", 1.0 + index / 1000) == 0.0 for index in range(20))
    assert passed == 5


def test_full_table_does_not_lock_out_a_new_good_address():
    limiter = RateLimiter(0.1, 10, 64, salt=SALT)
    for number in range(64):
        for _ in range(10):
            limiter.check(f"bad-{number}", 0.0)
    assert len(limiter) == 64
    assert all(limiter.check(f"good-{number}", 0.0) == 0.0 for number in range(16))
    assert len(limiter) == 64


def test_flooding_with_keys_does_not_free_the_flooder():
    limiter = RateLimiter(0.1, 5, 64, salt=SALT)
    while limiter.check("attacker", 0.0) == 0.0:
        pass
    for number in range(10_000):
        limiter.check(f"flood-{number}", 0.0)
    assert limiter.check("attacker", 0.0) > 0


def test_recovered_keys_make_room():
    limiter = RateLimiter(1, 1, 8, salt=SALT)
    for number in range(8):
        assert limiter.check(f"old-{number}", 0.0) == 0.0
    for number in range(8):
        assert limiter.check(f"new-{number}", 10.0) == 0.0
        # In the table, not in a bucket: its own allowance is used up, a neighbour's is not.
        assert limiter.check(f"new-{number}", 10.0) > 0


@pytest.mark.parametrize("arguments", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-1, 1, 1)])
def test_senseless_limits_are_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        RateLimiter(*arguments)


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::ffff", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("nonsense", "unknown"),
        ("", "unknown"),
    ],
)
def test_key_of_an_address_is_what_its_holder_cannot_vary(host, key):
    assert address_key(host) == key
