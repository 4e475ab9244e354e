"""Command ``wavry-master``."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Final

import structlog
import typer

from wavry_cp.app.http import TokenFileError, serve
from wavry_cp.app.store_errors import StoreUnavailableError
from wavry_cp.master.keys.files import KeyFileError
from wavry_peer.protocol.errors import LocalError
from wavry_peer.service import logs, settings
from wavry_peer.service.health_command import health_command
from wavry_peer.service.settings import SettingsError, parse_address
from wavry_peer.service.version import software_version

from . import config as configuration
from .app import make_app
from .config import MasterConfig
from .master import open_master

__all__ = ["app", "main"]

EXIT_FAILED: Final = 1
EXIT_SETTINGS: Final = 2

app = typer.Typer(
    name="wavry-master",
    help="The Wavry master: knows the relays and signs leases.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(*, wanted: bool) -> None:
    if wanted:
        typer.echo(f"wavry-master {software_version()}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=lambda value: _show_version(wanted=value), is_eager=True
        ),
    ] = False,
) -> None:
    """Run the Wavry master, which knows the relays and signs leases."""


@app.command()
def run(
    *,
    listen: Annotated[
        str | None, typer.Option(help="Address and port, e.g. 127.0.0.1:8091; port 0 is any.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Directory of the database.")] = None,
    keys_dir: Annotated[
        Path | None, typer.Option(help="Directory made by `wavryctl keys init`.")
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Write {url, pid} here once serving.", readable=False)
    ] = None,
) -> None:
    """Run the master until SIGTERM or Ctrl-C.

    Options win over the environment variables WAVRY_MASTER_*; see docs/configuration.md.

    Example: wavry-master run --data-dir data --keys-dir keys --listen 127.0.0.1:8091
    """
    try:
        config = settings.load(
            MasterConfig, os.environ, listen=listen, data_dir=data_dir, keys_dir=keys_dir
        )
        configuration.check(config)
        logs.configure("master", level=config.log_level)
        asyncio.run(_run(config, ready_file))
    except (SettingsError, KeyFileError, TokenFileError) as error:
        typer.echo(f"wavry-master: {error}", err=True)
        sys.exit(EXIT_SETTINGS)
    except (LocalError, StoreUnavailableError) as error:
        typer.echo(f"wavry-master: {error}", err=True)
        sys.exit(EXIT_FAILED)


async def _run(config: MasterConfig, ready_file: Path | None) -> None:
    host, port = parse_address(config.listen)
    async with open_master(config) as master:
        await serve(make_app(master), host, port, ready_file, "master")
    structlog.get_logger(__name__).info("stopped")


app.command("health")(
    health_command(
        "wavry-master",
        "WAVRY_MASTER_LISTEN",
        lambda: str(settings.load_one(MasterConfig, os.environ, "listen")),
    )
)


def main() -> None:
    """Entry point of ``wavry-master``."""
    app()
