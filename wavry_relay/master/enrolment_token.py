"""The file with the token that lets a relay in once."""

import os
from pathlib import Path
from typing import Final

import structlog

from wavry_peer.service.secret_files import is_open_to_others

__all__ = ["read_enrolment_token"]

MAX_TOKEN_BYTES: Final = 256

_log = structlog.get_logger(__name__)


def read_enrolment_token(path: Path | None) -> str | None:
    """Return the token, read anew at each attempt: it may be put there while the relay waits.

    A file that is gone is no fault: it is needed once.  One that cannot be used is logged.
    """
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(MAX_TOKEN_BYTES + 1).strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        cause = error.strerror or type(error).__name__
    else:
        if is_open_to_others(path, mode):
            cause = f"it is open to other users (mode {mode & 0o777:04o}): chmod 600 it"
        elif not 0 < len(raw) <= MAX_TOKEN_BYTES or not all(33 <= byte <= 126 for byte in raw):
            cause = "it must hold one line without spaces"
        else:
            return raw.decode("ascii")
    _log.warning(
        "enrolment_token_unfit",
        path=str(path),
        cause=cause,
        next_step="correct the file of WAVRY_RELAY_ENROLMENT_TOKEN_FILE; it is read again",
    )
    return None
