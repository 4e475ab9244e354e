"""Tables on a terminal of 80 columns: what is there to be copied is whole."""

import sys

import pytest

from wavry_cp.admin.endpoints import ServiceEndpoints
from wavry_cp.admin.output import CommandError, print_rows

SESSION = "7d9a3f0e-1c52-4f0b-8f34-0a6f5b6f9e21"
RELAY = "rly-0123456789abcdef01234567"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)


@pytest.mark.usefixtures("terminal")
def test_ids_are_whole_and_lines_fit(capsys: pytest.CaptureFixture[str]) -> None:
    columns = ("session", "users", "relay", "endpoints")
    ends = "203.0.113.7:4500, [2001:db8:aaaa:bbbb:cccc:dddd:eeee:7]:4500, 203.0.113.8:4500"
    sys.stdout.isatty = lambda: True  # type: ignore[method-assign] # capsys puts its own in place
    print_rows("Sessions", columns, [(SESSION, "alice > bob", RELAY, ends)] * 2)
    out = capsys.readouterr().out
    for text in (SESSION, RELAY, "[2001:db8:aaaa:bbbb:cccc:dddd:eeee:7]:4500,"):
        assert out.count(text) == 2
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.usefixtures("terminal")
def test_a_narrow_table_stays_one(capsys: pytest.CaptureFixture[str]) -> None:
    sys.stdout.isatty = lambda: True  # type: ignore[method-assign]
    print_rows("Bans", ("kind", "name", "reason"), [("user", "eve", "a reason of words " * 8)])
    out = capsys.readouterr().out
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
