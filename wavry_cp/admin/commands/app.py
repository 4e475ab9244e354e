"""The commands of wavryctl."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import click
import typer

from wavry_cp.admin.dev.demo import run_demo
from wavry_cp.admin.dev.system import run_dev_system
from wavry_cp.admin.endpoints import DEFAULT_DEV_DIR, VARIABLES, endpoints_of
from wavry_cp.admin.output import (
    EXIT_FAILED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    JsonOption,
    print_json,
    print_rows,
    run,
)
from wavry_cp.admin.relay_control import DEFAULT_STATE_DIR, upgrade_relay
from wavry_peer.service.settings import SettingsError, unknown_text, unknown_variables
from wavry_peer.service.version import software_version

from .audit import audit, events
from .backup import backup_app, restore_backup
from .bans import bans_app
from .blocks import blocks_app
from .doctor import doctor
from .keys import keys_app
from .leases import leases_app
from .relays import relays_app
from .sessions import sessions_app
from .smoke import smoke
from .status import gather_status
from .switches import lockdown, relay_mode
from .tokens import tokens_app
from .users import users_app

__all__ = ["app", "main"]

app = typer.Typer(
    name="wavryctl",
    help="Runs and inspects a Wavry system: gateway, master and relays.\n\n"
    "The services are found by options, by environment variables, or in the dev.json of "
    "`wavryctl dev up`. Exit codes: 0 done, 1 refused or unhealthy, 2 wrong usage, 3 a service "
    "cannot be reached, 4 not allowed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
dev_app = typer.Typer(help="A whole system on this machine, to play with.", no_args_is_help=True)
relay_app = typer.Typer(help="The relay on this machine.", no_args_is_help=True)
app.add_typer(dev_app, name="dev")
app.add_typer(relay_app, name="relay")
app.add_typer(relays_app, name="relays")
app.add_typer(sessions_app, name="sessions")
app.add_typer(leases_app, name="leases")
app.add_typer(keys_app, name="keys")
app.add_typer(users_app, name="users")
app.add_typer(tokens_app, name="tokens")
app.add_typer(bans_app, name="bans")
app.add_typer(blocks_app, name="blocks")
app.add_typer(backup_app, name="backup")
app.command("restore")(restore_backup)
app.command("audit")(audit)
app.command("events")(events)
app.command("relay-mode")(relay_mode)
app.command("lockdown")(lockdown)
app.command()(doctor)
app.command()(smoke)

Json = Annotated[bool, JsonOption]


def _version(value: bool) -> None:  # noqa: FBT001  # typer calls it with the option's value
    if value:
        typer.echo(f"wavryctl {software_version()}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    dev: Annotated[
        Path | None, typer.Option(help="Directory of a `wavryctl dev up` system.")
    ] = None,
    gateway_url: Annotated[str | None, typer.Option(help="URL of the gateway.")] = None,
    master_url: Annotated[str | None, typer.Option(help="URL of the master.")] = None,
    admin_token_file: Annotated[
        Path | None,
        typer.Option(help="File (mode 0600) with the admin token; `-` reads it from stdin."),
    ] = None,
    *,
    ask_token: Annotated[
        bool, typer.Option("--ask-token", help="Ask for the admin token, without showing it.")
    ] = False,
    allow_http: Annotated[
        bool,
        typer.Option(
            "--allow-http",
            help="Ask services on other hosts by http:// too [WAVRY_ALLOW_HTTP]; a token can be"
            " read on the way.",
        ),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version
    for name, meant in unknown_variables(VARIABLES, os.environ).items():
        typer.echo(f"warning: {unknown_text(name, meant)}", err=True)
    context.obj = {
        "dev_dir": dev,
        "gateway_url": gateway_url,
        "master_url": master_url,
        "admin_token_file": admin_token_file,
        "ask_token": ask_token,
        "allow_http": allow_http,
    }


# -- dev and demo ----------------------------------------------------------------------


@dev_app.command("up")
def dev_up(
    relays: Annotated[int, typer.Option(min=1, max=16, help="How many relays.")] = 1,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Workers of each relay.")] = 2,
    data: Annotated[
        Path, typer.Option(help="Directory for databases, keys, tokens, logs and dev.json.")
    ] = DEFAULT_DEV_DIR,
    settings_file: Annotated[
        Path | None,
        typer.Option(help="NAME=value lines with settings of gateway, master and relays."),
    ] = None,
    *,
    json: Json = False,
) -> None:
    """Start gateway, master and relays on loopback, in the foreground; Ctrl-C ends all of it.

    Examples:
      wavryctl dev up

      wavryctl dev up --relays 2 --workers 1 --data /tmp/wavry --json

      wavryctl dev up --settings-file loadtest/raised-limits.env
    """
    run(
        lambda: run_dev_system(
            data, relays=relays, workers=workers, as_json=json, settings_file=settings_file
        ),
        as_json=json,
    )


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where the summary goes as JSON.")] = Path(
        "build/demo.json"
    ),
    megabytes: Annotated[int, typer.Option(min=1, max=1000, help="Size of the file to send.")] = 20,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Length of the media.")] = 10.0,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Workers of the relay.")] = 2,
    *,
    json: Json = False,
) -> None:
    """Start a whole system, send a file and 60 fps media through its relay, kill workers meanwhile.

    Exits 0 only if what arrived is what was sent and no session was lost.

    Examples:
      wavryctl demo

      wavryctl demo --megabytes 50 --seconds 20 --json
    """
    run(
        lambda: run_demo(
            output, megabytes=megabytes, seconds=seconds, workers=workers, as_json=json
        ),
        as_json=json,
    )


# -- status ----------------------------------------------------------------------------


@app.command()
def status(
    context: typer.Context,
    watch: Annotated[
        float | None,
        typer.Option(min=0.2, metavar="SECONDS", help="Show it again and again; Ctrl-C ends it."),
    ] = None,
    *,
    json: Json = False,
) -> None:
    """Show every service in one table; exits 1 if one is not ready, 3 if one is unreachable.

    Examples:
      wavryctl status

      wavryctl status --watch 2

      wavryctl --dev /tmp/wavry status --json
    """

    async def work() -> int:
        while watch is not None:
            if sys.stdout.isatty():
                click.clear()
            await look()
            await asyncio.sleep(watch)
        return await look()

    async def look() -> int:
        endpoints = endpoints_of(context)
        endpoints.need_gateway()
        endpoints.need_master()
        rows = await gather_status(endpoints)
        if json:
            print_json({"services": rows, "ok": all(row.ok for row in rows)})
        else:
            print_rows(
                "Wavry",
                ("service", "name", "state", "detail", "url"),
                [(row.service, row.name, row.state, row.detail, row.url) for row in rows],
            )
        if any(row.state == "unreachable" for row in rows):
            return EXIT_UNREACHABLE
        return 0 if all(row.ok for row in rows) else EXIT_FAILED

    raise typer.Exit(run(work, as_json=json))


# -- relay on this machine -------------------------------------------------------------


@relay_app.command("upgrade")
def relay_upgrade(
    state_dir: Annotated[
        Path,
        typer.Option(envvar="WAVRY_RELAY_STATE_DIR", help="State directory of the relay."),
    ] = DEFAULT_STATE_DIR,
    *,
    json: Json = False,
) -> None:
    """Replace the relay on this machine by the version that is installed now; no session notices.

    Where that fails the old version goes on: exit code 1, 3 if no relay answers.

    Examples:
      wavryctl relay upgrade

      wavryctl relay upgrade --state-dir /var/lib/wavry-relay --json
    """

    def progress(text: str) -> None:
        if not json:
            typer.echo(text, err=True)

    outcome = run(lambda: upgrade_relay(state_dir.expanduser(), progress), as_json=json)
    if json:
        print_json(outcome)
    else:
        typer.echo(
            f"upgraded from {outcome.from_version} to {outcome.to_version}: "
            f"{outcome.workers} workers moved, the relay is now process {outcome.pid}"
        )


def main() -> None:
    """Entry point of ``wavryctl``."""
    try:
        app()
    except SettingsError as error:
        typer.echo(str(error), err=True)
        raise SystemExit(EXIT_USAGE) from None
