"""docs/checklist.md: it is read as it stands, and every command in it exists."""

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import click
import pytest
import typer
from support.paths import REPOSITORY

from tests.release.canary import app as canary_app
from tests.release.checklist import ChecklistError, Line, choose, read_checklist
from wavry_cp.admin.commands.app import app as wavryctl

CHECKLIST = REPOSITORY / "docs" / "checklist.md"
LINES = read_checklist(CHECKLIST)
HEAD = "| line | on | it shows | command |\n|---|---|---|---|\n"


def made(tmp_path: Path, *rows: str) -> Path:
    path = tmp_path / "checklist.md"
    path.write_text("# Before\n\n" + HEAD + "".join(f"{row}\n" for row in rows) + "\nafter | it\n")
    return path


def test_it_has_every_line_that_a_release_needs() -> None:
    assert [line.name for line in LINES] == [
        "format", "lint", "tests", "auth smoke", "signaling smoke", "master and relay smoke",
        "drain and recover", "logs", "metrics",
    ]  # fmt: skip
    assert [line.name for line in LINES if not line.on_canary] == ["format", "lint", "tests"]


def subcommand(app: typer.Typer, words: list[str]) -> None:
    """Raises where a command or an option of it does not exist."""
    command: click.Command = typer.main.get_command(app)
    context = command.make_context("it", words, resilient_parsing=True)
    sub = command.commands[words[0]]  # type: ignore[attr-defined]
    sub.make_context(words[0], words[1:], parent=context)


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.name)
def test_each_command_exists(line: Line) -> None:
    text = re.sub(r"\$\{(\w+):\+(.*?)\}", r"\2", line.command).replace('"$CANARY_RELAY"', "ID")
    program, *words = text.split()
    if program == "make":
        assert re.search(rf"^{words[0]}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    elif program == "wavryctl":
        subcommand(wavryctl, words)
    elif program == "python":
        assert words[:2] == ["-m", "tests.release.canary"]
        assert importlib.util.find_spec(words[1]) is not None
        subcommand(canary_app, words[2:])
    else:
        assert shutil.which(program, path=str(Path(sys.executable).parent))


def test_every_variable_and_target_of_the_page_is_used() -> None:
    page = CHECKLIST.read_text()
    directory = REPOSITORY / "tests" / "release"
    sources = "".join((directory / name).read_text() for name in ("canary.py", "check.py"))
    sources += "".join(line.command for line in LINES)
    for variable in set(re.findall(r"\bCANARY_[A-Z_]+", page)):
        assert variable in sources, variable
    makefile = (REPOSITORY / "Makefile").read_text()
    for variable in set(re.findall(r"\b([A-Z]+)=", page)):
        assert f"$({variable})" in makefile, variable


# -- Reading ---------------------------------------------------------------------------------------


def test_a_line_is_read(tmp_path: Path) -> None:
    row = "| auth smoke | canary | it shows | `wavryctl smoke --only auth` |"
    (line,) = read_checklist(made(tmp_path, row))
    command = "wavryctl smoke --only auth"
    assert line == Line("auth smoke", on_canary=True, shows="it shows", command=command)
    assert line.file_name == "auth-smoke.log"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no table"),
        (["| a | tree | b |"], "line 5: 3 columns"),
        (["| a | tree | b | make lint |"], "backticks"),
        (["| a | moon | b | `make lint` |"], "tree, canary"),
        (["| a | tree | b | `x` |", "| a | tree | b | `y` |"], "two lines of one name"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, rows: list[str], said: str) -> None:
    with pytest.raises(ChecklistError, match=re.escape(said)):
        read_checklist(made(tmp_path, *rows))


def test_lines_are_chosen_by_name() -> None:
    assert [line.name for line in choose(LINES, only="lint, format")] == ["format", "lint"]
    assert "tests" not in [line.name for line in choose(LINES, skip="tests")]
    with pytest.raises(ChecklistError, match="no such line: tets"):
        choose(LINES, skip="tets")
