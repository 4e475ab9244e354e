"""``wavry-peer``: accounts, encrypted sessions, files and pings from the command line."""

import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer

from wavry_peer.errors import GatewayError, GatewayUnreachableError, PeerError
from wavry_peer.gateway.calls import AcceptPolicy
from wavry_peer.home.identity import IDENTITY_FILE, default_home, fingerprint, load_identity
from wavry_peer.home.known_peers import KnownPeers
from wavry_peer.home.logins import LoginStore
from wavry_peer.protocol.errors import LocalError
from wavry_peer.service.settings import unknown_text, unknown_variables
from wavry_peer.service.version import software_version

from .account import account_app, logins_app
from .chat import StandardInput, chat
from .files import receive_files, send_one
from .login import VARIABLES, CommandUser, read_password
from .options import As, Gateway, Home, Json, PasswordFile
from .output import EXIT_STATUSES, Output, run_command
from .ping import ping_session

__all__ = ["app", "main"]

_EPILOG: Final = "Exit status: " + "; ".join(
    f"{status} {text}" for status, text in EXIT_STATUSES.items()
)

app = typer.Typer(
    name="wavry-peer",
    help="End-to-end encrypted datagram sessions with other users of a gateway.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(account_app, name="account")
app.add_typer(logins_app, name="logins")

From = Annotated[
    list[str] | None,
    typer.Option("--from", metavar="USER", help="Accept calls of this user; may be repeated."),
]
FromAll = Annotated[bool, typer.Option("--from-all", help="Accept calls of every user.")]
Keep = Annotated[bool, typer.Option("--keep", help="Go on after the first one.")]


def _version(wanted: bool) -> None:  # noqa: FBT001  # typer calls it so
    if wanted:
        typer.echo(f"wavry-peer {software_version()}")
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[  # noqa: ARG001  # done by its callback
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Tell on standard error what happens.")
    ] = False,
) -> None:
    """End-to-end encrypted datagram sessions with other users of a gateway.

    Example: wavry-peer register alice; wavry-peer login alice; wavry-peer connect bob
    """
    for name, meant in unknown_variables(VARIABLES, os.environ).items():
        typer.echo(f"warning: {unknown_text(name, meant)}", err=True)
    logging.basicConfig(
        level=logging.INFO if verbose else logging.ERROR,
        stream=sys.stderr,
        format="%(levelname)s %(message)s",
    )


@app.command()
def register(
    username: Annotated[str, typer.Argument(help="1 to 32 of a-z 0-9 . _ -")],
    *,
    gateway: Gateway = None,
    password_file: PasswordFile = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make an account.

    Example: wavry-peer register alice --gateway https://gateway.example
    """
    output = Output(as_json=as_json)

    async def work() -> int:
        account = CommandUser.make(gateway, home or default_home(), username, password_file)
        password = read_password(password_file, username=username, confirm=True)
        async with account.client() as client:
            await client.register(username, password)
        output.event(
            "registered", f"registered {username}; next: wavry-peer login {username}",
            username=username,
        )  # fmt: skip
        return 0

    run_command(output, work())


@app.command()
def login(
    username: Annotated[str, typer.Argument(help="Your user name.")],
    *,
    gateway: Gateway = None,
    password_file: PasswordFile = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Log in and keep the login for later commands.

    Example: wavry-peer login alice --gateway https://gateway.example
    """
    output = Output(as_json=as_json)

    async def work() -> int:
        directory = home or default_home()
        account = CommandUser.make(gateway, directory, username, password_file)
        password = read_password(password_file, username=username)
        async with account.client() as client:
            new = await client.login(username, password)
        LoginStore.in_home(directory).put(account.gateway_url, new)
        output.event(
            "logged_in", f"logged in as {new.username}",
            username=new.username, expires_at=new.expires_at,
        )  # fmt: skip
        return 0

    run_command(output, work())


@app.command()
def logout(*, gateway: Gateway = None, home: Home = None, as_json: Json = False) -> None:
    """End the kept login, here and at the gateway.

    Example: wavry-peer logout
    """
    output = Output(as_json=as_json)

    async def work() -> int:
        directory = home or default_home()
        account = CommandUser.make(gateway, directory, None, None)
        store = LoginStore.in_home(directory)
        kept = store.get(account.gateway_url)
        if kept is None:
            raise LocalError(f"not logged in at {account.gateway_url}")
        try:
            async with account.client(kept.token) as client:
                await client.logout()
        except GatewayUnreachableError:
            output.remark("the login is still valid at the gateway: run logout again later")
            raise
        except GatewayError as error:
            if error.status != 401:
                raise
        store.remove(account.gateway_url)
        output.event("logged_out", f"logged out {kept.username}", username=kept.username)
        return 0

    run_command(output, work())


@app.command()
def identity(*, home: Home = None, as_json: Json = False) -> None:
    """Show the fingerprint of your key, for others to compare.

    Example: wavry-peer identity
    """
    output = Output(as_json=as_json)

    async def work() -> int:
        own = load_identity(home or default_home())
        text = fingerprint(own.noise.public)
        output.event("identity", text, fingerprint=text, noise_key=own.noise_key)
        return 0

    run_command(output, work())


@app.command()
def forget(
    username: Annotated[str, typer.Argument(help="Whose key to forget.")],
    *,
    gateway: Gateway = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Forget the pinned key of a user, so that the next one is believed.

    Ask the user first whether the key has really changed.

    Example: wavry-peer forget bob
    """
    output = Output(as_json=as_json)

    async def work() -> int:
        directory = home or default_home()
        account = CommandUser.make(gateway, directory, None, None)
        known = KnownPeers.in_home(directory).forget(account.gateway_url, username)
        if not known:
            raise LocalError(f"no key of {username} is pinned for {account.gateway_url}")
        output.event("forgotten", f"forgot the key of {username}", username=username)
        return 0

    run_command(output, work())


@app.command()
def connect(
    username: Annotated[str, typer.Argument(help="Whom to call.")],
    *,
    gateway: Gateway = None,
    as_user: As = None,
    password_file: PasswordFile = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Call a user who runs `host`; lines of standard input become datagrams, and the other way.

    Datagrams may be lost: use send and receive for files.

    Example: echo hello | wavry-peer connect bob
    """
    output = Output(as_json=as_json)

    async def work() -> int:
        account = CommandUser.make(gateway, home or default_home(), as_user, password_file)
        async with account.peer() as peer, await peer.connect(username) as session:
            output.remark(f"connected to {username} ({session.statistics().path})")
            if as_json:
                output.event("connected", "", with_username=username)
            await chat(session, StandardInput(), output, ends_with_input=True)
            if as_json:
                output.event("closed", "", statistics=asdict(session.statistics()))
        return 0

    run_command(output, work())


@app.command()
def host(
    *,
    from_users: From = None,
    from_all: FromAll = False,
    keep: Keep = False,
    gateway: Gateway = None,
    as_user: As = None,
    password_file: PasswordFile = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Wait for a call; lines of standard input become datagrams, and the other way.

    Also answers `ping`.

    Example: wavry-peer host --from alice
    """
    output = Output(as_json=as_json)

    async def work() -> int:
        policy = _policy(from_users, from_all=from_all)
        account = CommandUser.make(gateway, home or default_home(), as_user, password_file)
        standard_input = StandardInput()
        status = 0
        async with account.peer() as peer, peer.listen(accept=policy) as listener:
            _tell_listening(output, listener.username)
            async for session in listener:
                caller = session.remote_username
                async with session:
                    output.remark(f"{caller} is connected")
                    if as_json:
                        output.event("connected", "", with_username=caller)
                    status = 0
                    try:
                        await chat(session, standard_input, output, ends_with_input=False)
                    except PeerError as error:
                        status = 1
                        output.error(error)
                    if as_json:
                        output.event("closed", "", statistics=asdict(session.statistics()))
                    output.remark(f"{caller} has left")
                if not keep:
                    break
        return status

    run_command(output, work(), status_on_signal=0)


@app.command()
def send(
    file: Annotated[Path, typer.Argument(help="The file to send.")],
    *,
    to: Annotated[str, typer.Option("--to", metavar="USER", help="Who runs `receive`.")],
    name: Annotated[str | None, typer.Option(help="Name told to the receiver.")] = None,
    gateway: Gateway = None,
    as_user: As = None,
    password_file: PasswordFile = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Send a file, and wait until the receiver has stored and checked it.

    Example: wavry-peer send holiday.jpg --to bob
    """
    output = Output(as_json=as_json)

    async def work() -> int:
        if not file.is_file():
            raise LocalError(f"there is no file {file}")
        account = CommandUser.make(gateway, home or default_home(), as_user, password_file)
        async with account.peer() as peer:
            return await send_one(peer, to, file, name, output)

    run_command(output, work())


@app.command()
def receive(
    *,
    from_users: From = None,
    from_all: FromAll = False,
    directory: Annotated[Path, typer.Option(help="Where files go.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
    max_bytes: Annotated[int | None, typer.Option(min=0, help="Refuse larger files.")] = None,
    keep: Keep = False,
    gateway: Gateway = None,
    as_user: As = None,
    password_file: PasswordFile = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Wait for a file and store it under the name that the sender gave.

    Example: wavry-peer receive --from alice --directory ~/Downloads
    """
    output = Output(as_json=as_json)

    async def work() -> int:
        policy = _policy(from_users, from_all=from_all)
        if not directory.is_dir():
            raise LocalError(f"there is no directory {directory}")
        account = CommandUser.make(gateway, home or default_home(), as_user, password_file)
        async with account.peer() as peer, peer.listen(accept=policy) as listener:
            _tell_listening(output, listener.username)
            return await receive_files(
                listener, directory, force=force, max_bytes=max_bytes, keep=keep, output=output
            )

    run_command(output, work(), status_on_signal=0 if keep else None)


@app.command()
def ping(
    username: Annotated[str, typer.Argument(help="Who runs `host` or `receive`.")],
    *,
    count: Annotated[int, typer.Option(min=1, max=100_000, help="Probes to send.")] = 5,
    interval: Annotated[float, typer.Option(min=0.01, help="Seconds between probes.")] = 1.0,
    gateway: Gateway = None,
    as_user: As = None,
    password_file: PasswordFile = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Measure the way to a user and back, end to end through the relay.

    Example: wavry-peer ping bob --count 10
    """
    output = Output(as_json=as_json)

    async def work() -> int:
        account = CommandUser.make(gateway, home or default_home(), as_user, password_file)
        async with account.peer() as peer, await peer.connect(username) as session:
            output.remark(f"connected to {username} ({session.statistics().path})")

            def on_reply(number: int, round_trip_ms: float) -> None:
                text = f"{username}: number={number} time={round_trip_ms:.2f} ms"
                output.event("reply", text, number=number, round_trip_ms=round_trip_ms)

            summary, failure = await ping_session(
                session, count=count, interval_s=interval, on_reply=on_reply
            )
            times = "no answer"
            if summary.min_ms is not None:
                times = (
                    f"min/avg/median/max/jitter {summary.min_ms:.2f}/{summary.avg_ms:.2f}/"
                    f"{summary.median_ms:.2f}/{summary.max_ms:.2f}/{summary.jitter_ms:.2f} ms"
                )
            text = f"{summary.sent} sent, {summary.lost_pct:.0f} % lost, {times}"
            statistics = asdict(session.statistics())
            output.event("summary", text, **asdict(summary), statistics=statistics)
            if failure is not None:
                raise failure
            return 0 if summary.received else 1

    run_command(output, work())


@app.command()
def health(*, gateway: Gateway = None, home: Home = None, as_json: Json = False) -> None:
    """Check that this peer could work: files are sound, the gateway answers and takes the login.

    Without a kept login (see --as) only the first two count. It makes no key and calls nobody.

    Example: wavry-peer health --json
    """
    output = Output(as_json=as_json)

    async def work() -> int:
        directory = home or default_home()
        account = CommandUser.make(gateway, directory, None, None)
        if (directory / IDENTITY_FILE).exists():
            load_identity(directory)
        kept = LoginStore.in_home(directory).get(account.gateway_url)
        async with account.client(kept.token if kept else None) as client:
            await client.check()
        login = f"{kept.username} is logged in" if kept else "no login is kept"
        output.event(
            "healthy", f"healthy: the gateway answers, {login}",
            gateway_url=account.gateway_url, username=kept.username if kept else None,
        )  # fmt: skip
        return 0

    run_command(output, work())


def _policy(from_users: list[str] | None, *, from_all: bool) -> AcceptPolicy:
    if from_all:
        return "all"
    if not from_users:
        raise LocalError("say whose calls to accept: --from USER (may be repeated), or --from-all")
    return frozenset(from_users)


def _tell_listening(output: Output, username: str) -> None:
    output.remark(f"waiting for calls as {username}; Ctrl-C ends it")
    if output.as_json:
        output.event("listening", "", username=username)


def main() -> None:
    """Entry point of ``wavry-peer``."""
    app()
