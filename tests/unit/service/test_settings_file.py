"""A settings file below the environment: its form, its place, its faults."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from wavry_peer.service.settings import (
    SettingsError,
    describe,
    differing,
    is_live,
    load_layers,
    load_one,
    setting,
    unknown_variables,
    values_of,
    variable_of,
    variables_of,
)


@dataclasses.dataclass(frozen=True)
class Sample:
    limit: int = setting("SAMPLE_LIMIT", 10, doc="Most.", minimum=1, maximum=99, live=True)
    region: str | None = setting("SAMPLE_REGION", None, doc="Place.")
    strict: bool = setting("SAMPLE_STRICT", default=False, doc="Flag.")
    file: Path | None = setting("SAMPLE_FILE", None, doc="More settings.")


@dataclasses.dataclass(frozen=True)
class Needing:
    name: str = setting("SAMPLE_NAME", doc="Name.")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sample.conf"


def read(path: Path | None, environ: dict[str, str] | None = None, **overrides: Any) -> Sample:
    named = {"SAMPLE_FILE": str(path)} if path else {}
    return load_layers(Sample, {**named, **(environ or {})}, file_field="file", **overrides)


def faults(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SettingsError) as caught:
        read(path)
    return str(caught.value)


def test_one_setting_alone_needs_no_other(path: Path) -> None:
    path.write_text("SAMPLE_REGION=east\nSAMPLE_LIMIT=7\n")
    named = {"SAMPLE_FILE": str(path), "SAMPLE_STRICT": "nonsense"}
    assert load_one(Sample, named, "limit", file_field="file") == 7
    assert load_one(Sample, named | {"SAMPLE_LIMIT": "8"}, "limit", file_field="file") == 8
    assert load_one(Sample, named, "limit") == 10, "the file was not asked for"
    with pytest.raises(SettingsError, match="SAMPLE_LIMIT must be at most 99"):
        load_one(Sample, {"SAMPLE_LIMIT": "100"}, "limit")
    with pytest.raises(SettingsError, match="SAMPLE_NAME must be set"):
        load_one(Needing, {}, "name")


def test_form_of_an_environment_file(path: Path) -> None:
    path.write_text(
        '# a comment\n; another\n\n  SAMPLE_LIMIT = 42  \nSAMPLE_REGION="eu \\"west\\" # 1"\n'
        "SAMPLE_STRICT='1'\n"
    )
    assert read(path) == Sample(42, 'eu "west" # 1', strict=True, file=path)


def test_last_of_two_equal_names_wins(path: Path) -> None:
    path.write_text("SAMPLE_LIMIT=1\nSAMPLE_LIMIT=2\n")
    assert read(path).limit == 2


def test_command_line_wins_over_environment_wins_over_file_wins_over_default(path: Path) -> None:
    assert read(None).limit == 10
    path.write_text("SAMPLE_LIMIT=20\n")
    assert read(path).limit == 20
    assert read(path, {"SAMPLE_LIMIT": "30"}).limit == 30
    assert read(path, {"SAMPLE_LIMIT": "30"}, limit=40).limit == 40


def test_empty_variable_does_not_hide_the_file(path: Path) -> None:
    path.write_text("SAMPLE_LIMIT=20\n")
    assert read(path, {"SAMPLE_LIMIT": ""}).limit == 20


def test_file_may_be_named_on_the_command_line(path: Path) -> None:
    path.write_text("SAMPLE_LIMIT=20\n")
    assert read(None, file=path) == Sample(20, file=path)


def test_without_a_file_nothing_changes() -> None:
    assert read(None, {"SAMPLE_LIMIT": "3"}) == Sample(3)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("SAMPLE_LIMITS=1", "SAMPLE_LIMITS is not a setting"),
        ("PATH=/bin", "PATH is not a setting"),
        ("SAMPLE_FILE=/other", "SAMPLE_FILE is not a setting"),
        ("hunter2", "must be NAME=value or a comment"),
        ("my secret hunter2=1", "must be NAME=value or a comment"),
        ("SAMPLE_REGION=hunter2\\", "SAMPLE_REGION must stand on one line"),
        ("SAMPLE_REGION='hunter2", "SAMPLE_REGION has a quote that does not end"),
        ("SAMPLE_REGION='", "SAMPLE_REGION has a quote that does not end"),
    ],
)
def test_faults_name_the_line_and_never_the_value(path: Path, line: str, fault: str) -> None:
    text = faults(path, f"SAMPLE_LIMIT=1\n# comment\n{line}\n")
    assert f"{path}, line 3: {fault}" in text
    assert "hunter2" not in text


def test_all_faulty_lines_are_named(path: Path) -> None:
    assert len(faults(path, "A=1\nB=2\n").splitlines()) == 2


def test_value_that_does_not_fit_is_named_without_it(path: Path) -> None:
    assert faults(path, "SAMPLE_LIMIT=hunter2\n") == "SAMPLE_LIMIT must be a whole number"


def test_files_that_cannot_be_read(path: Path) -> None:
    with pytest.raises(SettingsError, match="is not there"):
        read(path)
    assert "not UTF-8" in faults(path, b"SAMPLE_REGION=\xff\n")
    assert "more than" in faults(path, "#" * 70_000)


def test_pitfall_a_pipe_does_not_stop_the_role(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(SettingsError, match="no regular file"):
        read(path)


def test_live_marks() -> None:
    assert [row.live for row in describe(Sample)] == [True, False, False, False]
    assert is_live(Sample, "limit")
    assert not is_live(Sample, "region")
    assert variable_of(Sample, "limit") == "SAMPLE_LIMIT"
    assert differing(Sample(1, "a"), Sample(2, "b", strict=False)) == ("limit", "region")


# -- TOML --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RelayLike:
    listen: tuple[str, ...] = setting("WAVRY_RELAY_LISTEN", (), doc="Where.")
    workers: int = setting("WAVRY_RELAY_WORKERS", 0, doc="How many.")
    strict: bool = setting("WAVRY_RELAY_STRICT", default=True, doc="Flag.")
    poll_s: float = setting("WAVRY_RELAY_POLL_S", 1.0, doc="How often.")
    level: str = setting("WAVRY_LOG_LEVEL", "info", doc="Level.")
    settings_file: Path | None = setting("WAVRY_RELAY_SETTINGS_FILE", None, doc="File.")


def read_toml(path: Path, text: str, environ: dict[str, str] | None = None) -> RelayLike:
    path.write_text(text)
    return load_layers(RelayLike, environ or {}, file_field="settings_file", settings_file=path)


def test_toml_has_short_names_and_its_own_types(tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    text = (
        '# a comment\nlisten = ["192.0.2.7:1", "[::1]:2"]\nworkers = 3\nstrict = false\n'
        'poll_s = 0.5\nlog_level = "debug"\n'
    )
    assert read_toml(path, text) == RelayLike(
        ("192.0.2.7:1", "[::1]:2"), 3, strict=False, poll_s=0.5, level="debug", settings_file=path
    )
    assert read_toml(path, 'WAVRY_RELAY_WORKERS = "4"\n').workers == 4
    assert read_toml(path, "workers = 3\n", {"WAVRY_RELAY_WORKERS": "9"}).workers == 9
    assert load_one(
        RelayLike, {"WAVRY_RELAY_SETTINGS_FILE": str(path)}, "workers", file_field="settings_file"
    ) == 3  # fmt: skip


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("worker = 3", "worker is not a setting that this file may have; is workers meant?"),
        ("settings_file = '/x'", "settings_file is not a setting that this file may have"),
        ("PATH = '/bin'", "PATH is not a setting that this file may have"),
        ("[relay]\nworkers = 3", "relay must be a text, a number, true, false or a list of texts"),
        ("workers = [1]", "workers must be a text"),
        ("workers = 1979-05-27", "workers must be a text"),
        ("workers 3", "is not TOML"),
        ("workers = 'many'", "WAVRY_RELAY_WORKERS must be a whole number"),
    ],
)
def test_faults_of_toml_are_named(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_toml(tmp_path / "relay.toml", text)
    assert fault in str(caught.value)


def test_unknown_line_of_an_environment_file_names_the_nearest(path: Path) -> None:
    assert "SAMPLE_LIMITS is not a setting that this file may have; is SAMPLE_LIMIT meant?" in (
        faults(path, "SAMPLE_LIMITS=1\n")
    )


# -- Where values come from, and names that nobody reads -------------------------------------------


def test_each_value_has_its_source(path: Path) -> None:
    path.write_text("SAMPLE_LIMIT=20\nSAMPLE_REGION=east\n")
    environ = {"SAMPLE_REGION": "west", "SAMPLE_FILE": str(path)}
    config = load_layers(Sample, environ, file_field="file", strict=True)
    found = values_of(config, environ, file_field="file", strict=True)
    assert [(row.variable, row.value, row.source) for row in found] == [
        ("SAMPLE_LIMIT", "20", "file"),
        ("SAMPLE_REGION", "west", "environment"),
        ("SAMPLE_STRICT", "1", "command line"),
        ("SAMPLE_FILE", str(path), "environment"),
    ]
    assert {row.source for row in values_of(Sample(), {}, file_field="file")} == {"default"}


def test_variables_that_nobody_reads_are_found_with_the_nearest_name() -> None:
    environ = {
        "WAVRY_RELAY_WORKER": "2",
        "WAVRY_REALY_LISTEN": "x",
        "WAVRY_LOGLEVEL": "debug",
        "WAVRY_QUITE_SOMETHING_ELSE": "1",
        # Read here, or by others, or not ours.
        "WAVRY_RELAY_LISTEN": "x",
        "WAVRY_LOG_LEVEL": "info",
        "WAVRY_MASTER_LISTN": "left to the master",
        "WAVRY_GATEWAY_URL": "https://gateway.example",
        "WAVRY_PEER_HOME": "/root",
        "PATH": "/bin",
    }
    assert unknown_variables(variables_of(RelayLike), environ) == {
        "WAVRY_LOGLEVEL": "WAVRY_LOG_LEVEL",
        "WAVRY_QUITE_SOMETHING_ELSE": "",
        "WAVRY_REALY_LISTEN": "WAVRY_RELAY_LISTEN",
        "WAVRY_RELAY_WORKER": "WAVRY_RELAY_WORKERS",
    }
    of_a_command = ("WAVRY_GATEWAY_URL", "WAVRY_ALLOW_HTTP")
    assert unknown_variables(
        of_a_command, {"WAVRY_GATEWAY_LISTEN": "x", "WAVRY_ALOW_HTTP": "1"}
    ) == {"WAVRY_ALOW_HTTP": "WAVRY_ALLOW_HTTP"}
