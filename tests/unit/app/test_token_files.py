"""Token files with two lines, and a service that goes on while they change."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from wavry_cp.admin.endpoints import find_endpoints
from wavry_cp.app.token_files import TokenFile, TokenFileError, require_different
from wavry_peer.service.settings import SettingsError

OLD, NEW, OTHER = "o" * 32, "n" * 32, "x" * 32


class Rotating:
    """A token file and the clock of who reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now_s = 100.0
        self.write(OLD)
        self.tokens = TokenFile(path, "service", monotonic_s=lambda: self.now_s)

    def write(self, *lines: str, mode: int = 0o600) -> None:
        unfinished = self.path.with_suffix(".new")
        unfinished.write_text("".join(f"{line}\n" for line in lines))
        unfinished.chmod(mode)
        unfinished.replace(self.path)
        self.now_s = getattr(self, "now_s", 0.0) + 1.0

    def valid(self) -> list[str]:
        return [token for token in (OLD, NEW, OTHER) if self.tokens.matches(token)]


@pytest.fixture
def rotating(tmp_path: Path) -> Rotating:
    return Rotating(tmp_path / "token")


def test_token_is_replaced_with_an_overlap_and_without_a_restart(rotating: Rotating) -> None:
    assert rotating.valid() == [OLD]
    rotating.write(OLD, NEW)
    assert rotating.valid() == [OLD, NEW]
    assert rotating.tokens.token == OLD, "a client sends the first line"
    rotating.write(NEW, OLD)
    assert rotating.tokens.token == NEW
    assert rotating.valid() == [OLD, NEW]
    rotating.write(NEW)
    assert rotating.valid() == [NEW]


def test_file_is_not_read_for_each_question(rotating: Rotating) -> None:
    rotating.write(NEW)
    rotating.now_s -= 0.5
    assert rotating.valid() == [OLD]
    rotating.now_s += 0.5
    assert rotating.valid() == [NEW]


@pytest.mark.parametrize(
    ("lines", "mode"),
    [((), 0o600), ((OLD, NEW, OTHER), 0o600), ((NEW, "short"), 0o600), ((NEW,), 0o644)],
)
def test_unfit_file_changes_nothing_and_is_told_once(
    rotating: Rotating, lines: tuple[str, ...], mode: int
) -> None:
    rotating.write(*lines, mode=mode)
    with capture_logs() as lines_of_log:
        for _ in range(3):
            assert rotating.valid() == [OLD]
            rotating.now_s += 1
    assert [line["event"] for line in lines_of_log] == ["token_file_refused"]
    assert not any(token in str(lines_of_log) for token in (OLD, NEW, OTHER))
    rotating.write(NEW)
    assert rotating.valid() == [NEW]


def test_file_that_vanished_keeps_its_tokens(rotating: Rotating) -> None:
    rotating.path.unlink()
    rotating.now_s += 1
    assert rotating.valid() == [OLD]


def test_service_and_admin_share_no_token_in_either_line(tmp_path: Path) -> None:
    service, admin = Rotating(tmp_path / "service"), Rotating(tmp_path / "admin")
    service.write(NEW, OTHER)
    admin.write(OLD, OTHER)
    with pytest.raises(SettingsError, match="different tokens"):
        require_different(service.tokens, admin.tokens, ("SERVICE", "ADMIN"))
    admin.write(OLD)
    require_different(service.tokens, admin.tokens, ("SERVICE", "ADMIN"))


def test_message_names_setting_and_file(tmp_path: Path) -> None:
    with pytest.raises(TokenFileError, match=r"service token file WAVRY_X .*none: No such file"):
        TokenFile(tmp_path / "none", "service", "WAVRY_X")


def test_wavryctl_sends_the_first_line(rotating: Rotating) -> None:
    rotating.write(NEW, OLD)
    assert find_endpoints({"WAVRY_ADMIN_TOKEN_FILE": str(rotating.path)}).admin_token() == NEW
