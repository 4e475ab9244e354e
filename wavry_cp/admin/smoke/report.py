"""What a step of the smoke test found, and how the whole of it ends."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from wavry_cp.admin.output import EXIT_FAILED, EXIT_FORBIDDEN, EXIT_UNREACHABLE, CommandError
from wavry_peer.errors import GatewayError, GatewayUnreachableError
from wavry_peer.protocol.errors import WavryError
from wavry_peer.protocol.http.codes import ErrorCode

__all__ = [
    "ASK_DOCTOR",
    "Passed",
    "StepFailedError",
    "StepResult",
    "StepSkippedError",
    "exit_code",
    "failure_of",
]

ASK_DOCTOR: Final = "`wavryctl doctor` names the layer that is broken"

_NEXT_STEPS: Final[Mapping[str, str]] = {
    ErrorCode.NO_RELAY_AVAILABLE: "`wavryctl doctor` says why no relay takes sessions",
    ErrorCode.RELAY_UNAVAILABLE: "the gateway gets no answer from the master: `wavryctl doctor`",
    ErrorCode.RELAY_MODE_OFF: (
        "`wavryctl audit` says who switched relays off; `wavryctl relay-mode on`"
    ),
    ErrorCode.LOCKDOWN: "`wavryctl audit` says who closed the service; `wavryctl lockdown off`",
    ErrorCode.RATE_LIMITED: (
        "wait a minute; `--accounts FILE` uses the same two accounts each time"
    ),
    ErrorCode.USERNAME_TAKEN: "the password in the accounts file is wrong: remove the file",
}
"""What to do about errors of the gateway that have a cause of their own."""

_RANK: Final = (EXIT_UNREACHABLE, EXIT_FORBIDDEN, EXIT_FAILED)
"""Of several failures the command ends with the first of these."""


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table.

    Attributes:
        step: name, as ``--only`` and ``--skip`` take it.
        verdict: ``ok``, ``fail`` or ``skipped``.
        ms: how long it took, milliseconds.
        evidence: what was seen, with numbers.
        next_step: what to do; empty where all is well.
        figures: numbers for machines, e.g. ``rtt_p99_ms``.
        exit_code: what a failure of this step ends the command with; 0 otherwise.
    """

    step: str
    verdict: str
    ms: float
    evidence: str
    next_step: str = ""
    figures: dict[str, float] = msgspec.field(default_factory=dict)
    exit_code: int = 0


class Passed(msgspec.Struct, frozen=True):
    """What a step that went well has to show."""

    evidence: str
    figures: dict[str, float] = msgspec.field(default_factory=dict)


class StepFailedError(Exception):
    """The system does not do what it should.

    Attributes:
        next_step: what to do about it.
        exit_code: of the command.
    """

    def __init__(
        self, evidence: str, next_step: str = ASK_DOCTOR, *, exit_code: int = EXIT_FAILED
    ) -> None:
        super().__init__(evidence)
        self.next_step = next_step
        self.exit_code = exit_code


class StepSkippedError(Exception):
    """The step was not made, for a reason that is no fault; the text says which.

    Attributes:
        next_step: how to have it made.
    """

    def __init__(self, evidence: str, next_step: str = "") -> None:
        super().__init__(evidence)
        self.next_step = next_step


def failure_of(error: WavryError | CommandError) -> StepFailedError:
    """Return an error of a client as the failure of a step."""
    if isinstance(error, CommandError):
        return StepFailedError(str(error), exit_code=error.exit_code)
    if isinstance(error, GatewayUnreachableError):
        return StepFailedError(str(error), exit_code=EXIT_UNREACHABLE)
    # A session that cannot be set up has what the gateway said as its cause.
    told = error if isinstance(error, GatewayError) else error.__cause__
    code = told.code if isinstance(told, GatewayError) else ""
    return StepFailedError(str(error), _NEXT_STEPS.get(code, ASK_DOCTOR))


def exit_code(results: Sequence[StepResult]) -> int:
    """Return 3 where a service is unreachable, 4 where a token is not enough, else 1."""
    codes = {result.exit_code for result in results if result.verdict == "fail"}
    return next((code for code in _RANK if code in codes), max(codes, default=0))
