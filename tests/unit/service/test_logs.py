"""Logging: one JSON object a line, and addresses that name no person."""

import io
import ipaddress
import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from wavry_peer.service import logs
from wavry_peer.service.logs import mask_address
from wavry_peer.service.settings import SettingsError


@pytest.fixture(autouse=True)
def _unconfigured() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_role_level_and_time() -> None:
    stream = io.StringIO()
    logs.configure("relay", stream=stream)
    structlog.get_logger().info("session_opened", session="s-1", note="two\nlines")
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "session_opened",
        "level": "info",
        "role": "relay",
        "session": "s-1",
        "note": "two\nlines",
    }


@pytest.mark.parametrize(
    ("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1), ("ERROR", 1)]
)
def test_levels(level: str, count: int) -> None:
    stream = io.StringIO()
    logs.configure("relay", level=level, stream=stream)
    log = structlog.get_logger()
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)("event")
    assert len(lines(stream)) == count


@pytest.mark.parametrize("level", ["", "verbose", "trace", "notset", "10"])
def test_another_level_is_a_fault_of_the_settings(level: str) -> None:
    with pytest.raises(SettingsError, match="debug, info, warning, error"):
        logs.configure("relay", level=level)


def test_an_exception_stays_on_one_line() -> None:
    stream = io.StringIO()
    logs.configure("relay", stream=stream)
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        structlog.get_logger().exception("failed")
    (line,) = lines(stream)
    assert "RuntimeError: boom" in line["exception"]


def test_a_value_that_json_does_not_know_does_not_break_the_line() -> None:
    stream = io.StringIO()
    logs.configure("relay", stream=stream)
    structlog.get_logger().info("odd", value={1, 2}, raw=b"\xff")
    assert len(lines(stream)) == 1


def test_text_on_a_terminal_with_an_exception_and_without_a_warning() -> None:
    stream = Terminal()
    logs.configure("relay", stream=stream)
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        structlog.get_logger().exception("failed")
    assert "failed" in stream.getvalue()
    assert "boom" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


@pytest.mark.parametrize(
    ("host", "masked"),
    [
        ("203.0.113.77", "203.0.113.0/24"),
        ("0.0.0.0", "0.0.0.0/24"),
        ("255.255.255.255", "255.255.255.0/24"),
        ("2001:db8:1234:5678:9abc:def0:1234:5678", "2001:db8:1234::/48"),
        ("::1", "::/48"),
        ("fe80::1%eth0", "fe80::/48"),
        ("::ffff:203.0.113.77", "203.0.113.0/24"),
        ("::ffff:cb00:714d", "203.0.113.0/24"),
        ("::ffff:203.0.113.77%eth0", "203.0.113.0/24"),
    ],
)
def test_mask_address(host: str, masked: str) -> None:
    assert mask_address(host) == masked


@pytest.mark.parametrize(
    "host", ["", "localhost", "203.0.113.7:4500", "[::1]", "203.0.113", "%", "person@example.org"]
)
def test_what_is_no_address_is_not_repeated(host: str) -> None:
    assert mask_address(host) == "unknown"


@settings(deadline=None)
@given(st.ip_addresses(v=4), st.integers(0, 255))
def test_the_last_byte_of_ipv4_never_shows(address: ipaddress.IPv4Address, last: int) -> None:
    other = ipaddress.IPv4Address(address.packed[:3] + bytes([last]))
    assert mask_address(str(address)) == mask_address(str(other))
    assert mask_address(f"::ffff:{address}") == mask_address(str(address))


@settings(deadline=None)
@given(
    st.ip_addresses(v=6).filter(lambda address: address.ipv4_mapped is None),
    st.binary(min_size=10, max_size=10),
)
def test_the_last_80_bits_of_ipv6_never_show(address: ipaddress.IPv6Address, tail: bytes) -> None:
    other = ipaddress.IPv6Address(address.packed[:6] + tail)
    if other.ipv4_mapped is None:
        assert mask_address(str(address)) == mask_address(str(other))


@settings(deadline=None)
@given(st.text(max_size=20))
def test_any_text_gives_a_network_or_unknown(host: str) -> None:
    masked = mask_address(host)
    assert masked == "unknown" or ipaddress.ip_network(masked).prefixlen in (24, 48)


def test_level_changes_in_loggers_that_have_logged_before() -> None:
    stream = io.StringIO()
    logs.configure("relay", level="info", stream=stream)
    log = structlog.get_logger()
    log.info("first")
    log.debug("hidden")
    logs.set_level("debug")
    log.debug("shown")
    logs.set_level("error")
    log.warning("hidden again")
    with pytest.raises(SettingsError):
        logs.set_level("loud")
    assert [line["event"] for line in lines(stream)] == ["first", "shown"]
