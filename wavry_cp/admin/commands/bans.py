"""``wavryctl bans``: ban users and relays, list and lift bans."""

import asyncio
from enum import StrEnum
from typing import Annotated

import msgspec
import typer

from wavry_cp.admin.both_services import OrderOutcome, order_both, report
from wavry_cp.admin.client import ask_json
from wavry_cp.admin.durations import duration_s
from wavry_cp.admin.endpoints import ServiceEndpoints, endpoints_of
from wavry_cp.admin.output import JsonOption, moment, print_json, print_note, print_rows, run
from wavry_cp.admin.relay_names import relay_id_of
from wavry_peer.protocol.http.admin import BanInfo, BanList, BanRequest, LiftBanRequest

__all__ = ["bans_app"]

bans_app = typer.Typer(help="Bans of users and relays.", no_args_is_help=True)
BANS_PATH = "/v1/admin/bans"
LIFT_PATH = "/v1/admin/bans/lift"

Json = Annotated[bool, JsonOption]


class Banned(StrEnum):
    """Who can be banned."""

    USER = "user"
    RELAY = "relay"


KindArgument = Annotated[Banned, typer.Argument(help="What NAME names.")]
NameArgument = Annotated[
    str, typer.Argument(help="User name; or name of a relay, or its id (its start is enough).")
]


class BanRow(msgspec.Struct, frozen=True):
    """One ban of ``bans list``; `services` are those where it holds."""

    kind: str
    value: str
    at: int
    expires_at: int | None
    who: str
    reason: str
    services: list[str]


@bans_app.command("add")
def bans_add(
    context: typer.Context,
    kind: KindArgument,
    name: NameArgument,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit log.")],
    life: Annotated[
        int | None,
        typer.Option("--for", parser=duration_s, metavar="TIME", help="E.g. 2h; else till lifted."),
    ] = None,
    *,
    json: Json = False,
) -> None:
    """Ban a user (no login, no call, no lease) or a relay (no registration, sessions move).

    Ordered again it changes the end and the reason.

    Examples:
      wavryctl bans add user mallory --for 2h --reason spam

      wavryctl bans add relay fra-1 --reason "key was copied"
    """
    until = "until it is lifted" if life is None else f"for {life} s"
    body = BanRequest(kind=kind.value, value=name, life_s=life, reason=reason)
    outcomes = run(lambda: _order(endpoints_of(context), kind, BANS_PATH, body), as_json=json)
    exit_code = report(outcomes, f"{kind.value} {name} is banned {until}", as_json=json)
    for outcome in outcomes:
        if isinstance(outcome.answer, BanInfo) and not outcome.answer.known:
            print_note(f"note: the {outcome.service} knows no {kind.value} of this name (yet)")
    raise typer.Exit(exit_code)


@bans_app.command("lift")
def bans_lift(
    context: typer.Context,
    kind: KindArgument,
    name: NameArgument,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit log.")] = "",
    *,
    json: Json = False,
) -> None:
    """End a ban before its time.

    Examples:
      wavryctl bans lift user mallory --reason "it was somebody else"
    """
    body = LiftBanRequest(kind=kind.value, value=name, reason=reason)
    outcomes = run(lambda: _order(endpoints_of(context), kind, LIFT_PATH, body), as_json=json)
    raise typer.Exit(report(outcomes, f"ban of {kind.value} {name} is lifted", as_json=json))


@bans_app.command("list")
def bans_list(context: typer.Context, *, json: Json = False) -> None:
    """List the bans that hold, of master and gateway.

    Examples:
      wavryctl bans list

      wavryctl bans list --json
    """
    rows = run(lambda: _listed(endpoints_of(context)), as_json=json)
    if json:
        print_json({"bans": rows})
        return
    print_rows(
        "Bans",
        ("kind", "name", "until", "by", "reason", "at"),
        [
            (row.kind, row.value, moment(row.expires_at) if row.expires_at else "lifted", row.who,
             row.reason, " ".join(row.services))
            for row in rows
        ],
    )  # fmt: skip


async def _order(
    endpoints: ServiceEndpoints, kind: Banned, path: str, body: BanRequest | LiftBanRequest
) -> list[OrderOutcome]:
    if kind is Banned.USER:
        return await order_both(endpoints, path, BanInfo, body)
    body = msgspec.structs.replace(body, value=await relay_id_of(endpoints, body.value))
    answer = await ask_json(
        "master",
        endpoints.need_master(),
        path,
        BanInfo,
        method="POST",
        token=endpoints.admin_token(),
        body=body,
    )
    return [OrderOutcome("master", ok=True, answer=answer)]


async def _listed(endpoints: ServiceEndpoints) -> list[BanRow]:
    token = endpoints.admin_token()
    urls = {"master": endpoints.need_master(), "gateway": endpoints.need_gateway()}
    answers = await asyncio.gather(
        *(ask_json(name, url, BANS_PATH, BanList, token=token) for name, url in urls.items())
    )
    rows: dict[tuple[str, str, int | None], BanRow] = {}
    for service, answer in zip(urls, answers, strict=True):
        for ban in answer.bans:
            row = rows.setdefault(
                (ban.kind, ban.value, ban.expires_at),
                BanRow(ban.kind, ban.value, ban.at, ban.expires_at, ban.who, ban.reason, []),
            )
            row.services.append(service)
    return [rows[key] for key in sorted(rows, key=str)]
