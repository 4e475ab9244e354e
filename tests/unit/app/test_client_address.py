"""X-Forwarded-For is believed from the right, and only from trusted proxies."""

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from wavry_cp.app.http import client_address, is_within, parse_networks

TRUSTED = parse_networks(["10.0.0.0/8", "fd00::/8"])


def seen(remote, *forwarded, trusted=TRUSTED):
    headers = CIMultiDict([("X-Forwarded-For", value) for value in forwarded])
    request = make_mocked_request("GET", "/", headers=headers).clone(remote=remote)
    return client_address(request, trusted)


@pytest.mark.parametrize(
    ("remote", "forwarded", "client"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.1"], "192.0.2.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["203.0.113.9, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["203.0.113.9", "198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["rubbish"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, rubbish, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["198.51.100.1:1234"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8::1]:1234"], "2001:db8::1"),
        ("fd00::1", ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("", ["198.51.100.1"], "unknown"),
    ],
)
def test_client_is_the_first_untrusted_from_the_right(remote, forwarded, client):
    assert seen(remote, *forwarded) == client


@given(st.text(max_size=60))
def test_a_stranger_cannot_choose_his_address(text):
    value = text.replace("\r", "").replace("\n", "")
    assert seen("192.0.2.1", value) == "192.0.2.1"
    assert seen("10.0.0.1", f"{value}, 192.0.2.1") == "192.0.2.1"


def test_without_trusted_proxies_the_header_means_nothing():
    assert seen("10.0.0.1", "198.51.100.1", trusted=()) == "10.0.0.1"
    assert not is_within("rubbish", TRUSTED)
