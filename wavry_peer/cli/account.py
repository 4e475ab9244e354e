"""``wavry-peer account`` and ``wavry-peer logins``: what a person changes of his own account."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from wavry_peer.errors import GatewayAuthError
from wavry_peer.gateway.client import GatewayClient
from wavry_peer.home.identity import default_home
from wavry_peer.home.logins import LoginStore
from wavry_peer.home.private_files import read_private, write_private
from wavry_peer.protocol.errors import LocalError

from .login import CommandUser, read_password
from .options import As, Gateway, Home, Json, PasswordFile
from .output import Output, run_command

__all__ = ["account_app", "logins_app"]

account_app = typer.Typer(
    help="Your own account: password, data, deletion.", no_args_is_help=True, rich_markup_mode=None
)
logins_app = typer.Typer(
    help="Where you are logged in.", no_args_is_help=True, rich_markup_mode=None
)
NewPasswordFile = Annotated[
    Path | None, typer.Option(help="File (mode 0600) with the new password; else it is asked.")
]
NEW_PASSWORD_VARIABLE: Final = "WAVRY_NEW_PASSWORD"


@asynccontextmanager
async def _logged_in(account: CommandUser) -> AsyncIterator[tuple[GatewayClient, str]]:
    """Give a client with a login, and whose it is; one that is made for it ends with the block.

    Raises:
        GatewayAuthError: there is no login to use.
        LocalError: no password to log in with.
    """
    kept = LoginStore.in_home(account.home).get(account.gateway_url)
    if kept is not None and account.username in (None, kept.username):
        async with account.client(kept.token) as client:
            yield client, kept.username
        return
    if account.username is None:
        text = f"not logged in at {account.gateway_url}; run: wavry-peer login USER"
        raise GatewayAuthError("not_logged_in", text)
    password = read_password(account.password_file, username=account.username)
    async with account.client() as client:
        await client.login(account.username, password, temporary=True)
        try:
            yield client, account.username
        finally:
            if client.token is not None:
                await client.logout()


@account_app.command("password")
def change_password(
    *,
    gateway: Gateway = None,
    as_user: As = None,
    password_file: PasswordFile = None,
    new_password_file: NewPasswordFile = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Change your password; every other login of yours ends.

    Example: wavry-peer account password
    """
    output = Output(as_json=as_json)

    async def work() -> int:
        account = CommandUser.make(gateway, home or default_home(), as_user, password_file)
        async with _logged_in(account) as (client, username):
            password = read_password(password_file, username=username)
            new = _new_password(new_password_file, username)
            ended = await client.change_password(password, new)
        output.event(
            "password_changed", f"password changed; {ended} other logins ended", ended=ended
        )
        return 0

    run_command(output, work())


@account_app.command("reset")
def reset_password(
    username: Annotated[str, typer.Argument(help="Your user name.")],
    *,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File (mode 0600) with the operator's token; else it is asked."),
    ] = None,
    new_password_file: NewPasswordFile = None,
    gateway: Gateway = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Set a new password with the token that an operator gave you; all logins of yours end.

    Example: wavry-peer account reset alice --gateway https://gateway.example
    """
    output = Output(as_json=as_json)

    async def work() -> int:
        account = CommandUser.make(gateway, home or default_home(), username, None)
        token = _secret(token_file, "Token of the operator")
        new = _new_password(new_password_file, username)
        async with account.client() as client:
            await client.reset_password(username, token, new)
        output.event(
            "password_reset", f"password set; next: wavry-peer login {username}", username=username
        )
        return 0

    run_command(output, work())


@account_app.command("export")
def export_account(
    *,
    file: Annotated[
        Path | None, typer.Option(help="Write it here (mode 0600); else to standard output.")
    ] = None,
    gateway: Gateway = None,
    as_user: As = None,
    password_file: PasswordFile = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Get everything that the gateway keeps of you, as JSON.

    Example: wavry-peer account export --file me.json
    """
    output = Output(as_json=as_json)

    async def work() -> int:
        account = CommandUser.make(gateway, home or default_home(), as_user, password_file)
        async with _logged_in(account) as (client, _):
            export = await client.export_account()
        raw = msgspec.json.format(msgspec.json.encode(export))
        if file is not None:
            write_private(file, raw + b"\n")
            output.event("exported", f"written to {file}", file=str(file))
        elif as_json:
            output.event("account", "", **msgspec.to_builtins(export))
        else:
            print(raw.decode())
        return 0

    run_command(output, work())


@account_app.command("delete")
def delete_account(
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    gateway: Gateway = None,
    as_user: As = None,
    password_file: PasswordFile = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Delete your account at the gateway, for good; nobody gets its name for a year.

    Example: wavry-peer account delete
    """
    output = Output(as_json=as_json)

    async def work() -> int:
        directory = home or default_home()
        account = CommandUser.make(gateway, directory, as_user, password_file)
        async with _logged_in(account) as (client, username):
            if not yes and typer.prompt(f"Type {username} to delete the account") != username:
                raise LocalError("the account was not deleted")
            await client.delete_account(read_password(password_file, username=username))
            client.token = None
        store = LoginStore.in_home(directory)
        kept = store.get(account.gateway_url)
        if kept is not None and kept.username == username:
            store.remove(account.gateway_url)
        output.event("deleted", f"the account {username} is deleted", username=username)
        return 0

    run_command(output, work())


@logins_app.command("list")
def list_logins(
    *,
    gateway: Gateway = None,
    as_user: As = None,
    password_file: PasswordFile = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List your logins, newest first.

    Example: wavry-peer logins list
    """
    output = Output(as_json=as_json)

    async def work() -> int:
        account = CommandUser.make(gateway, home or default_home(), as_user, password_file)
        async with _logged_in(account) as (client, _):
            logins = await client.logins()
        for login in logins:
            marks = [*(["this one"] if login.current else ()),
                     *(["one run"] if login.temporary else ())]  # fmt: skip
            output.event(
                "login",
                f"{login.login_id}  since {_moment(login.created_at)}, until "
                f"{_moment(login.expires_at)}  {', '.join(marks)}".rstrip(),
                **msgspec.structs.asdict(login),
            )
        return 0

    run_command(output, work())


@logins_app.command("end")
def end_logins(
    login_id: Annotated[str | None, typer.Argument(help="Id from `logins list`.")] = None,
    *,
    others: Annotated[bool, typer.Option("--others", help="All but the one in use here.")] = False,
    gateway: Gateway = None,
    as_user: As = None,
    password_file: PasswordFile = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """End one of your logins, or all others: whoever uses it must log in again.

    Example: wavry-peer logins end 0f3a5c7e91; wavry-peer logins end --others
    """
    output = Output(as_json=as_json)

    async def work() -> int:
        if (login_id is None) is not others:
            raise LocalError("name one login, or --others")
        account = CommandUser.make(gateway, home or default_home(), as_user, password_file)
        async with _logged_in(account) as (client, _):
            if login_id is None:
                ended = await client.end_other_logins()
            else:
                await client.end_login(login_id)
                ended = 1
        output.event("logins_ended", f"{ended} logins ended", ended=ended)
        return 0

    run_command(output, work())


def _new_password(path: Path | None, username: str) -> str:
    return read_password(
        path,
        username=username,
        confirm=True,
        variable=NEW_PASSWORD_VARIABLE,
        question=f"New password of {username}",
    )


def _secret(path: Path | None, question: str) -> str:
    if path is None:
        text: str = typer.prompt(question, hide_input=True, err=True)
        return text.strip()
    raw = read_private(path)
    if raw is None:
        raise LocalError(f"there is no file {path}")
    return raw.decode("utf-8", "replace").strip()


def _moment(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%MZ")
