"""The two accounts of the smoke test: thrown away, or the same ones each time from a file.

The names of deleted accounts stay taken for a year, so a check that runs every minute on a live
system should name a file: it is made at the first run and used by the next ones.
"""

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import msgspec

from wavry_cp.admin.output import EXIT_USAGE, CommandError
from wavry_peer.home.private_files import create_private, read_private

__all__ = ["SmokeAccount", "load_or_make"]


@dataclass(frozen=True, slots=True)
class SmokeAccount:
    """A user of the gateway."""

    username: str
    password: str = field(repr=False)

    @classmethod
    def invent(cls, suffix: str) -> Self:
        """Make an account that nobody has."""
        return cls(f"smoke-{secrets.token_hex(6)}-{suffix}", secrets.token_urlsafe(24))


class _AccountsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    caller: SmokeAccount
    callee: SmokeAccount


def load_or_make(path: Path | None) -> tuple[SmokeAccount, SmokeAccount]:
    """Return the caller and called user.

    Args:
        path: where they are kept (mode 0600), made if missing; None invents new ones.

    Raises:
        CommandError: the file is not one of ours (exit code 2).
        PrivateFileError: it is open to others, or cannot be read or written.
    """
    invented = _AccountsFile(SmokeAccount.invent("a"), SmokeAccount.invent("b"))
    if path is None:
        return invented.caller, invented.callee
    create_private(path, msgspec.json.encode(invented) + b"\n")
    try:
        kept = msgspec.json.decode(read_private(path) or b"", type=_AccountsFile)
    except msgspec.MsgspecError:
        raise CommandError(
            f"{path} is no accounts file of `wavryctl smoke`: name another one, or remove it",
            code="bad_accounts_file",
            exit_code=EXIT_USAGE,
        ) from None
    return kept.caller, kept.callee
