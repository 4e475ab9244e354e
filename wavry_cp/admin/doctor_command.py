"""``wavryctl doctor`` on the command line."""

from typing import Annotated

import typer

from .doctor import Examination, Finding, examine, exit_code
from .output import JsonOption, print_json, print_rows, run
from .places import places_of

__all__ = ["doctor"]


def doctor(
    context: typer.Context,
    watch: Annotated[
        float, typer.Option(min=0.1, max=300, help="Seconds for which counters are watched.")
    ] = 3.0,
    relay_ops: Annotated[
        list[str] | None,
        typer.Option(help="Ops URL of a relay; may be repeated. Those of a dev system are known."),
    ] = None,
    *,
    json: Annotated[bool, JsonOption] = False,
) -> None:
    """Look for what is wrong and say what to do; exits 1 if a check fails, 3 if one is unreachable.

    Examples:
      wavryctl doctor

      wavryctl doctor --relay-ops http://10.0.0.7:9100 --watch 10 --json
    """

    async def work() -> list[Finding]:
        places = places_of(context)
        places.need_master()
        return await examine(Examination(places, watch, {url: url for url in relay_ops or ()}))

    findings = run(work, as_json=json)
    code = exit_code(findings)
    if json:
        print_json({"ok": code == 0, "findings": findings})
    else:
        print_rows(
            "Doctor",
            ("layer", "check", "subject", "verdict", "evidence", "next step"),
            [
                (one.layer, one.check, one.subject, one.verdict, one.evidence, one.next_step)
                for one in findings
            ],
        )
    raise typer.Exit(code)
