"""``wavryctl smoke`` on the command line."""

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import typer

from wavry_cp.admin.endpoints import endpoints_of
from wavry_cp.admin.output import (
    EXIT_USAGE,
    CommandError,
    JsonOption,
    fail,
    print_json,
    print_note,
    print_rows,
    run,
)
from wavry_cp.admin.smoke.report import StepResult, exit_code
from wavry_cp.admin.smoke.runner import STEPS, Wishes, run_smoke

__all__ = ["smoke"]

INTERRUPTED = 130


def smoke(
    context: typer.Context,
    only: Annotated[
        str, typer.Option(help="Make only these steps: auth,signaling,lease,relay,drain.")
    ] = "",
    skip: Annotated[str, typer.Option(help="Leave these steps out.")] = "",
    drain: Annotated[
        str | None,
        typer.Option(
            metavar="RELAY",
            help="Relay for the drain step, by name or id. Needed on any system but one of "
            "`wavryctl dev up`.",
        ),
    ] = None,
    accounts: Annotated[
        Path | None,
        typer.Option(help="File (mode 0600) of the two accounts; made if missing. Else new ones."),
    ] = None,
    datagrams: Annotated[
        int, typer.Option(min=1, max=100_000, help="Datagrams of each side in the relay step.")
    ] = 200,
    *,
    json: Annotated[bool, JsonOption] = False,
) -> None:
    """Use a running system as two users would, and say what works: exits 0 only if all of it does.

    Steps: auth (register, log in and out), signaling (a call over WebSockets), lease (claims are
    checked, bad leases refused), relay (encrypted datagrams there and back), drain (a relay is
    drained under a session and given back; needs an admin token).

    Examples:
      wavryctl smoke

      wavryctl smoke --only auth,signaling,lease,relay --accounts /var/lib/wavry/smoke.json --json

      wavryctl smoke --drain fra-1
    """
    try:
        wishes = Wishes(_chosen(only, skip, drain), drain, accounts, datagrams)
        endpoints = endpoints_of(context)
        _require_drain_is_meant(only, drain, is_dev_system=bool(endpoints.relays))
    except CommandError as error:
        fail(error, as_json=json)

    async def work() -> list[StepResult]:
        _end_gently()
        return await run_smoke(endpoints, wishes, tell=not json)

    try:
        results = run(work, as_json=json)
    except asyncio.CancelledError:
        fail(CommandError("interrupted", code="interrupted", exit_code=INTERRUPTED), as_json=json)
    code = exit_code(results)
    if json:
        print_json({"ok": code == 0, "steps": results})
    else:
        print_rows(
            "Smoke test",
            ("step", "verdict", "ms", "evidence", "next step"),
            [
                (one.step, one.verdict, f"{one.ms:.0f}", one.evidence, one.next_step)
                for one in results
            ],
        )
    raise typer.Exit(code)


def _chosen(only: str, skip: str, drain: str | None) -> frozenset[str]:
    wanted, unwanted = _names(only) or frozenset(STEPS), _names(skip)
    chosen = wanted - unwanted
    if drain is not None and "drain" not in chosen:
        raise _usage("--drain names a relay for a step that --only or --skip leaves out")
    return chosen


def _require_drain_is_meant(only: str, drain: str | None, *, is_dev_system: bool) -> None:
    if "drain" in _names(only) and drain is None and not is_dev_system:
        raise _usage("the drain step takes a relay out of a live pool: name it with --drain ID")


def _names(text: str) -> frozenset[str]:
    names = frozenset(filter(None, (name.strip() for name in text.split(","))))
    unknown = names - set(STEPS)
    if unknown:
        raise _usage(f"no such step: {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    return names


def _usage(text: str) -> CommandError:
    return CommandError(text, code="usage", exit_code=EXIT_USAGE)


def _end_gently() -> None:
    """End the test at Ctrl-C or SIGTERM once it has given back what it took, however often sent."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    if task is None:
        return

    def end() -> None:
        if not task.cancelling():
            task.cancel()
        print_note("ending; a relay that was drained is given back first")

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
