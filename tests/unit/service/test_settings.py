"""Settings: every fault at once, never a value, bounds for all sources, rows for the reference."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wavry_peer.service.settings import (
    SettingRow,
    SettingsError,
    describe,
    load,
    parse_address,
    setting,
)


@dataclasses.dataclass(frozen=True)
class Sample:
    url: str = setting("SAMPLE_URL", doc="Where the master is.")
    limit: int = setting(
        "SAMPLE_LIMIT", 10, doc="Most of them.", unit="kbit/s", minimum=1, maximum=99
    )
    share: float = setting("SAMPLE_SHARE", 0.5, doc="Part.", minimum=0, maximum=1)
    wait: float = setting("SAMPLE_WAIT", 2.0, doc="Time.", unit="s")
    strict: bool = setting("SAMPLE_STRICT", True, doc="Flag.")
    state: Path = setting("SAMPLE_STATE", Path("/var/lib/sample"), doc="Files.")
    listen: tuple[str, ...] = setting("SAMPLE_LISTEN", ("127.0.0.1:1",), doc="Addresses.")
    region: str | None = setting("SAMPLE_REGION", None, doc="Place.")
    key_file: Path | None = setting("SAMPLE_KEY_FILE", None, doc="Key.")


GOOD = {"SAMPLE_URL": "http://master"}


def read(environ: dict[str, str] | None = None, **overrides: Any) -> Sample:
    return load(Sample, {**GOOD, **(environ or {})}, **overrides)


def faults(environ: dict[str, str], **overrides: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(Sample, environ, **overrides)
    return str(caught.value).splitlines()


def test_defaults() -> None:
    assert read() == Sample(url="http://master")
    assert read().region is None


def test_every_type_is_read_from_its_text() -> None:
    environ = {
        "SAMPLE_URL": "u",
        "SAMPLE_LIMIT": "42",
        "SAMPLE_SHARE": "0.25",
        "SAMPLE_WAIT": "1e1",
        "SAMPLE_STRICT": "off",
        "SAMPLE_STATE": "/tmp/x",
        "SAMPLE_LISTEN": " 127.0.0.1:4500, [::1]:4500 ,,",
        "SAMPLE_REGION": "eu",
        "SAMPLE_KEY_FILE": "/tmp/key",
        "UNRELATED": "1",
    }
    assert load(Sample, environ) == Sample(
        url="u",
        limit=42,
        share=0.25,
        wait=10.0,
        strict=False,
        state=Path("/tmp/x"),
        listen=("127.0.0.1:4500", "[::1]:4500"),
        region="eu",
        key_file=Path("/tmp/key"),
    )


@pytest.mark.parametrize("text", ["1", "true", "YES", "On"])
def test_flag_on(text: str) -> None:
    assert read({"SAMPLE_STRICT": text}).strict is True


@pytest.mark.parametrize("text", ["0", "false", "NO", "Off", ""])
def test_flag_off(text: str) -> None:
    assert read({"SAMPLE_STRICT": text}).strict is False


def test_home_directory_in_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert read({"SAMPLE_STATE": "~/state"}).state == Path("/home/someone/state")


def test_all_faults_are_named_in_one_error_and_no_value_is() -> None:
    secret = "hunter2-value"
    lines = faults(
        {
            "SAMPLE_LIMIT": secret,
            "SAMPLE_SHARE": "1.5",
            "SAMPLE_WAIT": secret,
            "SAMPLE_STRICT": secret,
            "SAMPLE_STATE": f"~{secret}/x",
            "SAMPLE_REGION": "eu",
        }
    )
    assert lines == [
        "SAMPLE_URL must be set: Where the master is.",
        "SAMPLE_LIMIT must be a whole number",
        "SAMPLE_SHARE must be at most 1",
        "SAMPLE_WAIT must be a number",
        "SAMPLE_STRICT must be 1 or 0",
        "SAMPLE_STATE must be a path whose home directory exists",
    ]
    assert secret not in "".join(lines)


@pytest.mark.parametrize(
    ("text", "fits"), [("0", False), ("1", True), ("99", True), ("100", False)]
)
def test_bounds_hold_at_their_edges(text: str, fits: bool) -> None:
    if fits:
        assert read({"SAMPLE_LIMIT": text}).limit == int(text)
        assert read(limit=int(text)).limit == int(text)
        return
    wanted = [f"SAMPLE_LIMIT must be at {'least 1' if text == '0' else 'most 99'}"]
    assert faults({**GOOD, "SAMPLE_LIMIT": text}) == wanted
    assert faults(GOOD, limit=int(text)) == wanted


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize("variable", ["SAMPLE_SHARE", "SAMPLE_WAIT"])
def test_a_number_is_finite(variable: str, text: str) -> None:
    assert faults({**GOOD, variable: text}) == [f"{variable} must be a finite number"]


@pytest.mark.parametrize("text", ["1.0", "0x10", "ten", "1 2", "9" * 5000])
def test_what_is_not_a_whole_number(text: str) -> None:
    assert faults({**GOOD, "SAMPLE_LIMIT": text}) == ["SAMPLE_LIMIT must be a whole number"]


@pytest.mark.parametrize("text", ["", " ", "\t"])
def test_an_empty_text_counts_as_not_set(text: str) -> None:
    environ = {f"SAMPLE_{name}": text for name in ("LIMIT", "SHARE", "STATE", "REGION", "KEY_FILE")}
    assert read(environ) == Sample(url="http://master")
    assert faults({"SAMPLE_URL": text}) == ["SAMPLE_URL must be set: Where the master is."]


def test_an_empty_list_is_a_list() -> None:
    assert read({"SAMPLE_LISTEN": ""}).listen == ()


def test_overrides_win_and_none_does_not() -> None:
    environ = {"SAMPLE_LIMIT": "5"}
    assert read(environ, limit=6).limit == 6
    assert read(environ, limit=None).limit == 5
    assert read(environ, strict=False).strict is False
    assert load(Sample, {}, url="given").url == "given"


def test_an_override_hides_a_fault_of_the_environment() -> None:
    assert read({"SAMPLE_LIMIT": "nonsense"}, limit=6).limit == 6


def test_an_override_that_is_no_setting_is_the_callers_mistake() -> None:
    with pytest.raises(TypeError, match="Sample has no setting limits"):
        read(limits=6)


def test_describe() -> None:
    assert describe(Sample) == [
        SettingRow("SAMPLE_URL", "str", "required", "", "Where the master is."),
        SettingRow("SAMPLE_LIMIT", "int", "10", "kbit/s", "Most of them."),
        SettingRow("SAMPLE_SHARE", "float", "0.5", "", "Part."),
        SettingRow("SAMPLE_WAIT", "float", "2.0", "s", "Time."),
        SettingRow("SAMPLE_STRICT", "bool", "1", "", "Flag."),
        SettingRow("SAMPLE_STATE", "Path", "/var/lib/sample", "", "Files."),
        SettingRow("SAMPLE_LISTEN", "list", "127.0.0.1:1", "", "Addresses."),
        SettingRow("SAMPLE_REGION", "str", "", "", "Place."),
        SettingRow("SAMPLE_KEY_FILE", "Path", "", "", "Key."),
    ]


def test_the_default_that_is_described_is_the_default_that_is_read() -> None:
    environ = {row.variable: row.default for row in describe(Sample) if row.default != "required"}
    assert read(environ) == read()


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:4500", "127.0.0.1", 4500),
        ("0.0.0.0:0", "0.0.0.0", 0),
        ("[::1]:65535", "::1", 65535),
        ("[::]:1", "::", 1),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        ("master.example.org:8091", "master.example.org", 8091),
        ("localhost:00080", "localhost", 80),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":4500",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:+1",
        "127.0.0.1: 1",
        "127.0.0.1:1 ",
        " 127.0.0.1:1",
        "127.0.0.1:1\n",
        "127.0.0.1:4_5",
        "127.0.0.1:\N{ARABIC-INDIC DIGIT FOUR}",
        "127.0.0.1:" + "9" * 5000,
        "::1:4500",
        "::1",
        "[::1]",
        "[::1]4500",
        "[::1:4500",
        "::1]:4500",
        "[]:4500",
        "[127.0.0.1]:4500",
        "[name]:4500",
        "[[::1]]:4500",
        "a b:1",
        "http://host:1",
        "user@host:1",
    ],
)
def test_what_is_not_an_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must "):
        parse_address(text)


@settings(deadline=None)
@given(st.text(max_size=30))
def test_parse_address_raises_nothing_but_its_value_error(text: str) -> None:
    fault = ""
    try:
        host, port = parse_address(text)
    except ValueError as error:
        fault = str(error)
    if fault:
        assert fault.startswith("must ")
    else:
        assert host
        assert 0 <= port <= 65535
