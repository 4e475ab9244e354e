"""Lets the relays of a `dev up` system in, as an operator would: a token for each."""

import os
from pathlib import Path

from wavry_cp.admin.client import ask_json
from wavry_peer.protocol.http.api import RelayList
from wavry_peer.protocol.http.relays import EnrolmentRequest, NewEnrolment

__all__ = ["enrol_relays", "token_path", "write_private"]


def token_path(directory: Path, name: str) -> Path:
    """Return where the token of a relay lies."""
    return directory / f"{name}.token"


def write_private(path: Path, line: str) -> None:
    """Make a file of one line that nobody else may read; it must not be there."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(line + "\n")


async def enrol_relays(
    directory: Path, master_url: str, admin_token: str, names: tuple[str, ...]
) -> None:
    """Write a token for each relay that the master does not know from an earlier run.

    Raises:
        CommandError: the master does not answer, or refuses.
    """
    known = await ask_json("master", master_url, "/v1/relays", RelayList, token=admin_token)
    for name in sorted(set(names) - {relay.name for relay in known.relays}):
        made = await ask_json(
            "master",
            master_url,
            "/v1/admin/enrolments",
            NewEnrolment,
            method="POST",
            token=admin_token,
            body=EnrolmentRequest(name=name, reason="wavryctl dev up"),
        )
        path = token_path(directory, name)
        path.unlink(missing_ok=True)
        write_private(path, made.token)
