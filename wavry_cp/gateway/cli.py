"""Command line of the gateway."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from wavry_cp.app.http import serve
from wavry_cp.app.transport.tls import TlsFiles
from wavry_peer.protocol.errors import WavryError
from wavry_peer.service import logs
from wavry_peer.service.commands.config import (
    FILE_FIELD,
    RoleSettings,
    config_commands,
    warn_of_unknown_variables,
)
from wavry_peer.service.commands.health import health_command
from wavry_peer.service.settings import SettingsError, load_layers, load_one, parse_address
from wavry_peer.service.version import software_version

from .app import make_app
from .config import GatewayConfig
from .gateway import GatewayTokens, open_gateway

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

    Settings are environment variables (WAVRY_GATEWAY_…) or a file, see docs/configuration.md.
    """


@app.command()
def run(
    listen: Annotated[
        str | None,
        typer.Option(help="HOST:PORT instead of WAVRY_GATEWAY_LISTEN; port 0 takes a free one."),
    ] = None,
    settings_file: Annotated[
        Path | None,
        typer.Option(
            help="TOML or NAME=value file of settings, below the environment"
            " [WAVRY_GATEWAY_SETTINGS_FILE]."
        ),
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
        config = load_layers(
            GatewayConfig,
            os.environ,
            file_field=FILE_FIELD,
            settings_file=settings_file,
            listen=listen,
        )
        logs.configure("gateway", level=config.log_level)
        warn_of_unknown_variables(GatewayConfig, os.environ)
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


def _setting(name: str) -> Any:
    return load_one(GatewayConfig, os.environ, name, file_field=FILE_FIELD)


def _open_files(config: GatewayConfig) -> None:
    GatewayTokens.load(config)
    TlsFiles.of(config.tls_certificate_file, config.tls_key_file, "GATEWAY")


app.add_typer(
    config_commands(
        RoleSettings(
            "wavry-gateway",
            GatewayConfig,
            lambda environ, file: load_layers(
                GatewayConfig, environ, file_field=FILE_FIELD, settings_file=file
            ),
            _open_files,
            GatewayConfig.insecure,
        )
    ),
    name="config",
)
app.command("health")(
    health_command(
        "wavry-gateway",
        "WAVRY_GATEWAY_LISTEN",
        lambda: str(_setting("listen")),
        has_tls=lambda: _setting("tls_certificate_file") is not None,
    )
)


def main() -> None:
    """Entry point of ``wavry-gateway``."""
    app()
