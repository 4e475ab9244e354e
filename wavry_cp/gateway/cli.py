"""Command line of the gateway."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from wavry_cp.app.http import serve
from wavry_peer.protocol.errors import WavryError
from wavry_peer.service import logs
from wavry_peer.service.health_command import health_command
from wavry_peer.service.settings import SettingsError, load, load_one, parse_address
from wavry_peer.service.version import software_version

from .app import make_app
from .config import GatewayConfig
from .gateway import open_gateway

__all__ = ["app", "main"]

app = typer.Typer(
    name="wavry-gateway",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Accounts, signaling and the relay broker of Wavry.",
)


def _show_version(wanted: bool) -> None:  # noqa: FBT001  # typer passes an option's value so
    if wanted:
        typer.echo(f"wavry-gateway {software_version()}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[  # noqa: FBT002  # as above
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and end."
        ),
    ] = False,
) -> None:
    """Accounts, signaling and the relay broker of Wavry.

    Settings are environment variables (WAVRY_GATEWAY_…, see docs/configuration.md).
    """


@app.command()
def run(
    listen: Annotated[
        str | None,
        typer.Option(help="HOST:PORT instead of WAVRY_GATEWAY_LISTEN; port 0 takes a free one."),
    ] = None,
    ready_file: Annotated[
        Path | None,
        typer.Option(
            help='Where {"url", "pid"} is written as JSON once the gateway serves.', readable=False
        ),
    ] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Example: WAVRY_GATEWAY_DATA_DIR=/var/lib/wavry WAVRY_GATEWAY_MASTER_URL=http://127.0.0.1:8091
    WAVRY_GATEWAY_SERVICE_TOKEN_FILE=/etc/wavry/service.token wavry-gateway run
    """
    try:
        config = load(GatewayConfig, os.environ, listen=listen)
        logs.configure("gateway", level=config.log_level)
        asyncio.run(_run(config, ready_file))
    except SettingsError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from error
    except (WavryError, OSError) as error:
        print(f"wavry-gateway cannot run: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


async def _run(config: GatewayConfig, ready_file: Path | None) -> None:
    host, port = parse_address(config.listen)
    async with open_gateway(config) as gateway:
        await serve(make_app(gateway), host, port, ready_file, "gateway")


app.command("health")(
    health_command(
        "wavry-gateway",
        "WAVRY_GATEWAY_LISTEN",
        lambda: str(load_one(GatewayConfig, os.environ, "listen")),
    )
)


def main() -> None:
    """Entry point of ``wavry-gateway``."""
    app()
