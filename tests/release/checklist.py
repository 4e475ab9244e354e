"""Reads docs/checklist.md: the table there is what the release check runs."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["ChecklistError", "Line", "choose", "read_checklist"]

_HEAD: Final = ("line", "on", "it shows", "command")
_PLACES: Final = ("tree", "canary")
_CODE: Final = re.compile(r"`([^`]+)`")


class ChecklistError(Exception):
    """The checklist is not one, or a line is asked for that it does not have."""


@dataclass(frozen=True)
class Line:
    """One line of the checklist.

    Attributes:
        name: e.g. ``auth smoke``.
        on_canary: whether it needs a running system.
        shows: what it is for.
        command: for a shell.
    """

    name: str
    on_canary: bool
    shows: str
    command: str

    @property
    def file_name(self) -> str:
        """For the log of the line."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()) + ".log"


def read_checklist(path: Path) -> list[Line]:
    """The lines, in the order of the table.

    Raises:
        ChecklistError: there is no such table, or a row of it does not fit.
    """
    lines: list[Line] = []
    inside = False
    for number, text in enumerate(path.read_text().splitlines(), 1):
        cells = tuple(cell.strip() for cell in text.strip().strip("|").split("|"))
        if cells == _HEAD:
            inside = True
        elif inside and not text.startswith("|"):
            break
        elif inside and not set(text) <= set("|-: "):
            lines.append(_line(cells, f"{path}, line {number}"))
    if not lines:
        raise ChecklistError(f"{path} has no table with the columns {', '.join(_HEAD)}")
    names = [line.name for line in lines]
    if len(set(names)) != len(names):
        raise ChecklistError(f"{path} has two lines of one name")
    return lines


def _line(cells: tuple[str, ...], where: str) -> Line:
    if len(cells) != len(_HEAD):
        raise ChecklistError(f"{where}: {len(cells)} columns, {len(_HEAD)} are due")
    name, place, shows, cell = cells
    command = _CODE.fullmatch(cell)
    if command is None:
        raise ChecklistError(f"{where}: the last column must be one command in backticks")
    if place not in _PLACES:
        raise ChecklistError(f"{where}: the second column must be one of {', '.join(_PLACES)}")
    return Line(name, place == "canary", shows, command[1])


def choose(lines: list[Line], *, only: str = "", skip: str = "") -> list[Line]:
    """Some of the lines.

    Args:
        lines: of the checklist.
        only: names, separated by commas; empty for all.
        skip: names to leave out.

    Raises:
        ChecklistError: there is no such line.
    """
    known = {line.name for line in lines}
    wanted, unwanted = _names(only), _names(skip)
    if unknown := (wanted | unwanted) - known:
        raise ChecklistError(
            f"no such line: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}"
        )
    return [line for line in lines if line.name in (wanted or known) - unwanted]


def _names(text: str) -> set[str]:
    return {name.strip() for name in text.split(",")} - {""}
