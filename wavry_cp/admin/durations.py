"""Lengths of time as a person writes them: ``90d``, ``2h``, ``30m``, ``45s``."""

import re
from typing import Final

import typer

__all__ = ["duration_s"]

_FORM: Final = re.compile(r"([0-9]{1,6})([smhd])")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def duration_s(text: str | int) -> int:
    """Return the seconds of a text like ``2h``; an option's default is seconds already.

    Raises:
        typer.BadParameter: another form.
    """
    if isinstance(text, int):
        return text
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no length of time: write it like 90d, 2h, 30m, 45s")
    return int(match[1]) * _UNIT_S[match[2]]
