"""``wavryctl relay-mode`` and ``wavryctl lockdown``: the kill switches."""

from enum import StrEnum
from typing import Annotated

import typer

from wavry_cp.admin.both_services import OrderOutcome, order_both, report
from wavry_cp.admin.client import ask_json
from wavry_cp.admin.endpoints import endpoints_of
from wavry_cp.admin.output import JsonOption, print_json, print_note, run
from wavry_peer.protocol.http.admin import SwitchInfo, SwitchRequest

__all__ = ["lockdown", "relay_mode"]

Json = Annotated[bool, JsonOption]
Reason = Annotated[str, typer.Option(help="Why; kept in the audit log.")]


class Position(StrEnum):
    """Where a switch can stand."""

    ON = "on"
    OFF = "off"


def relay_mode(
    context: typer.Context,
    position: Annotated[Position, typer.Argument(help="`off` gives no new leases.")],
    reason: Reason = "",
    *,
    json: Json = False,
) -> None:
    """Switch relays off for new sessions, or on again; live sessions go on and renew.

    Examples:
      wavryctl relay-mode off --reason "relay release is broken"

      wavryctl relay-mode on
    """

    async def work() -> SwitchInfo:
        endpoints = endpoints_of(context)
        return await ask_json(
            "master",
            endpoints.need_master(),
            "/v1/admin/switches/relay-mode",
            SwitchInfo,
            method="POST",
            token=endpoints.admin_token(),
            body=SwitchRequest(on=position is Position.ON, reason=reason),
        )

    answer = run(work, as_json=json)
    if json:
        print_json(answer)
    else:
        print(f"relay mode is {'on' if answer.on else 'off: no new leases'}")


def lockdown(
    context: typer.Context,
    position: Annotated[Position, typer.Argument(help="`on` lets only admin calls pass.")],
    reason: Reason = "",
    *,
    json: Json = False,
) -> None:
    """Close gateway and master for everybody but operators, or open them again.

    Relays stay registered and forward what they have until its leases end.

    Examples:
      wavryctl lockdown on

      wavryctl lockdown on --reason "accounts are being taken over"

      wavryctl lockdown off
    """

    async def work() -> list[OrderOutcome]:
        if position is Position.ON and not reason:
            print_note("no --reason given: the audit log will not tell why")
        body = SwitchRequest(on=position is Position.ON, reason=reason)
        endpoints = endpoints_of(context)
        return await order_both(endpoints, "/v1/admin/switches/lockdown", SwitchInfo, body)

    outcomes = run(work, as_json=json)
    raise typer.Exit(report(outcomes, f"lockdown is {position.value}", as_json=json))
