"""Runs the steps in order, each with a time-out; after a failure the rest is not made.

Each step rests on the ones before it: without a log-in there is no call, without a lease no relay.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wavry_cp.admin.endpoints import ServiceEndpoints
from wavry_cp.admin.output import CommandError, print_note
from wavry_peer.gateway.client import normalize_gateway_url
from wavry_peer.protocol.errors import WavryError

from .accounts import load_or_make
from .auth_step import check_auth
from .drain_step import check_drain
from .lease_step import check_lease
from .relay_step import check_relay
from .report import Passed, StepFailedError, StepResult, StepSkippedError, failure_of
from .signaling_step import check_signaling
from .stage import SmokeContext

__all__ = ["STEPS", "Wishes", "run_smoke"]

Step = Callable[[SmokeContext], Awaitable[Passed]]

STEPS: Final[dict[str, tuple[Step, float]]] = {
    "auth": (check_auth, 30.0),
    "signaling": (check_signaling, 30.0),
    "lease": (check_lease, 30.0),
    "relay": (check_relay, 60.0),
    "drain": (check_drain, 180.0),
}
"""The steps by name, in order, with their time-outs in seconds."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was asked for on the command line.

    Attributes:
        steps: names of the steps to make.
        drain_relay: the relay to drain; None: of a dev system, the one that carries the session.
        accounts_file: see `load_or_make`.
        datagrams: of each side in the relay step.
    """

    steps: Collection[str]
    drain_relay: str | None = None
    accounts_file: Path | None = None
    datagrams: int = 200


async def run_smoke(endpoints: ServiceEndpoints, wishes: Wishes, *, tell: bool) -> list[StepResult]:
    """Make the steps.

    Args:
        endpoints: where the system is.
        wishes: which steps, and how.
        tell: whether each result is also noted on stderr at once.

    Raises:
        CommandError, LocalError: an address or a file cannot be used.
    """
    gateway_url = normalize_gateway_url(endpoints.need_gateway(), allow_http=True)
    accounts = load_or_make(wishes.accounts_file)
    results: list[StepResult] = []
    failed = ""
    with tempfile.TemporaryDirectory(prefix="wavry-smoke-") as home:
        stage = SmokeContext(
            gateway_url=gateway_url,
            endpoints=endpoints,
            accounts=accounts,
            accounts_may_exist=wishes.accounts_file is not None,
            home=Path(home),
            datagrams=wishes.datagrams,
            drain_relay=wishes.drain_relay,
        )
        try:
            for name in STEPS:
                reason = (
                    f"not made: {failed} failed" if failed else _why_not(name, endpoints, wishes)
                )
                if reason:
                    result = StepResult(step=name, verdict="skipped", ms=0.0, evidence=reason)
                else:
                    result = await _one_step(name, stage)
                results.append(result)
                failed = failed or (name if result.verdict == "fail" else "")
                if tell and result.verdict != "skipped":
                    print_note(f"{name}: {result.verdict}")
        finally:
            await stage.leave()
    return results


def _why_not(name: str, endpoints: ServiceEndpoints, wishes: Wishes) -> str:
    if name not in wishes.steps:
        return "left out by --only or --skip"
    if name == "drain" and wishes.drain_relay is None and not endpoints.relays:
        return "it takes a relay of a live pool out for a moment: name one with --drain RELAY_ID"
    return ""


async def _one_step(name: str, stage: SmokeContext) -> StepResult:
    work, timeout_s = STEPS[name]
    began_s = time.monotonic()
    failure: StepFailedError
    try:
        async with asyncio.timeout(timeout_s):
            passed = await work(stage)
    except TimeoutError:
        failure = StepFailedError(f"not done after {timeout_s:g} s, while {stage.doing}")
    except StepSkippedError as error:
        return StepResult(
            step=name,
            verdict="skipped",
            ms=_ms_since(began_s),
            evidence=str(error),
            next_step=error.next_step,
        )
    except StepFailedError as error:
        failure = error
    except (CommandError, WavryError) as error:
        failure = failure_of(error)
        failure.args = (f"while {stage.doing}: {error}",)
    else:
        return StepResult(
            step=name,
            verdict="ok",
            ms=_ms_since(began_s),
            evidence=passed.evidence,
            figures=passed.figures,
        )
    return StepResult(
        step=name,
        verdict="fail",
        ms=_ms_since(began_s),
        evidence=str(failure),
        next_step=failure.next_step,
        exit_code=failure.exit_code,
    )


def _ms_since(began_s: float) -> float:
    return round(1000 * (time.monotonic() - began_s), 1)
