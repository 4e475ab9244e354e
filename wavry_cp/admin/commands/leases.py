"""`wavryctl leases …`: revoke, and see what is revoked."""

import asyncio
import os
import time
from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
import typer

from wavry_cp.admin.client import ask_json
from wavry_cp.admin.endpoints import ServiceEndpoints, find_endpoints
from wavry_cp.admin.output import (
    EXIT_FAILED,
    EXIT_USAGE,
    CommandError,
    JsonOption,
    fail,
    print_json,
    print_rows,
    run,
)
from wavry_cp.admin.relay_names import relay_id_of
from wavry_peer.protocol.http.admin import LeasedList
from wavry_peer.protocol.http.relay_events import (
    RelayEventState,
    RevocationInfo,
    RevocationList,
    RevokeRequest,
    RevokeResponse,
)

from .sessions import find_leases, print_leases

__all__ = ["leases_app"]

POLL_S: Final = 0.1

leases_app = typer.Typer(help="Leases: look, revoke.", no_args_is_help=True)
Json = Annotated[bool, JsonOption]


class RevokeOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What `leases revoke` shows: the answer, and which connected relays have confirmed it."""

    revocation: RevocationInfo
    live_sessions: int
    relays_confirmed: int
    relays_connected: int
    relays_waiting: tuple[str, ...]
    known: bool


@leases_app.command("revoke")
def leases_revoke(
    context: typer.Context,
    jti: Annotated[str | None, typer.Argument(help="Id of one lease; its session ends.")] = None,
    session: Annotated[str | None, typer.Option(help="Id of a session.")] = None,
    user: Annotated[
        str | None, typer.Option(help="User name: all leases that the user holds now.")
    ] = None,
    kid: Annotated[str | None, typer.Option(help="Key id: all leases that it signed.")] = None,
    reason: Annotated[str, typer.Option(help="Why; kept with the revocation.")] = "",
    wait: Annotated[
        float, typer.Option(min=0, max=60, help="Seconds to wait for the relays to confirm.")
    ] = 5.0,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Also a key id that the master has never seen.")
    ] = False,
    json: Json = False,
) -> None:
    """Revoke one lease, a session, a user's leases or a key's leases, at once and on every relay.

    Sessions that are hit stop forwarding and get no further lease; a new call of the same users
    works. Name exactly one of the four. Exits 0 also where a relay is not connected: it is cut off
    from new leases by the master and reads the revocation when it polls. A lease, session or user
    that the master has no session of is revoked too, and said so ("known": false): it may be a
    typing error. An unknown key id is refused without --force.

    Examples:
      wavryctl leases revoke --user mallory --reason "abuse case 7"

      wavryctl leases revoke 0b7c2c5e-6f3b-4a43-9f0e-2f6d3a9b1c11

      wavryctl leases revoke --session 7d9a3f0e-1c52-4f0b-8f34-0a6f5b6f9e21 --json
    """
    if sum(value is not None for value in (jti, session, user, kid)) != 1:
        fail(
            CommandError(
                "name exactly one: a lease id, --session, --user or --kid",
                code="usage",
                exit_code=EXIT_USAGE,
            ),
            as_json=json,
        )
    body = RevokeRequest(
        jti=jti and jti.lower(),
        session_id=session and session.lower(),
        sub=user,
        kid=kid,
        reason=reason,
        force=force,
    )

    async def work() -> RevokeOutcome:
        endpoints = find_endpoints(os.environ, **context.obj)
        answer = await ask_json(
            "master",
            endpoints.need_master(),
            "/v1/leases/revoke",
            RevokeResponse,
            method="POST",
            token=endpoints.admin_token(),
            body=body,
        )
        return await _confirmed(endpoints, answer, wait)

    outcome = run(work, as_json=json)
    if json:
        print_json(outcome)
        return
    row = outcome.revocation
    typer.echo(
        f"revoked {row.kind} {row.value} (number {row.number}): {outcome.live_sessions} live "
        f"session(s) hit, {outcome.relays_confirmed} of {outcome.relays_connected} connected "
        "relay(s) confirmed"
    )
    if not outcome.known:
        typer.echo(
            f"the master has no session of this {row.kind}: check the spelling. It remembers a "
            "session until an hour after its last lease",
            err=True,
        )
    if outcome.relays_waiting:
        typer.echo(
            f"not confirmed yet: {', '.join(outcome.relays_waiting)}; see "
            "`wavryctl leases list-revocations`",
            err=True,
        )


async def _confirmed(
    endpoints: ServiceEndpoints, answer: RevokeResponse, wait_s: float
) -> RevokeOutcome:
    """Wait until every connected relay has the revocation on its disk, or the time is over."""
    deadline_s = time.monotonic() + wait_s
    while True:
        listed = await _list(endpoints)
        connected = [relay for relay in listed.relays if relay.connected]
        waiting = [r.relay_id for r in connected if r.acked < answer.revocation.number]
        if not waiting or time.monotonic() >= deadline_s:
            return RevokeOutcome(
                revocation=answer.revocation,
                live_sessions=answer.live_sessions,
                relays_confirmed=len(connected) - len(waiting),
                relays_connected=len(connected),
                relays_waiting=tuple(waiting),
                known=answer.known,
            )
        await asyncio.sleep(POLL_S)


async def _list(endpoints: ServiceEndpoints) -> RevocationList:
    return await ask_json(
        "master",
        endpoints.need_master(),
        "/v1/admin/revocations",
        RevocationList,
        token=endpoints.admin_token(),
    )


@leases_app.command("show")
def leases_show(
    context: typer.Context,
    jti: Annotated[str | None, typer.Argument(help="Id of one lease.")] = None,
    session: Annotated[str | None, typer.Option(help="Id of a session.")] = None,
    user: Annotated[str | None, typer.Option(help="User name.")] = None,
    relay: Annotated[str | None, typer.Option(help="Name or id of a relay.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most sessions, the newest.")] = 20,
    *,
    json: Json = False,
) -> None:
    """Show leases: who holds them, at which relay, until when; with the ids that `revoke` takes.

    Also those of the last hour that have ended. Exits 1 where there is none.

    Examples:
      wavryctl leases show --user alice

      wavryctl leases show 0b7c2c5e-6f3b-4a43-9f0e-2f6d3a9b1c11 --json
    """

    async def work() -> LeasedList:
        endpoints = find_endpoints(os.environ, **context.obj)
        asked = {
            "lease": jti and jti.lower(),
            "session": session and session.lower(),
            "user": user,
            "relay": relay and await relay_id_of(endpoints, relay),
            "limit": limit,
        }
        return await find_leases(endpoints, asked)

    answer = run(work, as_json=json)
    if json:
        print_json(answer)
    elif not answer.sessions:
        typer.echo("no lease like this; the master forgets one an hour after its end", err=True)
    else:
        print_leases(list(answer.sessions))
    if not answer.sessions:
        raise typer.Exit(EXIT_FAILED)


@leases_app.command("list-revocations")
def leases_list_revocations(context: typer.Context, *, json: Json = False) -> None:
    """List the revocations in force, and how far each relay has come with them.

    Examples:
      wavryctl leases list-revocations

      wavryctl leases list-revocations --json
    """

    async def work() -> RevocationList:
        return await _list(find_endpoints(os.environ, **context.obj))

    answer = run(work, as_json=json)
    if json:
        print_json(answer)
        return
    print_rows(
        "Revocations",
        ("number", "what", "value", "leases issued until", "forgotten", "when", "who", "reason"),
        [_revocation_row(row) for row in answer.revocations],
    )
    print_rows(
        f"Relays (last number {answer.number})",
        ("relay", "stream", "confirmed"),
        [_relay_row(relay) for relay in answer.relays],
    )


def _revocation_row(row: RevocationInfo) -> tuple[str, ...]:
    return (
        str(row.number),
        row.kind,
        row.value,
        "any" if row.issued_until is None else _moment(row.issued_until),
        _moment(row.expires_at),
        _moment(row.at),
        row.who,
        row.reason or "-",
    )


def _relay_row(relay: RelayEventState) -> tuple[str, ...]:
    return relay.relay_id, "connected" if relay.connected else "polls", str(relay.acked)


def _moment(unix_s: int) -> str:
    try:
        return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, ValueError):
        return "never"
