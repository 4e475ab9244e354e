"""``config check`` and ``config show`` of every service; its warning about unknown variables."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Generic, TypeVar

import structlog
import typer

from wavry_peer.protocol.errors import LocalError
from wavry_peer.service.settings import (
    SettingValue,
    unknown_text,
    unknown_variables,
    values_of,
    variables_of,
)

__all__ = ["FILE_FIELD", "RoleSettings", "config_commands", "warn_of_unknown_variables"]

EXIT_INSECURE: Final = 1
EXIT_UNFIT: Final = 2
FILE_FIELD: Final = "settings_file"

Config = TypeVar("Config")


@dataclass(frozen=True, slots=True)
class RoleSettings(Generic[Config]):
    """What the commands must know of a role.

    Attributes:
        command: e.g. ``"wavry-master"``.
        kind: of its settings.
        load: as its ``run`` does, from an environment and, where one is given, a file.
        open_files: reads what the settings name, as ``run`` would; raises `LocalError`.
        insecure: names what should not be so in production.
    """

    command: str
    kind: type[Config]
    load: Callable[[Mapping[str, str], Path | None], Config]
    open_files: Callable[[Config], object]
    insecure: Callable[[Config], list[str]]


@dataclass(frozen=True, slots=True)
class _Findings:
    ok: bool
    faults: list[str]
    insecure: list[str]
    unknown: dict[str, str]
    settings: list[SettingValue]

    @property
    def exit_status(self) -> int:
        return EXIT_UNFIT if self.faults else EXIT_INSECURE if self.insecure else 0


def _look_at(role: RoleSettings[Any], file: Path | None) -> _Findings:
    environ = dict(os.environ)
    unknown = unknown_variables(variables_of(role.kind), environ)
    try:
        config = role.load(environ, file)
        values = values_of(config, environ, file_field=FILE_FIELD, settings_file=file)
    except LocalError as error:
        return _Findings(
            ok=False, faults=str(error).splitlines(), insecure=[], unknown=unknown, settings=[]
        )
    insecure, faults = role.insecure(config), []
    try:
        role.open_files(config)
    except LocalError as error:
        faults = str(error).splitlines()
    return _Findings(not (faults or insecure), faults, insecure, unknown, values)


_File = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Settings file, as for `run`."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def config_commands(role: RoleSettings[Any]) -> typer.Typer:
    """Make the commands ``config check`` and ``config show`` of a role."""
    app = typer.Typer(help="The settings that `run` would have.", no_args_is_help=True)
    command = role.command

    def check(*, settings_file: _File = None, as_json: _Json = False) -> None:
        found = _look_at(role, settings_file)
        if as_json:
            typer.echo(json.dumps(_without(asdict(found), "settings"), indent=2))
        else:
            _print_findings(found)
            if found.ok:
                typer.echo(f"{command}: the settings fit")
        raise typer.Exit(found.exit_status)

    def show(*, settings_file: _File = None, as_json: _Json = False) -> None:
        found = _look_at(role, settings_file)
        if as_json:
            typer.echo(json.dumps(asdict(found), indent=2))
        else:
            for row in found.settings:
                typer.echo(f"{row.variable}={row.value}  # {row.source}")
            _print_findings(found)
        # Shown is shown: what is insecure or does not open is for `check` to judge.
        raise typer.Exit(0 if found.settings else found.exit_status)

    check.__doc__ = f"""Judge the settings as `run` would, the files that they name included.

    Exit status: 0 they fit, 1 they fit and something is insecure, 2 they do not fit.

    Example: {command} config check --json
    """
    show.__doc__ = f"""Show each setting, and whether it comes from environment, file or default.

    Exit status: 0 shown, 2 they do not fit.

    Example: {command} config show
    """
    app.command("check")(check)
    app.command("show")(show)
    return app


def _without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != name}


def _print_findings(found: _Findings) -> None:
    for fault in found.faults:
        typer.echo(f"does not fit: {fault}", err=True)
    for text in found.insecure:
        typer.echo(f"insecure: {text}", err=True)
    for name, meant in found.unknown.items():
        typer.echo(f"not known: {unknown_text(name, meant)}", err=True)


def warn_of_unknown_variables(kind: type[Any], environ: Mapping[str, str]) -> None:
    """Log, once at the start of a service, each ``WAVRY_…`` variable that it does not know."""
    log = structlog.get_logger(__name__)
    for name, meant in unknown_variables(variables_of(kind), environ).items():
        log.warning(
            "unknown_variable",
            variable=name,
            next_step=f"write {meant}, if that is meant" if meant else "remove it",
        )
