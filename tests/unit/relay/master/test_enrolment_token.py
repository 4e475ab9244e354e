"""The file with the token that lets a relay in: what is read of it, and what is said instead."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from wavry_relay.master.call_error import MasterCallError
from wavry_relay.master.enrolment_token import read_enrolment_token


def written(tmp_path: Path, content: bytes, mode: int = 0o600) -> Path:
    path = tmp_path / "relay.token"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("content", [b"wve_a_b", b"wve_a_b\n", b"  wve_a_b \n\n"])
def test_one_line_is_the_token(tmp_path: Path, content: bytes) -> None:
    assert read_enrolment_token(written(tmp_path, content)) == "wve_a_b"


def test_no_file_is_no_fault(tmp_path: Path) -> None:
    with capture_logs() as logs:
        assert read_enrolment_token(None) is None
        assert read_enrolment_token(tmp_path / "gone") is None
    assert logs == []


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (b"wve_secret", 0o644, "chmod 600"),
        (b"", 0o600, "one line"),
        (b"wve_secret two", 0o600, "one line"),
        ("wve_sécret".encode(), 0o600, "one line"),
        (b"x" * 257, 0o600, "one line"),
        (b"x" * 100_000, 0o600, "one line"),
    ],
)
def test_file_that_cannot_be_used_is_named_without_what_is_in_it(
    tmp_path: Path, content: bytes, mode: int, says: str
) -> None:
    path = written(tmp_path, content, mode)
    with capture_logs() as logs:
        assert read_enrolment_token(path) is None
    (line,) = logs
    assert line["event"] == "enrolment_token_unfit"
    assert says in line["cause"]
    assert "secret" not in str(line).replace(str(path), "")


def test_directory_in_its_place_is_named(tmp_path: Path) -> None:
    with capture_logs() as logs:
        assert read_enrolment_token(tmp_path) is None
    assert logs[0]["event"] == "enrolment_token_unfit"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("relay_not_enrolled", "wavryctl relays enrol"),
        ("enrolment_token_invalid", "wavryctl relays enrol"),
        ("endpoint_taken", "wavryctl relays remove"),
        ("wrong_region", "WAVRY_RELAY_REGION"),
        ("of_a_later_version", ""),
    ],
)
def test_every_refusal_that_we_know_has_its_next_step(code: str, says: str) -> None:
    step = MasterCallError("refused", 403, code).next_step
    assert says in step
    assert bool(step) == bool(says)
