"""Orders to a relay on this machine, over the control socket in its state directory.

One JSON object a line in, lines of JSON out; the relay's side is wavry_relay/ops/server.py.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from .output import EXIT_FORBIDDEN, EXIT_UNREACHABLE, CommandError

__all__ = ["DEFAULT_STATE_DIR", "UpgradeOutcome", "upgrade_relay"]

DEFAULT_STATE_DIR: Final = Path("/var/lib/wavry-relay")
"""As the default of WAVRY_RELAY_STATE_DIR; a test compares them."""
SOCKET_NAME: Final = "control.sock"
SILENCE_TIMEOUT_S: Final = 60.0
"""Between two lines of an upgrade; the relay gives each of its steps 45 s at most."""


class UpgradeOutcome(msgspec.Struct, frozen=True):
    """A relay that was upgraded: its new process, and the versions."""

    upgraded: bool
    pid: int
    from_version: str
    to_version: str
    workers: int


async def upgrade_relay(state_dir: Path, progress: Callable[[str], None]) -> UpgradeOutcome:
    """Let the relay replace itself by the version that is installed now.

    Args:
        state_dir: of the relay.
        progress: told each step.

    Raises:
        CommandError: no relay is there (exit code 3), it must not be asked (4), or it refuses or
            fails, and goes on as it is (1).
    """
    async for answer in _order(state_dir / SOCKET_NAME, "upgrade"):
        if "progress" in answer:
            progress(str(answer["progress"]))
        elif answer.get("upgraded"):
            return msgspec.convert(answer, UpgradeOutcome)
        else:
            code = str(answer.get("error", "upgrade_failed"))
            if code == "unknown_command":
                raise CommandError(
                    "this relay's version cannot be upgraded while it runs: drain it, stop it and "
                    "start the new version",
                    code=code,
                )
            raise CommandError(str(answer.get("message", "no reason given")), code=code)
    raise CommandError(
        "the relay closed the connection without an outcome: look at the end of its log",
        code="no_answer",
    )


async def _order(path: Path, command: str) -> AsyncIterator[dict[str, Any]]:
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except PermissionError as error:
        raise CommandError(
            f"{path} may not be used by this user: run as the relay's user or as root",
            code="forbidden",
            exit_code=EXIT_FORBIDDEN,
        ) from error
    except OSError as error:
        raise CommandError(
            f"no relay answers at {path} ({error.strerror or error}): is it running on this host, "
            "with this state directory (--state-dir)?",
            code="unreachable",
            exit_code=EXIT_UNREACHABLE,
        ) from error
    try:
        writer.write(msgspec.json.encode({"command": command}) + b"\n")
        while line := await asyncio.wait_for(reader.readline(), SILENCE_TIMEOUT_S):
            yield msgspec.json.decode(line, type=dict[str, Any])
    except TimeoutError:
        raise CommandError(
            f"the relay said nothing for {SILENCE_TIMEOUT_S:g} s: look at the end of its log",
            code="no_answer",
            exit_code=EXIT_UNREACHABLE,
        ) from None
    except ConnectionError:
        return
    except (msgspec.MsgspecError, ValueError) as error:
        raise CommandError(
            f"{path} answers something else than expected: is it a relay's, of a fitting version?",
            code="bad_answer",
        ) from error
    finally:
        writer.close()
