"""Path cookies."""

import os

import pytest
from support.relay.world import v4, v6

from wavry_relay.engine.cookie import PathCookies
from wavry_relay.shm.address import Address

SECOND = 1_000_000_000
SESSION = bytes(range(16))
COOKIES = PathCookies(b"k" * 32)
NOW = 600 * SECOND


def test_cookie_lives_for_this_slot_and_the_next() -> None:
    cookie = COOKIES.make(SESSION, v4(1), NOW)
    assert len(cookie) == 8
    assert COOKIES.is_good(cookie, SESSION, v4(1), NOW)
    assert COOKIES.is_good(cookie, SESSION, v4(1), NOW + 59 * SECOND)
    assert not COOKIES.is_good(cookie, SESSION, v4(1), NOW + 60 * SECOND)


def test_cookie_of_the_future_is_refused() -> None:
    cookie = COOKIES.make(SESSION, v4(1), NOW + 30 * SECOND)
    assert not COOKIES.is_good(cookie, SESSION, v4(1), NOW)


@pytest.mark.parametrize(
    "address", [v4(2), v4(1, 5001), v6(1), v4(1, listen=1), v6(1, scope=2)], ids=repr
)
def test_cookie_is_for_one_address(address: Address) -> None:
    cookie = COOKIES.make(SESSION, v4(1), NOW)
    assert not COOKIES.is_good(cookie, SESSION, address, NOW)


def test_cookie_is_for_one_session_and_one_key() -> None:
    cookie = COOKIES.make(SESSION, v4(1), NOW)
    assert not COOKIES.is_good(cookie, os.urandom(16), v4(1), NOW)
    assert not PathCookies(b"j" * 32).is_good(cookie, SESSION, v4(1), NOW)
    assert not COOKIES.is_good(bytes(8), SESSION, v4(1), NOW)


def test_first_slot_after_boot() -> None:
    cookie = COOKIES.make(SESSION, v4(1), 0)
    assert COOKIES.is_good(cookie, SESSION, v4(1), SECOND)
