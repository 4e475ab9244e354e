"""``wavryctl sessions``: who talks to whom, over which relay, and the end of it.

The gateway knows the calls, the master their leases; a row is made of both.
"""

from collections.abc import Mapping
from typing import Annotated, Final
from urllib.parse import urlencode

import msgspec
import typer

from wavry_cp.admin.client import ask_json
from wavry_cp.admin.endpoints import ServiceEndpoints, endpoints_of
from wavry_cp.admin.output import CommandError, JsonOption, moment, print_json, print_rows, run
from wavry_cp.admin.relay_names import relay_id_of
from wavry_peer.protocol.http.admin import CallInfo, CallPage, LeasedInfo, LeasedList, Order
from wavry_peer.protocol.http.relay_events import RevokeRequest, RevokeResponse

__all__ = ["find_leases", "print_leases", "sessions_app"]

CLOSED: Final = "closed"
REVOKED_BY_END: Final = "ended by `wavryctl sessions end`"

sessions_app = typer.Typer(help="Sessions of users: look, end.", no_args_is_help=True)
Json = Annotated[bool, JsonOption]
SessionArgument = Annotated[str, typer.Argument(help="Id of the session.")]


class SessionRow(msgspec.Struct, frozen=True):
    """A call, and its leases where the master has some."""

    call: CallInfo
    leased: LeasedInfo | None


@sessions_app.command("list")
def sessions_list(
    context: typer.Context,
    user: Annotated[str | None, typer.Option(help="Only of this user.")] = None,
    relay: Annotated[str | None, typer.Option(help="Only over this relay, by name or id.")] = None,
    state: Annotated[
        str | None,
        typer.Option(help="pending, accepted, active or closed; else all that are open."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most rows, the newest.")] = 100,
    *,
    json: Json = False,
) -> None:
    """List the sessions that are open: who, since when, over what.

    Examples:
      wavryctl sessions list

      wavryctl sessions list --user alice --json
    """

    async def work() -> list[SessionRow]:
        endpoints = endpoints_of(context)
        relay_id = None if relay is None else await relay_id_of(endpoints, relay)
        asked = {"user": user, "relay": relay_id, "state": state, "limit": limit}
        return await _listed(endpoints, asked)

    rows = run(work, as_json=json)
    if json:
        print_json({"sessions": rows})
        return
    print_rows(
        "Sessions",
        ("session", "users", "state", "since", "path"),
        [
            (row.call.session_id, f"{row.call.caller} > {row.call.callee}", row.call.state,
             moment(row.call.created_at), _path(row))
            for row in rows
        ],
    )  # fmt: skip


@sessions_app.command("show")
def sessions_show(context: typer.Context, session: SessionArgument, *, json: Json = False) -> None:
    """Show one session: users, relay, the ids of its leases and when they end.

    Examples:
      wavryctl sessions show 7d9a3f0e-1c52-4f0b-8f34-0a6f5b6f9e21
    """
    row = run(lambda: _one(endpoints_of(context), session.lower()), as_json=json)
    if json:
        print_json(row)
        return
    call = row.call
    print_rows(
        f"Session {call.session_id}",
        ("what", "value"),
        [
            ("users", f"{call.caller} called {call.callee}"),
            ("state", call.state),
            ("since", moment(call.created_at)),
            ("ends without news", moment(call.expires_at)),
            ("closed", moment(call.closed_at) if call.closed_at else "no"),
            ("path", _path(row)),
        ],
    )
    if row.leased is not None:
        print_leases([row.leased])


@sessions_app.command("end")
def sessions_end(
    context: typer.Context,
    session: SessionArgument,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit log.")] = "",
    *,
    json: Json = False,
) -> None:
    """End a session at once: both users are told, its leases are revoked.

    A new call of the same users works; `wavryctl bans add user` forbids it.

    Examples:
      wavryctl sessions end 7d9a3f0e-1c52-4f0b-8f34-0a6f5b6f9e21 --reason abuse
    """
    row = run(lambda: _ended(endpoints_of(context), session.lower(), reason), as_json=json)
    if json:
        print_json(row)
        return
    typer.echo(f"session {row.call.session_id} is {row.call.state}")
    if row.leased is not None:
        typer.echo("its leases are revoked")


def _path(row: SessionRow) -> str:
    relay_id = row.leased.relay_id if row.leased else row.call.relay_id
    return f"relay {relay_id}" if relay_id and row.call.path != "direct" else row.call.path or "-"


async def find_leases(endpoints: ServiceEndpoints, asked: Mapping[str, object]) -> LeasedList:
    """Ask the master for the sessions that it leased.

    Raises:
        CommandError: unreachable or refused.
    """
    query = urlencode({name: value for name, value in asked.items() if value is not None})
    return await ask_json(
        "master",
        endpoints.need_master(),
        f"/v1/admin/leases?{query}",
        LeasedList,
        token=endpoints.admin_token(),
    )


async def _calls(endpoints: ServiceEndpoints, asked: Mapping[str, object]) -> CallPage:
    query = urlencode({name: value for name, value in asked.items() if value is not None})
    return await ask_json(
        "gateway",
        endpoints.need_gateway(),
        f"/v1/admin/sessions?{query}",
        CallPage,
        token=endpoints.admin_token(),
    )


async def _with_leases(
    endpoints: ServiceEndpoints, calls: tuple[CallInfo, ...]
) -> list[SessionRow]:
    leased: dict[str, LeasedInfo] = {}
    on_relay = [call.session_id for call in calls if call.relay_id is not None]
    for start in range(0, len(on_relay), 100):
        some = on_relay[start : start + 100]
        found = await find_leases(endpoints, {"session": ",".join(some), "limit": len(some)})
        leased |= {one.session_id: one for one in found.sessions}
    return [SessionRow(call, leased.get(call.session_id)) for call in calls]


async def _listed(endpoints: ServiceEndpoints, asked: Mapping[str, object]) -> list[SessionRow]:
    page = await _calls(endpoints, asked)
    return await _with_leases(endpoints, page.sessions)


async def _one(endpoints: ServiceEndpoints, session_id: str) -> SessionRow:
    call = await ask_json(
        "gateway",
        endpoints.need_gateway(),
        f"/v1/admin/sessions/{session_id}",
        CallInfo,
        token=endpoints.admin_token(),
    )
    return (await _with_leases(endpoints, (call,)))[0]


async def _ended(endpoints: ServiceEndpoints, session_id: str, reason: str) -> SessionRow:
    call = await ask_json(
        "gateway",
        endpoints.need_gateway(),
        f"/v1/admin/sessions/{session_id}/end",
        CallInfo,
        method="POST",
        token=endpoints.admin_token(),
        body=Order(reason=reason),
    )
    (row,) = await _with_leases(endpoints, (call,))
    if row.leased is not None:
        try:
            await ask_json(
                "master",
                endpoints.need_master(),
                "/v1/leases/revoke",
                RevokeResponse,
                method="POST",
                token=endpoints.admin_token(),
                body=RevokeRequest(session_id=session_id, reason=reason or REVOKED_BY_END),
            )
        except CommandError as error:
            raise CommandError(
                f"{error}. The users were told that it is over, but its leases are good until "
                f"{moment(row.call.lease_expires_at)}: give the order again",
                code=error.code,
                exit_code=error.exit_code,
            ) from error
    return row


def print_leases(sessions: list[LeasedInfo]) -> None:
    """Print the leases of sessions, one row for each, with ids whole."""
    for one in sessions:
        print_rows(
            f"Leases of session {one.session_id}",
            ("what", "value"),
            [
                ("relay", one.relay_id),
                ("since", moment(one.created_at)),
                ("limits", f"{one.soft_kbps} kbit/s, at most {one.hard_kbps} kbit/s"),
                *(
                    (lease.role, f"{lease.jti}\nof {lease.sub}, until {moment(lease.expires_at)}")
                    for lease in one.leases
                ),
            ],
        )
