"""``wavryctl doctor`` on the command line."""

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from wavry_cp.admin.doctor.diagnosis import Diagnosis, diagnose, exit_code
from wavry_cp.admin.doctor.gather import Examination, gather
from wavry_cp.admin.endpoints import endpoints_of
from wavry_cp.admin.output import EXIT_USAGE, CommandError, JsonOption, print_json, print_rows, run

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
    """Name the layer that is broken (gateway, master, relay, network), the evidence, the next step.

    Asks every service, relay, UDP port and clock. Works without an admin token too, and then says
    what it could not look at. Exits 1 if a check fails, 3 if a service cannot be reached.

    Examples:
      wavryctl doctor

      wavryctl doctor --relay-ops http://10.0.0.7:9100 --watch 10 --json
    """

    async def work() -> Diagnosis:
        endpoints = endpoints_of(context)
        if endpoints.gateway_url is None and endpoints.master_url is None:
            raise CommandError(
                "no address of gateway or master: start a system with `wavryctl dev up`, or give "
                "--gateway-url and --master-url",
                code="no_address",
                exit_code=EXIT_USAGE,
            )
        facts = await gather(Examination(endpoints, watch, tuple(relay_ops or ())))
        return diagnose(facts)

    diagnosis = run(work, as_json=json)
    if json:
        print_json(diagnosis)
    else:
        style = "green" if diagnosis.ok else "bold red"
        Console(highlight=False).print(Text(diagnosis.summary, style), soft_wrap=True)
        print_rows(
            "Doctor",
            ("layer", "check", "subject", "verdict", "evidence", "next step"),
            [
                (
                    one.layer,
                    one.check,
                    one.subject,
                    one.verdict,
                    one.evidence,
                    f"follows from {one.consequence_of}" if one.consequence_of else one.next_step,
                )
                for one in diagnosis.findings
            ],
        )
    raise typer.Exit(exit_code(diagnosis.findings))
