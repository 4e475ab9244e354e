"""``wavryctl users``: accounts of the gateway."""

import os
from pathlib import Path
from typing import Annotated, Final, TypeVar
from urllib.parse import quote

import msgspec
import typer

from wavry_cp.admin.client import ask, ask_json, refused
from wavry_cp.admin.durations import duration_s
from wavry_cp.admin.endpoints import ServiceEndpoints, endpoints_of
from wavry_cp.admin.output import (
    EXIT_USAGE,
    CommandError,
    JsonOption,
    moment,
    print_json,
    print_rows,
    run,
)
from wavry_peer.protocol.http.accounts import (
    DeleteUserRequest,
    EndedLogins,
    NewReset,
    ResetRequest,
    UserDetails,
)
from wavry_peer.protocol.http.admin import Order
from wavry_peer.protocol.http.api import UserInfo, UserList

__all__ = ["users_app"]

users_app = typer.Typer(help="Accounts of the gateway.", no_args_is_help=True)
USERS_PATH: Final = "/v1/admin/users"
PAGE_USERS: Final = 1000
Answer = TypeVar("Answer", bound=msgspec.Struct)

Json = Annotated[bool, JsonOption]
NameArgument = Annotated[str, typer.Argument(help="User name.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the audit log.")]


@users_app.command("list")
def users_list(context: typer.Context, *, json: Json = False) -> None:
    """List the accounts of the gateway.

    Examples:
      wavryctl users list
    """

    async def work() -> UserList:
        endpoints, users = endpoints_of(context), list[UserInfo]()
        while True:
            after = users[-1].username if users else ""
            page = await _get(endpoints, f"{USERS_PATH}?limit={PAGE_USERS}&after={after}", UserList)
            users += page.users
            if len(page.users) < PAGE_USERS:
                return UserList(users=tuple(users))

    answer = run(work, as_json=json)
    if json:
        print_json(answer)
        return
    print_rows(
        "Users",
        ("username", "online", "created", "last login"),
        [
            (user.username, "yes" if user.online else "no", moment(user.created_at),
             moment(user.last_login_at))
            for user in answer.users
        ],
    )  # fmt: skip


@users_app.command("show")
def users_show(context: typer.Context, name: NameArgument, *, json: Json = False) -> None:
    """Show one user: logins, open sessions, ban.

    Examples:
      wavryctl users show alice
    """

    async def work() -> UserDetails:
        return await _get(endpoints_of(context), _path(name), UserDetails)

    user = run(work, as_json=json)
    if json:
        print_json(user)
        return
    print(f"user        {user.username}")
    print(f"created     {moment(user.created_at)}")
    print(f"last login  {moment(user.last_login_at)}")
    print(f"online      {'yes' if user.online else 'no'}")
    print(f"banned      {'yes' if user.banned else 'no'}")
    for session_id in user.open_sessions:
        print(f"session     {session_id}")
    print_rows(
        "Logins",
        ("login", "since", "until", "one run"),
        [
            (login.login_id, moment(login.created_at), moment(login.expires_at),
             "yes" if login.temporary else "no")
            for login in user.logins
        ],
    )  # fmt: skip


@users_app.command("reset")
def users_reset(
    context: typer.Context,
    name: NameArgument,
    life: Annotated[
        int,
        typer.Option("--for", parser=duration_s, metavar="TIME", help="How long it is good."),
    ] = 3600,
    output: Annotated[
        Path | None,
        typer.Option(help="Write the token into this file (mode 0600) instead of showing it."),
    ] = None,
    reason: Reason = "",
    *,
    json: Json = False,
) -> None:
    """Make a token with which a user sets a new password, once; give it to nobody else.

    The old password and logins are good until it is used; then every login of the user ends.

    Examples:
      wavryctl users reset alice --reason "called, knows her contract number"

      wavryctl users reset alice --for 24h --output alice.reset
    """

    async def work() -> NewReset:
        if output is not None and output.exists():
            raise CommandError(f"{output} exists", code="file_exists", exit_code=EXIT_USAGE)
        made = await _order(
            endpoints_of(context), _path(name, "reset"), NewReset,
            ResetRequest(life_s=life, reason=reason),
        )  # fmt: skip
        if output is not None:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(made.token + "\n")
        return made

    made = run(work, as_json=json)
    if json:
        told = {"token": made.token} if output is None else {"file": str(output)}
        print_json({"username": made.username, "expires_at": made.expires_at, **told})
        return
    print(f"{made.username} sets a new password until {moment(made.expires_at)}, once, with:")
    print(f"  wavry-peer account reset {made.username} --gateway URL")
    print(f"the token is in {output}" if output else f"and this token:\n{made.token}")


@users_app.command("logout")
def users_logout(
    context: typer.Context, name: NameArgument, reason: Reason = "", *, json: Json = False
) -> None:
    """End every login of a user; he may log in again (`wavryctl bans add user` forbids it).

    Examples:
      wavryctl users logout alice --reason "lost her laptop"
    """

    async def work() -> EndedLogins:
        return await _order(
            endpoints_of(context), _path(name, "logout"), EndedLogins, Order(reason=reason)
        )

    answer = run(work, as_json=json)
    if json:
        print_json(answer)
    else:
        print(f"{answer.ended} logins of {name} have ended")


@users_app.command("delete")
def users_delete(
    context: typer.Context,
    name: NameArgument,
    reason: Reason,
    *,
    free_name: Annotated[
        bool, typer.Option("--free-name", help="Let anybody take the name at once.")
    ] = False,
    json: Json = False,
) -> None:
    """Delete an account: password, logins and sessions go; the audit log stays.

    Live leases of the user end within 15 minutes; `wavryctl leases revoke --user NAME` ends them
    at once. Nobody gets the name for a year: others let it call them.

    Examples:
      wavryctl users delete alice --reason "asked for it"
    """
    body = DeleteUserRequest(reason=reason, free_name=free_name)

    async def work() -> None:
        endpoints = endpoints_of(context)
        answer = await ask(
            "gateway", endpoints.need_gateway(), _path(name, "delete"), method="POST",
            token=endpoints.admin_token(), body=body,
        )  # fmt: skip
        if answer.status >= 400:
            raise refused("gateway", answer)

    run(work, as_json=json)
    if json:
        print_json({"username": name, "deleted": True})
    else:
        print(f"the account {name} is deleted")


def _path(name: str, step: str = "") -> str:
    return f"{USERS_PATH}/{quote(name, safe='')}" + (f"/{step}" if step else "")


async def _get(endpoints: ServiceEndpoints, path: str, kind: type[Answer]) -> Answer:
    return await ask_json(
        "gateway", endpoints.need_gateway(), path, kind, token=endpoints.admin_token()
    )


async def _order(
    endpoints: ServiceEndpoints, path: str, kind: type[Answer], body: msgspec.Struct
) -> Answer:
    return await ask_json(
        "gateway", endpoints.need_gateway(), path, kind,
        method="POST", token=endpoints.admin_token(), body=body,
    )  # fmt: skip
