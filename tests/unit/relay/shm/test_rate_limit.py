"""Rate-limit table: exact per key, bounded, and of no use to a flooder."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.relay.world import World, open_world, v4, v6

from wavry_relay.shm.address import Address, host_text
from wavry_relay.shm.layout import IP_RATE_BUCKETS, RATE_BUCKET, Region
from wavry_relay.shm.rate_limit import OVERFLOW_FACTOR, RateTable, soft_exceeded

SECOND = 1_000_000_000
START = 1000 * SECOND


def small_table(world: World, *, buckets: int = 1, per_s: int = 10, burst: int = 5) -> RateTable:
    whole = world.segment.geometry.regions["ip_rates"]
    region = Region("ip_rates", whole.offset, RATE_BUCKET.size, buckets)
    return RateTable(world.segment, region, world.engine.locks, per_s=per_s, burst=burst)


def test_pitfall_first_second_is_limited_and_later_ones_are_steady(world: World) -> None:
    table = small_table(world, per_s=10, burst=5)
    passed = [
        sum(table.allow(7, START + second * SECOND + step * SECOND // 100) for step in range(100))
        for second in range(5)
    ]
    assert passed[0] == 5 + 10 - 1 or passed[0] == 5 + 10
    assert all(count in (9, 10, 11) for count in passed[1:])


def test_burst_is_what_the_setting_says(world: World) -> None:
    table = small_table(world, per_s=10, burst=5)
    assert [table.allow(7, START) for _ in range(7)] == [True] * 5 + [False] * 2


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(st.integers(0, SECOND // 2), min_size=1, max_size=200),
    per_s=st.integers(1, 50),
    burst=st.integers(1, 20),
)
def test_no_pattern_gets_more_than_rate_and_burst(steps: list[int], per_s: int, burst: int) -> None:
    with open_world() as world:
        table = small_table(world, per_s=per_s, burst=burst)
        now_ns, passed = START, 0
        for step in steps:
            now_ns += step
            passed += table.allow(3, now_ns)
        assert passed <= burst + 1 + (now_ns - START) * per_s / SECOND


def test_keys_do_not_touch_each_other(world: World) -> None:
    table = small_table(world, buckets=1, per_s=1, burst=1)
    assert table.allow(1, START)
    assert table.allow(2, START)
    assert table.allow(3, START)
    assert not table.allow(1, START)


def test_pitfall_flood_of_keys_does_not_free_a_limited_key(world: World) -> None:
    table = small_table(world, buckets=1, per_s=1, burst=1)
    assert table.allow(1, START)
    assert not table.allow(1, START)
    for key in range(2, 500):
        table.allow(key, START + key)
    assert not table.allow(1, START + SECOND // 2)
    assert table.allow(1, START + SECOND + 1)


def test_pitfall_full_table_does_not_lock_out_good_newcomers(world: World) -> None:
    """An attacker keeps every place of the bucket limited; newcomers share the overflow word."""
    table = small_table(world, buckets=1, per_s=10, burst=1)
    let_in = 0
    for step in range(1000):  # 10 s
        now_ns = START + step * SECOND // 100
        for attacker in (1, 2, 3):
            table.allow(attacker, now_ns)
        if step % 10 == 5:
            let_in += table.allow(1000 + step, now_ns)
    assert let_in >= 90


def test_overflow_word_is_limited_too(world: World) -> None:
    table = small_table(world, buckets=1, per_s=10, burst=1)
    passed = 0
    for step in range(10_000):  # 10 s of a thousand new keys a second
        now_ns = START + step * SECOND // 1000
        for attacker in (1, 2, 3):
            table.allow(attacker, now_ns)
        passed += table.allow(1000 + step, now_ns)
    assert passed <= 10 * 10 * OVERFLOW_FACTOR * 1.5


def test_recovered_key_gives_its_place_up(world: World) -> None:
    table = small_table(world, buckets=1, per_s=10, burst=1)
    for key in (1, 2, 3):
        assert table.allow(key, START)
    later = START + SECOND
    for key in (4, 5, 6):
        assert table.allow(key, later)
        assert not table.allow(key, later)


def test_table_is_bounded(world: World) -> None:
    region = world.segment.geometry.regions["ip_rates"]
    assert region.count == IP_RATE_BUCKETS
    table = RateTable(world.segment, region, world.engine.locks, per_s=10, burst=1)
    size = world.segment.geometry.total_bytes
    for _ in range(2000):
        table.allow(int.from_bytes(os.urandom(8), "little") | 1, START)
    assert os.fstat(world.segment.fd).st_size == size


def test_networks_are_ipv4_24s_and_ipv6_48s() -> None:
    assert v6(1).network_key == v6(2).network_key
    assert host_text(*v6(1).host_key) == "2001:db8::/64"
    other = Address.from_ip(bytes.fromhex("20010db80001") + bytes(10), 1)
    assert other.network_key != v6(1).network_key
    assert v4(1).network_key == v4(2, 7, listen=1).network_key
    assert host_text(*v4(1).host_key) == "192.0.2.1/32"
    assert Address.from_ip(bytes((192, 0, 3, 1)), 1).network_key != v4(1).network_key


def test_new_limit_holds_from_the_next_packet_on(world: World) -> None:
    table = small_table(world, per_s=10, burst=5)
    assert [table.allow(7, START) for _ in range(6)] == [True] * 5 + [False]
    table.set_limit(10, 8)
    assert [table.allow(7, START) for _ in range(4)] == [True] * 3 + [False]


@pytest.mark.parametrize("key", [7, 8])
def test_pitfall_debt_of_an_old_limit_does_not_outlive_it(world: World, key: int) -> None:
    """A burst of a million at 1/s lets a key run eleven days ahead; key 8 needs one's place."""
    table = small_table(world, per_s=1, burst=1_000_000)
    for debtor in (5, 6, 7):
        for _ in range(1000):
            assert table.allow(debtor, START)
    table.set_limit(100, 10)
    for debtor in (5, 6, 7):
        assert [table.allow(debtor, START) for _ in range(3)] == [True, False, False]
    assert table.allow(key, START + SECOND)


BURST_US = 250_000


class TestGcra:
    def test_soft_word_survives_its_wrap(self) -> None:
        """A word from before a wrap of the 32-bit microseconds is a full allowance."""
        assert soft_exceeded(0x8000_0000, 5, 1000, 1000, BURST_US)[0] is False

    def test_soft_limit_at_the_wrap(self) -> None:
        top = 0xFFFF_FF00
        over, word = soft_exceeded(top, top, 1000, 100, BURST_US)
        assert not over
        over, word = soft_exceeded(word, 0x10, 1000, 100, BURST_US)
        assert not over  # 80 ms ahead, within the burst
        for _ in range(3):
            over, word = soft_exceeded(word, 0x20, 1000, 100, BURST_US)
        assert over

    def test_slow_soft_limit_is_not_taken_for_a_wrap(self) -> None:
        over, word = soft_exceeded(0, 1000, 1500, 1, BURST_US)  # 12 s at 1 kbit/s
        assert not over
        assert soft_exceeded(word, 2000, 28, 1, BURST_US)[0]


def test_a_unit_that_was_given_back_can_be_taken_again(world: World) -> None:
    table = world.tables.rates("ip_rates", per_s=1, burst=3)
    now_ns = world.now.mono_ns
    for _ in range(50):
        assert table.allow(7, now_ns)
        table.give_back(7, now_ns)
    assert [table.allow(7, now_ns) for _ in range(4)] == [True, True, True, False]
    table.give_back(8, now_ns)  # Nobody's unit: nothing changes.
    assert not table.allow(7, now_ns)
