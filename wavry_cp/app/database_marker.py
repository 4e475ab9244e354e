"""A file beside the database that remembers which database its directory was used with.

A directory that was used and meets an empty or another database has lost what was in it: by a
copy of the database file alone (without its WAL), a lost volume, a slip of the hand.  The service
serves all the same, for users need it, and says so at each start until the right database is back
or a person accepts the new one by removing the marker.
"""

import contextlib
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

__all__ = ["DatabaseMarker", "FoundDatabase", "judge", "marker_path", "read_marker", "write_marker"]


class DatabaseMarker(msgspec.Struct, frozen=True):
    """What the marker file holds.

    Attributes:
        database_id: of the database; empty where it is known only that there was one.
        since_s: when the directory was first used, unix seconds.
        state: ``new`` until its database is made, so that a start that is cut off is no loss;
            ``restored`` until a service has started on the database of a backup.
    """

    database_id: str
    since_s: int
    state: Literal["new", "used", "restored"] = "used"


@dataclass(frozen=True, slots=True)
class FoundDatabase:
    """What a start found, before it made anything.

    Attributes:
        path: of the database file.
        exists: the file was there.
        is_empty: it holds no table of ours.
        used_before: another sign that the directory was used, in words; empty for none.
    """

    path: Path
    exists: bool
    is_empty: bool
    used_before: str = ""


def marker_path(database: Path) -> Path:
    """Return where the marker of a database is."""
    return database.with_name(f"{database.stem}.marker")


def read_marker(path: Path) -> DatabaseMarker | None:
    """Return the marker; None where there is none, or none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=DatabaseMarker)
    except (OSError, msgspec.MsgspecError):
        return None


def write_marker(path: Path, marker: DatabaseMarker) -> None:
    """Write the marker as a whole; a directory that cannot be written stays without."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        try:
            unfinished.write_bytes(msgspec.json.encode(marker) + b"\n")
            unfinished.chmod(0o600)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def judge(
    found: FoundDatabase, marker: DatabaseMarker | None, database_id: str, now_s: int
) -> tuple[DatabaseMarker, str]:
    """Compare what was found with the marker.

    Args:
        found: at this start.
        marker: as it was, None where there was none.
        database_id: of the database as it is now, open.
        now_s: unix seconds.

    Returns:
        The marker to keep, and a warning in words or an empty text.
    """
    name = found.path.name
    if marker is not None and marker.state != "new":
        if marker.database_id == database_id:
            return DatabaseMarker(database_id, marker.since_s), ""
        since = datetime.fromtimestamp(marker.since_s, UTC).strftime("%Y-%m-%d")
        what = "is new and empty" if found.is_empty else "is another database"
        return marker, f"{name} {what}, but its directory has been in use since {since}"
    sign = ""
    if found.is_empty and marker is None:
        if found.used_before:
            sign = f"{name} is new and empty, but {found.used_before}"
        elif found.exists:
            sign = f"{name} was brought here without anything in it"
    kept_id = "" if sign else database_id
    return DatabaseMarker(kept_id, marker.since_s if marker else now_s), sign
