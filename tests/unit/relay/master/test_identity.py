"""The state directory: identity, lock, files."""

from pathlib import Path

import pytest

from wavry_relay.identity import StateDirectory, StateError


def test_pitfall_identity_is_made_once_and_stays(tmp_path: Path) -> None:
    first = StateDirectory(tmp_path / "state").identity()
    assert StateDirectory(tmp_path / "state").identity() == first


def test_identity_file_is_private(tmp_path: Path) -> None:
    StateDirectory(tmp_path / "state").identity()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "state" / "identity.key").stat().st_mode & 0o777 == 0o600


def test_identity_that_others_can_read_is_refused(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.identity()
    (tmp_path / "identity.key").chmod(0o640)
    with pytest.raises(StateError, match="chmod 600"):
        state.identity()


def test_damaged_identity_is_refused_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    path.touch(0o600)
    with pytest.raises(StateError, match="not a relay key"):
        StateDirectory(tmp_path).identity()
    assert path.read_bytes() == b""


def test_one_relay_for_one_state_directory(tmp_path: Path) -> None:
    first, second = StateDirectory(tmp_path), StateDirectory(tmp_path)
    first.lock()
    with pytest.raises(StateError, match="another relay is running"):
        second.lock()
    first.unlock()
    second.lock()
    second.unlock()


def test_state_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="WAVRY_RELAY_STATE_DIR"):
        StateDirectory(tmp_path / "file" / "state")


def test_write_replaces_whole_files(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.write("x.json", b"one")
    state.write("x.json", b"two")
    assert (tmp_path / "x.json").read_bytes() == b"two"
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
