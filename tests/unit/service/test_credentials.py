"""Which modes of a secret's file are too open, and where systemd's access lists are meant."""

from pathlib import Path

import pytest

from wavry_peer.errors import PrivateFileError
from wavry_peer.home.private_files import read_private
from wavry_peer.service.secret_files import is_open_to_others

GIVEN = {"CREDENTIALS_DIRECTORY": "/run/credentials/x.service"}
INSIDE = Path("/run/credentials/x.service/token")


@pytest.mark.parametrize(
    ("path", "mode", "environ", "is_open"),
    [
        (INSIDE, 0o100400, GIVEN, False),
        (INSIDE, 0o100440, GIVEN, False),
        (INSIDE, 0o100460, GIVEN, True),
        (INSIDE, 0o100450, GIVEN, True),
        (INSIDE, 0o100444, GIVEN, True),
        (INSIDE, 0o100440, {}, True),
        (INSIDE, 0o100440, {"CREDENTIALS_DIRECTORY": ""}, True),
        (INSIDE.parent / "sub" / "token", 0o100440, GIVEN, True),
        (INSIDE.parent / ".." / "token", 0o100440, GIVEN, True),
        (Path("/etc/token"), 0o100440, GIVEN, True),
        (Path("/etc/token"), 0o100600, GIVEN, False),
    ],
)
def test_modes(path: Path, mode: int, environ: dict[str, str], is_open: bool) -> None:
    assert is_open_to_others(path, mode, environ) == is_open


def test_password_file_of_a_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "password"
    path.write_bytes(b"correct horse battery\n")
    path.chmod(0o440)
    with pytest.raises(PrivateFileError, match="open to other users"):
        read_private(path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_private(path) == b"correct horse battery\n"
