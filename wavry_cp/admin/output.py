"""What a command prints, and how it ends.

Exit codes: 0 done; 1 the service refused, or something is not as it should be; 2 wrong usage;
3 a service cannot be reached; 4 not allowed (token).
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from textwrap import wrap
from typing import Any, Final, NoReturn, TypeVar

import msgspec
import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wavry_peer.protocol.errors import LocalError

__all__ = [
    "EXIT_FAILED",
    "EXIT_FORBIDDEN",
    "EXIT_UNREACHABLE",
    "EXIT_USAGE",
    "CommandError",
    "JsonOption",
    "fail",
    "moment",
    "print_json",
    "print_note",
    "print_rows",
    "run",
]

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3
EXIT_FORBIDDEN: Final = 4

PIPE_COLUMNS: Final = 240

Result = TypeVar("Result")

JsonOption = typer.Option("--json", help="Print JSON instead of a table.")


class CommandError(Exception):
    """A command cannot do what it was asked; `message` says the next step."""

    def __init__(self, message: str, *, code: str = "failed", exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = exit_code


def moment(unix_s: int | None) -> str:
    """Return an instant for people; "never" for 0."""
    if not unix_s:
        return "never"
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def print_note(text: str) -> None:
    """Print a line of progress on stderr, so that stdout holds the result alone."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def print_json(value: Any) -> None:
    """Print a value (msgspec structs included) as indented JSON on stdout."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def print_rows(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table on stdout; without rows it says so.

    Where it is wider than the terminal each row becomes a paragraph of lines ``column: text``, so
    that an id is always whole: it is there to be copied.
    """
    # A pipe has no width: ids must come out whole for grep.
    out = Console() if sys.stdout.isatty() else Console(width=PIPE_COLUMNS)
    if not rows:
        out.print(f"{title}: none")
        return
    table = Table(title=title, title_justify="left")
    needed = 1
    for column, *cells in zip(columns, *rows, strict=True):
        words = max(map(cell_len, " ".join((column, *cells)).split()))
        table.add_column(column, min_width=words)
        needed += words + 3  # a line and two spaces
    for row in rows:
        # What services answer is text, never markup: an endpoint like [fd00::1]:4500 is no style.
        table.add_row(*(Text(cell) for cell in row))
    if needed <= out.width:
        out.print(table)
        return
    out.print(title, style="italic", highlight=False)
    label = max(map(len, columns))
    for row in rows:
        out.print()
        for column, cell in zip(columns, row, strict=True):
            room = max(1, out.width - label - 2)
            lines = wrap(cell, room, break_long_words=False, break_on_hyphens=False) or [""]
            for name, line in zip((column, *[""] * len(lines)), lines, strict=False):
                out.print(Text(f"{name:{label}}  {line}"), soft_wrap=True)


def fail(error: CommandError, *, as_json: bool) -> NoReturn:
    """Print why a command failed and end with its exit code."""
    if as_json:
        print_json({"error": error.code, "message": str(error)})
    else:
        text = Text.assemble(("error: ", "red"), str(error))
        Console(stderr=True).print(text, soft_wrap=True)
    raise typer.Exit(error.exit_code)


def run(work: Callable[[], Coroutine[Any, Any, Result]], *, as_json: bool) -> Result:
    """Run the coroutine of a command; its failures become a message and an exit code."""
    try:
        return asyncio.run(work())
    except CommandError as error:
        fail(error, as_json=as_json)
    except LocalError as error:
        fail(CommandError(str(error), exit_code=EXIT_USAGE), as_json=as_json)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        fail(CommandError(what, code="file_error", exit_code=EXIT_USAGE), as_json=as_json)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
