"""``wavryctl relays``: the relays that the master knows."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
import typer
from msgspec.structs import replace

from wavry_cp.admin.client import ask_json
from wavry_cp.admin.durations import duration_s
from wavry_cp.admin.endpoints import ServiceEndpoints, endpoints_of
from wavry_cp.admin.output import (
    EXIT_USAGE,
    CommandError,
    JsonOption,
    moment,
    print_json,
    print_note,
    print_rows,
    run,
)
from wavry_cp.admin.relay_drain import DrainResult, drain_relay, order_relay, progress_for
from wavry_cp.admin.relay_names import RELAY_HELP, relay_named, relay_path
from wavry_cp.admin.secret_output import secret_file
from wavry_peer.protocol.errors import MessageError
from wavry_peer.protocol.http.admin import Order
from wavry_peer.protocol.http.api import RelayInfo, RelayList, decode_body
from wavry_peer.protocol.http.relays import (
    ApproveRequest,
    EnrolmentInfo,
    EnrolmentList,
    EnrolmentRequest,
    NewEnrolment,
    RelayHistory,
    RelayRemoved,
    RenameRequest,
)
from wavry_peer.protocol.relay_terms import DrainOrder, Enrolment, RelayState

__all__ = ["relays_app"]

relays_app = typer.Typer(help="The relays that the master knows.", no_args_is_help=True)
ENROLMENTS_PATH: Final = "/v1/admin/enrolments"
Answer = TypeVar("Answer", bound=msgspec.Struct)
Json = Annotated[bool, JsonOption]
RelayArgument = Annotated[str, typer.Argument(metavar="RELAY", help=RELAY_HELP)]
RelayOrRegion = Annotated[str | None, typer.Argument(metavar="RELAY", help=RELAY_HELP)]
RegionOption = Annotated[str | None, typer.Option(help="All relays of this region instead.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; kept in the audit log.")]


def _state_text(relay: RelayInfo) -> str:
    why = "; ".join(fault.text for fault in relay.faults)
    return f"{relay.state} ({why})" if why else relay.state


def _relay_row(relay: RelayInfo) -> tuple[str, ...]:
    return (
        relay.name,
        relay.relay_id,
        _state_text(relay),
        relay.enrolment,
        relay.region or "-",
        f"{relay.active_sessions}/{relay.max_sessions}",
        f"{relay.load_pct:.0f} %",
        ", ".join(relay.endpoints),
        moment(relay.last_heartbeat_at),
        f"{relay.keyset_serial}: {', '.join(relay.held_kids) or 'none'}",
        relay.version,
    )


_RELAY_COLUMNS = (
    "name", "relay", "state", "enrolled by", "region", "sessions", "load", "endpoints",
    "last heartbeat", "keys held", "version",
)  # fmt: skip


@relays_app.command("list")
def relays_list(context: typer.Context, *, json: Json = False) -> None:
    """List the relays with state and why, load and last heartbeat.

    Examples:
      wavryctl relays list

      wavryctl relays list --json
    """
    answer = run(lambda: _ask(endpoints_of(context), "GET", "/v1/relays", RelayList), as_json=json)
    if json:
        print_json(answer)
    else:
        print_rows("Relays", _RELAY_COLUMNS, [_relay_row(relay) for relay in answer.relays])


@relays_app.command("show")
def relays_show(context: typer.Context, relay: RelayArgument, *, json: Json = False) -> None:
    """Show one relay: also its clock, what probes of it find, and what leases it refuses.

    Examples:
      wavryctl relays show fra-1

      wavryctl relays show rly-0123 --json
    """
    found = run(lambda: relay_named(endpoints_of(context), relay), as_json=json)
    _show(found, as_json=json)
    if not json:
        for line in _condition(found):
            typer.echo(line)


def _condition(relay: RelayInfo) -> Iterator[str]:
    """Tell what the master found out about a relay."""
    rtt_ms, loss_pct, ahead_s = relay.probe_rtt_ms, relay.probe_loss_pct, relay.clock_ahead_s
    if rtt_ms is None:
        yield "probes: no datagram of the master came through yet"
    else:
        lost = "too few to say what is lost" if loss_pct is None else f"{loss_pct:g} % lost"
        yield f"probes: {rtt_ms:g} ms through it and back, {lost}"
    if ahead_s is not None:
        way = "ahead of" if ahead_s > 0 else "behind"
        yield f"clock: {abs(ahead_s):.1f} s {way} the master's"
    refused = ", ".join(
        f"{count} {reason}" for reason, count in sorted(relay.rejects_last_minute.items())
    )
    yield f"leases refused in the last minute: {refused or 'none'}"


@relays_app.command("history")
def relays_history(
    context: typer.Context,
    relay: RelayArgument,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many changes.")] = 50,
    *,
    json: Json = False,
) -> None:
    """Show when a relay's state changed, and why; the master keeps the last 200 changes of each.

    Examples:
      wavryctl relays history fra-1

      wavryctl relays history rly-0123 --limit 10 --json
    """
    path = f"/v1/relays/{relay_path(relay)}/history"
    found = run(lambda: _ask(endpoints_of(context), "GET", path, RelayHistory), as_json=json)
    found = replace(found, changes=found.changes[-limit:])
    if json:
        print_json(found)
        return
    print_rows(
        f"History of {found.name} ({found.relay_id})",
        ("when", "before", "after", "why"),
        [
            (moment(change.at), change.before or "-", change.after, change.text)
            for change in found.changes
        ],
    )


# -- Who may be one ----------------------------------------------------------------------


@relays_app.command("enrol")
def relays_enrol(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="Name of the new relay, e.g. fra-1; unique.")],
    region: Annotated[
        str | None, typer.Option(help="Region that it will be in; without one any will do.")
    ] = None,
    life: Annotated[
        int,
        typer.Option("--for", parser=duration_s, metavar="TIME", help="How long the token waits."),
    ] = 86_400,
    output: Annotated[
        Path | None,
        typer.Option(help="Write the token into this file (mode 0600) instead of showing it."),
    ] = None,
    reason: ReasonOption = "",
    *,
    json: Json = False,
) -> None:
    """Make the one-time token with which a new relay comes in; it is stored as a hash.

    Give the file to the relay as WAVRY_RELAY_ENROLMENT_TOKEN_FILE. A second token for the same
    name ends the first.

    Examples:
      wavryctl relays enrol --name fra-1 --region eu-central --output fra-1.token

      wavryctl relays enrol --name fra-1 --region eu-central --for 2h --json
    """

    async def work() -> NewEnrolment:
        body = _body(EnrolmentRequest, name=name, region=region, life_s=life, reason=reason)
        with secret_file(output, replace=False) as write:
            made = await _ask(endpoints_of(context), "POST", ENROLMENTS_PATH, NewEnrolment, body)
            write(made.token)
            return made

    made = run(work, as_json=json)
    if json:
        shown: dict[str, Any] = {"info": made.info, "replaces": made.replaces}
        print_json(shown | ({"token": made.token} if output is None else {"file": str(output)}))
        return
    if made.replaces:
        print_note(f"the token made for {name} before is worth nothing now")
    print_note(f"{name} may come in until {moment(made.info.expires_at)}")
    if output is None:
        # Alone on stdout, so that it can go into a file elsewhere.
        typer.echo(made.token)
    else:
        typer.echo(f"written to {output}: the relay's WAVRY_RELAY_ENROLMENT_TOKEN_FILE")


@relays_app.command("tokens")
def relays_tokens(context: typer.Context, *, json: Json = False) -> None:
    """List the tokens that wait for their relays, never their secrets.

    Examples:
      wavryctl relays tokens
    """
    answer = run(
        lambda: _ask(endpoints_of(context), "GET", ENROLMENTS_PATH, EnrolmentList), as_json=json
    )
    if json:
        print_json(answer)
        return
    print_rows(
        "Tokens that wait for a relay",
        ("name", "region", "made", "ends"),
        [
            (one.name, one.region or "any", moment(one.created_at), moment(one.expires_at))
            for one in answer.enrolments
        ],
    )


@relays_app.command("approve")
def relays_approve(
    context: typer.Context,
    relay: RelayArgument,
    name: Annotated[str | None, typer.Option(help="Name that it gets, e.g. fra-1.")] = None,
    reason: ReasonOption = "",
    *,
    json: Json = False,
) -> None:
    """Make a full relay of one that came in by the open door (WAVRY_MASTER_OPEN_ENROLMENT).

    Examples:
      wavryctl relays approve rly-0123 --name fra-1 --reason "runs on our host"
    """

    async def work() -> RelayInfo:
        body = _body(ApproveRequest, name=name, reason=reason)
        return await _order(endpoints_of(context), relay, "approve", body)

    _show(run(work, as_json=json), as_json=json)


@relays_app.command("reject")
def relays_reject(
    context: typer.Context,
    relay: Annotated[
        str,
        typer.Argument(metavar="RELAY", help="A relay in PROBATION, or the name of a token."),
    ],
    reason: ReasonOption = "",
    *,
    json: Json = False,
) -> None:
    """Send a relay away that came in by the open door, or end a token that nobody used yet.

    The relay is banned: `wavryctl bans lift relay` lets it ask again.

    Examples:
      wavryctl relays reject rly-0123 --reason "nobody knows it"

      wavryctl relays reject fra-1 --reason "token was mailed to the wrong person"
    """

    async def work() -> RelayInfo | EnrolmentInfo:
        endpoints, order = endpoints_of(context), Order(reason=reason)
        waiting = await _ask(endpoints, "GET", ENROLMENTS_PATH, EnrolmentList)
        if any(one.name == relay for one in waiting.enrolments):
            path = f"{ENROLMENTS_PATH}/{relay_path(relay)}"
            return await _ask(endpoints, "DELETE", path, EnrolmentInfo, order)
        return await _order(endpoints, relay, "reject", order)

    rejected = run(work, as_json=json)
    if isinstance(rejected, RelayInfo):
        _show(rejected, as_json=json)
    elif json:
        print_json(rejected)
    else:
        typer.echo(f"the token for {rejected.name} is worth nothing now")


@relays_app.command("rename")
def relays_rename(
    context: typer.Context,
    relay: RelayArgument,
    name: Annotated[str, typer.Argument(help="The new name, e.g. fra-1.")],
    reason: ReasonOption = "",
    *,
    json: Json = False,
) -> None:
    """Give a relay another name.

    Examples:
      wavryctl relays rename relay-01234567 fra-1
    """

    async def work() -> RelayInfo:
        body = _body(RenameRequest, name=name, reason=reason)
        return await _order(endpoints_of(context), relay, "rename", body)

    _show(run(work, as_json=json), as_json=json)


@relays_app.command("remove")
def relays_remove(
    context: typer.Context,
    relay: RelayArgument,
    reason: ReasonOption = "",
    *,
    json: Json = False,
) -> None:
    """Forget a relay and its enrolment; drain it before, or its sessions end with their leases.

    Examples:
      wavryctl relays remove fra-1 --reason "host is gone"
    """

    async def work() -> RelayRemoved:
        path = f"/v1/relays/{relay_path(relay)}"
        body = Order(reason=reason)
        return await _ask(endpoints_of(context), "DELETE", path, RelayRemoved, body)

    gone = run(work, as_json=json)
    if json:
        print_json(gone)
        return
    if gone.state:
        typer.echo(f"{gone.name} ({gone.relay_id}) is {gone.state}: its record stays for that")
    else:
        typer.echo(f"{gone.name} ({gone.relay_id}) is forgotten")
    typer.echo(
        "it may come back as before: it is on the master's list or shows the service token"
        if gone.enrolment in (Enrolment.LISTED, Enrolment.POOL)
        else "to come back it needs a new token: `wavryctl relays enrol`"
    )


# -- Sessions ----------------------------------------------------------------------------


@relays_app.command("drain")
def relays_drain(
    context: typer.Context,
    relay: RelayOrRegion = None,
    region: RegionOption = None,
    timeout: Annotated[
        float, typer.Option(min=0, help="Longest wait in seconds; the drain goes on after it.")
    ] = 600.0,
    reason: ReasonOption = "",
    *,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show the sessions leave, until none is left.")
    ] = False,
    json: Json = False,
) -> None:
    """Give a relay no new sessions; live ones move to other relays, or stay where there is none.

    With --wait it exits 0 when no session is left, and 1 after the timeout, when somebody ends
    the drain, or when a relay goes offline.

    Examples:
      wavryctl relays drain fra-1

      wavryctl relays drain rly-0123 --wait --timeout 120 --json

      wavryctl relays drain --region eu-central --wait
    """

    async def work() -> list[DrainResult]:
        endpoints = endpoints_of(context)
        names = await _named(endpoints, relay, region)
        progress = progress_for(as_json=json)
        with progress:
            return await asyncio.gather(
                *(
                    drain_relay(
                        endpoints,
                        name,
                        reason=reason,
                        wait=wait,
                        timeout_s=timeout,
                        progress=progress,
                    )
                    for name in names
                )
            )

    results = run(work, as_json=json)
    if json:
        shown = [result if wait else result.relay for result in results]
        print_json(shown[0] if region is None else {"relays": shown})
    else:
        _show_all([result.relay for result in results])
    for result in results if wait and not json else ():
        typer.echo(
            f"{result.relay.name}: {result.outcome}: {result.sessions_left} of"
            f" {result.sessions_at_start} sessions left after {result.seconds:.1f} s"
        )
    raise typer.Exit(max(result.exit_code for result in results))


@relays_app.command("undrain")
def relays_undrain(
    context: typer.Context,
    relay: RelayOrRegion = None,
    region: RegionOption = None,
    reason: ReasonOption = "",
    *,
    json: Json = False,
) -> None:
    """Let a drained relay take new sessions again; those that moved stay where they are.

    Examples:
      wavryctl relays undrain fra-1

      wavryctl relays undrain --region eu-central
    """

    async def work() -> list[RelayInfo]:
        endpoints = endpoints_of(context)
        return [
            await order_relay(endpoints, name, DrainOrder.UNDRAIN, reason=reason)
            for name in await _named(endpoints, relay, region)
        ]

    relays = run(work, as_json=json)
    if json:
        print_json(relays[0] if region is None else {"relays": relays})
    else:
        _show_all(relays)


# -- Inside ------------------------------------------------------------------------------


async def _named(endpoints: ServiceEndpoints, relay: str | None, region: str | None) -> list[str]:
    """Return the relays that are meant: one, or all of a region that can take an order.

    Raises:
        CommandError: none or both are named, or the region has none.
    """
    if (relay is None) == (region is None):
        raise CommandError("name a relay or --region", code="usage", exit_code=EXIT_USAGE)
    if relay is not None:
        return [relay]
    listed = await _ask(endpoints, "GET", "/v1/relays", RelayList)
    meant = [
        one.relay_id
        for one in listed.relays
        if one.region == region and one.state != RelayState.BANNED
    ]
    if not meant:
        raise CommandError(
            f"no relay is in region {region}; see `wavryctl relays list`", code="unknown_region"
        )
    return meant


def _show_all(relays: Sequence[RelayInfo]) -> None:
    print_rows(
        "Relays" if len(relays) > 1 else "Relay", _RELAY_COLUMNS, list(map(_relay_row, relays))
    )


async def _ask(
    endpoints: ServiceEndpoints,
    method: str,
    path: str,
    kind: type[Answer],
    body: msgspec.Struct | None = None,
) -> Answer:
    return await ask_json(
        "master", endpoints.need_master(), path, kind,
        method=method, body=body, token=endpoints.admin_token(),
    )  # fmt: skip


async def _order(
    endpoints: ServiceEndpoints, relay: str, order: str, body: msgspec.Struct
) -> RelayInfo:
    path = f"/v1/admin/relays/{relay_path(relay)}/{order}"
    return await _ask(endpoints, "POST", path, RelayInfo, body)


def _body(kind: type[Answer], **fields: object) -> Answer:
    """Make a body of options, or say which of them does not fit before anybody is asked.

    Raises:
        CommandError: names the field.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return decode_body(kind, msgspec.json.encode(given))
    except MessageError as error:
        raise CommandError(str(error), code="usage", exit_code=EXIT_USAGE) from error


def _show(relay: RelayInfo, *, as_json: bool) -> None:
    if as_json:
        print_json(relay)
    else:
        print_rows("Relay", _RELAY_COLUMNS, [_relay_row(relay)])
