"""``wavryctl blocks``: hosts that relays have blocked, and lifting them."""

from typing import Annotated

import typer

from wavry_cp.admin.client import TIMEOUT_S, ask_json
from wavry_cp.admin.endpoints import endpoints_of
from wavry_cp.admin.output import (
    EXIT_FAILED,
    EXIT_USAGE,
    CommandError,
    JsonOption,
    fail,
    moment,
    print_json,
    print_note,
    print_rows,
    run,
)
from wavry_cp.admin.relay_names import RELAY_HELP, relay_path
from wavry_peer.protocol.http.admin import BlockList, ClearBlocksRequest, ClearBlocksResponse

__all__ = ["blocks_app"]

blocks_app = typer.Typer(
    help="Hosts that relays have blocked after repeated violations.", no_args_is_help=True
)
Json = Annotated[bool, JsonOption]


@blocks_app.command("list")
def blocks_list(
    context: typer.Context,
    relay: Annotated[
        str | None, typer.Option(help="Only those of one relay, by name or id.")
    ] = None,
    *,
    json: Json = False,
) -> None:
    """List the hosts that the relays blocked, as their last heartbeats tell (64 each at most).

    Examples:
      wavryctl blocks list

      wavryctl blocks list --relay fra-1 --json
    """

    async def work() -> BlockList:
        endpoints = endpoints_of(context)
        query = "" if relay is None else f"?relay={relay_path(relay)}"
        return await ask_json(
            "master",
            endpoints.need_master(),
            f"/v1/admin/blocks{query}",
            BlockList,
            token=endpoints.admin_token(),
        )

    answer = run(work, as_json=json)
    if json:
        print_json(answer)
        return
    print_rows(
        "Blocks",
        ("relay", "subnet", "since", "until", "reason", "being lifted"),
        [
            (
                block.relay_id,
                block.subnet,
                moment(block.since),
                moment(block.until),
                block.reason,
                "yes" if block.clearing else "",
            )
            for block in answer.blocks
        ],
    )


@blocks_app.command("clear")
def blocks_clear(
    context: typer.Context,
    relay: Annotated[str, typer.Option(help=RELAY_HELP)],
    reason: Annotated[str, typer.Option(help="Why; kept in the audit log.")],
    subnet: Annotated[
        str | None, typer.Argument(help="E.g. 192.0.2.7/32, or a network of several.")
    ] = None,
    *,
    all_blocks: Annotated[bool, typer.Option("--all", help="Lift every block.")] = False,
    wait: Annotated[
        float, typer.Option(min=0, max=60, help="Seconds to wait for the relay to confirm.")
    ] = 20.0,
    json: Json = False,
) -> None:
    """Lift the block of an address, or all, at one relay, and wait until the relay confirms it.

    The relay hears of it with its next heartbeat. Exits 1 where it does not confirm in time; the
    order then goes out with two more heartbeats. --wait 0 gives the order and does not wait.

    Examples:
      wavryctl blocks clear 192.0.2.7/32 --relay fra-1 --reason "fixed"

      wavryctl blocks clear --all --relay fra-1 --reason "false alarm"
    """
    if (subnet is None) != all_blocks:
        fail(
            CommandError("name a subnet, or give --all", code="usage", exit_code=EXIT_USAGE),
            as_json=json,
        )

    async def work() -> ClearBlocksResponse:
        endpoints = endpoints_of(context)
        return await ask_json(
            "master",
            endpoints.need_master(),
            f"/v1/admin/relays/{relay_path(relay)}/blocks/clear",
            ClearBlocksResponse,
            method="POST",
            token=endpoints.admin_token(),
            body=ClearBlocksRequest(subnet=subnet, reason=reason, wait_s=wait),
            timeout_s=wait + TIMEOUT_S,
        )

    answer = run(work, as_json=json)
    is_open = bool(wait) and not answer.confirmed
    what = answer.subnet or "all blocks"
    if json:
        print_json(answer)
    elif answer.confirmed:
        typer.echo(f"{what}: lifted, the relay confirms; it had told of {answer.reported}")
    else:
        typer.echo(f"{what}: to be lifted at the next heartbeat; {answer.reported} told of last")
    if is_open:
        print_note(
            f"the relay has not confirmed it within {wait:g} s: see `wavryctl blocks list` and "
            "`wavryctl relays list`, and order it again"
        )
        raise typer.Exit(EXIT_FAILED)
