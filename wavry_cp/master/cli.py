"""Command ``wavry-master``."""

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import structlog
import typer

from wavry_cp.app.http import TokenFileError, serve
from wavry_cp.app.store_errors import StoreUnavailableError
from wavry_cp.app.transport.tls import TlsFileError, TlsFiles
from wavry_cp.master.keys.files import KeyFileError
from wavry_cp.master.keys.live import LiveKeys
from wavry_peer.protocol.errors import LocalError
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

from . import config as configuration
from .app import make_app
from .config import MasterConfig
from .master import MasterTokens, open_master

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


def _load(environ: Mapping[str, str], file: Path | None, **options: Any) -> MasterConfig:
    config = load_layers(
        MasterConfig, environ, file_field=FILE_FIELD, settings_file=file, **options
    )
    configuration.check(config)
    return config


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
    settings_file: Annotated[
        Path | None,
        typer.Option(
            help="TOML or NAME=value file of settings, below the environment"
            " [WAVRY_MASTER_SETTINGS_FILE]."
        ),
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
        config = _load(
            os.environ, settings_file, listen=listen, data_dir=data_dir, keys_dir=keys_dir
        )
        logs.configure("master", level=config.log_level)
        warn_of_unknown_variables(MasterConfig, os.environ)
        asyncio.run(_run(config, ready_file))
    except (SettingsError, KeyFileError, TokenFileError, TlsFileError) as error:
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


def _setting(name: str) -> Any:
    return load_one(MasterConfig, os.environ, name, file_field=FILE_FIELD)


def _open_files(config: MasterConfig) -> None:
    LiveKeys.open(config.keys_dir)
    MasterTokens.load(config)
    TlsFiles.of(config.tls_certificate_file, config.tls_key_file, "MASTER")


app.add_typer(
    config_commands(
        RoleSettings("wavry-master", MasterConfig, _load, _open_files, configuration.insecure)
    ),
    name="config",
)
app.command("health")(
    health_command(
        "wavry-master",
        "WAVRY_MASTER_LISTEN",
        lambda: str(_setting("listen")),
        has_tls=lambda: _setting("tls_certificate_file") is not None,
    )
)


def main() -> None:
    """Entry point of ``wavry-master``."""
    app()
