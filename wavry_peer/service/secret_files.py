"""Files that hold secrets: whether others can read them, a service manager's credentials included.

systemd puts the credentials of a service (LoadCredential=) into a directory that nobody else may
enter.  The files in it may belong to root and be opened to the service by an access list, which
shows as a right of the group in their mode; so that right alone means nothing there.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

__all__ = ["file_mark", "is_open_to_others"]

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_DIRECTORY: Final = "CREDENTIALS_DIRECTORY"


def is_open_to_others(path: Path, mode: int, environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether users who should not can reach a secret.

    Args:
        path: of the file.
        mode: of the file, as ``st_mode``.
        environ: names the directory of the credentials.
    """
    given = environ.get(_DIRECTORY)
    allowed = stat.S_IRGRP if given and path.parent == Path(given) else 0
    return bool(mode & _OTHERS & ~allowed)


def file_mark(path: Path) -> tuple[int, ...]:
    """Return what differs when a file has changed; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
