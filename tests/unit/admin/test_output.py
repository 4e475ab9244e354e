"""Tables on a terminal of 80 columns: what is there to be copied is whole."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from wavry_cp.admin.endpoints import ServiceEndpoints
from wavry_cp.admin.output import CommandError, print_rows

SESSION = "7d9a3f0e-1c52-4f0b-8f34-0a6f5b6f9e21"
RELAY = "rly-0123456789abcdef01234567"


@pytest.fixture
def print_on_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """`print_rows` on a terminal of 80 columns; gives what is printed."""

    def printed(*arguments: Any) -> str:
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setenv("TERM", "dumb")
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        print_rows(*arguments)
        return capsys.readouterr().out

    return printed


def test_ids_are_whole_and_lines_fit(print_on_terminal: Callable[..., str]) -> None:
    columns = ("session", "users", "relay", "endpoints")
    ends = "203.0.113.7:4500, [2001:db8:aaaa:bbbb:cccc:dddd:eeee:7]:4500, 203.0.113.8:4500"
    out = print_on_terminal("Sessions", columns, [(SESSION, "alice > bob", RELAY, ends)] * 2)
    for text in (SESSION, RELAY, "[2001:db8:aaaa:bbbb:cccc:dddd:eeee:7]:4500,"):
        assert out.count(text) == 2
    assert max(map(len, out.splitlines())) <= 80


def test_a_narrow_table_stays_one(print_on_terminal: Callable[..., str]) -> None:
    row = ("user", "eve", "a reason of words " * 8)
    out = print_on_terminal("Bans", ("kind", "name", "reason"), [row])
    assert out.count("eve") == 1
    assert "┃" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("text", ["localhost:8091", "8091", "https://", "ftp://a.example"])
def test_an_address_that_is_no_url_is_named(text: str) -> None:
    endpoints = ServiceEndpoints(text, text, None, None)
    for need in (endpoints.need_gateway, endpoints.need_master):
        with pytest.raises(CommandError, match="must be like https://") as refused:
            need()
        assert refused.value.exit_code == 2
