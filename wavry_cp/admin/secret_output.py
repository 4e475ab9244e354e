"""A new secret that goes into a file: the file is there before the secret is made."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from .output import EXIT_USAGE, CommandError

__all__ = ["secret_file"]


@contextlib.contextmanager
def secret_file(output: Path | None, *, replace: bool) -> Iterator[Callable[[str], None]]:
    """Give a function that writes a new secret into `output` (mode 0600), if any.

    The file is made first: a path that cannot be written must not cost a secret that nobody has
    seen.

    Raises:
        CommandError: the file exists, and is not to be replaced.
    """
    if output is None:
        yield lambda _text: None
        return
    if output.exists() and not replace:
        raise CommandError(
            f"{output} exists: name another --output", code="file_exists", exit_code=EXIT_USAGE
        )
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def write(text: str) -> None:
        os.write(fd, text.encode() + b"\n")
        os.fsync(fd)
        unfinished.replace(output)

    try:
        yield write
    finally:
        os.close(fd)
        unfinished.unlink(missing_ok=True)
