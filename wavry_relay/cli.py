"""`wavry-relay`: run a relay, show its identity, ask or drain a running one."""

import asyncio
import functools
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from wavry_peer.protocol import base64url
from wavry_peer.protocol.errors import LocalError
from wavry_peer.protocol.keyset import relay_id
from wavry_peer.service import logs
from wavry_peer.service.commands.config import (
    FILE_FIELD,
    RoleSettings,
    config_commands,
    warn_of_unknown_variables,
)
from wavry_peer.service.commands.health import health_command
from wavry_peer.service.settings import SettingsError, load_layers, load_one
from wavry_peer.service.version import software_version
from wavry_relay.ops.control_socket import CONTROL_SOCKET_NAME
from wavry_relay.supervisor.host import Host
from wavry_relay.supervisor.supervisor import Supervisor

from .config import RelayConfig
from .identity import StateDirectory

__all__ = ["app", "main"]

_EXIT_SETTINGS: Final = 2
_EXIT_FAILURE: Final = 1
_CONTROL_TIMEOUT_S: Final = 5.0
_UPGRADE_TIMEOUT_S: Final = 60.0
"""Between two lines of progress; the relay itself gives a step 45 s at most."""

app = typer.Typer(
    name="wavry-relay",
    help="Forward end-to-end encrypted datagrams for as long as a lease allows.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

blocks_app = typer.Typer(help="Networks that this relay has blocked.", no_args_is_help=True)
app.add_typer(blocks_app, name="blocks")

StateDir = Annotated[
    Path | None,
    typer.Option(help="Directory of the identity and the key set [WAVRY_RELAY_STATE_DIR]."),
]


def _fail(error: Exception, code: int) -> typer.Exit:
    for line in str(error).splitlines():
        typer.echo(f"wavry-relay: {line}", err=True)
    return typer.Exit(code)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it with the flag
    if wanted:
        typer.echo(f"wavry-relay {software_version()}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command()
def run(
    listen: Annotated[
        list[str] | None,
        typer.Option(help="UDP address to serve; may be repeated [WAVRY_RELAY_LISTEN]."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Worker processes, 0 = one for each core [WAVRY_RELAY_WORKERS]."),
    ] = None,
    master_url: Annotated[
        str | None, typer.Option(help="Base URL of the master [WAVRY_RELAY_MASTER_URL].")
    ] = None,
    state_dir: StateDir = None,
    ops_listen: Annotated[
        str | None,
        typer.Option(help="Address of /health, /ready, /metrics [WAVRY_RELAY_OPS_LISTEN]."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="auto, reference or native [WAVRY_RELAY_ENGINE].")
    ] = None,
    settings_file: Annotated[
        Path | None,
        typer.Option(
            help="TOML or NAME=value file of settings, below the environment"
            " [WAVRY_RELAY_SETTINGS_FILE]."
        ),
    ] = None,
    ready_file: Annotated[
        Path | None,
        typer.Option(help="Write a JSON file here once the relay serves.", readable=False),
    ] = None,
    *,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            hidden=True,  # `upgrade` says it; by hand only where it cannot (containers).
            help="Start by a hot upgrade of the relay that runs in this state directory.",
        ),
    ] = False,
) -> None:
    """Run a relay until SIGTERM or Ctrl-C; SIGHUP reads the settings again.

    Example: WAVRY_RELAY_ROOT_KEY=… wavry-relay run --master-url http://127.0.0.1:8091
    """
    try:
        read = functools.partial(
            load_layers,
            RelayConfig,
            dict(os.environ),
            file_field=FILE_FIELD,
            settings_file=settings_file,
            listen=tuple(listen) if listen else None,
            workers=workers,
            master_url=master_url,
            state_dir=state_dir,
            ops_listen=ops_listen,
            engine=engine,
        )
        config = read()
        logs.configure("relay", level=config.log_level)
        warn_of_unknown_variables(RelayConfig, os.environ)
        host = Host.from_environ(os.environ, os.getpid(), read)
        asyncio.run(Supervisor(config, ready_file=ready_file, host=host, take_over=take_over).run())
    except SettingsError as error:
        raise _fail(error, _EXIT_SETTINGS) from error
    except LocalError as error:
        raise _fail(error, _EXIT_FAILURE) from error


@app.command()
def identity(state_dir: StateDir = None) -> None:
    """Show the relay's id and public key; makes the key on first use.

    Example: wavry-relay identity --state-dir /var/lib/wavry-relay
    """
    try:
        key = StateDirectory(_state_path(state_dir)).identity()
    except LocalError as error:
        raise _fail(error, _EXIT_FAILURE) from error
    facts = {
        "relay_id": relay_id(key.public_key),
        "public_key": base64url.encode(key.public_key),
    }
    typer.echo(json.dumps(facts, indent=2))


def _state_path(given: Path | None) -> Path:
    # Only this one setting matters here; the guards of `run` must not stand in the way.
    default = RelayConfig.__dataclass_fields__["state_dir"].default
    return (given or Path(os.environ.get("WAVRY_RELAY_STATE_DIR") or str(default))).expanduser()


def _control_command(name: str, text: str) -> Callable[..., None]:
    def command(state_dir: StateDir = None) -> None:
        try:
            answer = next(_ask(_state_path(state_dir) / CONTROL_SOCKET_NAME, name))
        except LocalError as error:
            raise _fail(error, _EXIT_FAILURE) from error
        typer.echo(json.dumps(answer, indent=2))
        if answer.get("error"):
            raise typer.Exit(_EXIT_FAILURE)

    command.__doc__ = f"{text}\n\nExample: wavry-relay {name} --state-dir /var/lib/wavry-relay"
    return command


def _ask(
    path: Path, name: str, subnet: str | None = None, *, timeout_s: float = _CONTROL_TIMEOUT_S
) -> Iterator[Any]:
    """Send a command; every line of the answer.

    Raises:
        LocalError: no relay is there, or it goes away.
    """
    order = {"command": name} if subnet is None else {"command": name, "subnet": subnet}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(str(path))
            sock.sendall(json.dumps(order).encode() + b"\n")
            with sock.makefile("rb") as answers:
                for line in answers:
                    yield json.loads(line)
        except OSError as error:
            raise LocalError(
                f"no relay answers at {path} ({error}); is it running with this state directory?"
            ) from error
    raise LocalError("the relay closed the control socket without an answer")


@blocks_app.command("list")
def blocks_list(state_dir: StateDir = None) -> None:
    """Show the hosts that are blocked now, as JSON.

    Example: wavry-relay blocks list --state-dir /var/lib/wavry-relay
    """
    _show(_one_answer(state_dir, "blocks"))


@blocks_app.command("clear")
def blocks_clear(
    subnet: Annotated[
        str | None, typer.Argument(help="E.g. 192.0.2.7/32, or a network of several.")
    ] = None,
    state_dir: StateDir = None,
    *,
    all_blocks: Annotated[bool, typer.Option("--all", help="Lift every block.")] = False,
) -> None:
    """Lift the block of an address, or all blocks.

    Example: wavry-relay blocks clear 192.0.2.7/32
    """
    if (subnet is None) != all_blocks:
        raise _fail(LocalError("name a subnet, or give --all"), _EXIT_SETTINGS)
    _show(_one_answer(state_dir, "clear_blocks", subnet))


def _one_answer(state_dir: Path | None, name: str, subnet: str | None = None) -> Any:
    try:
        return next(_ask(_state_path(state_dir) / CONTROL_SOCKET_NAME, name, subnet))
    except LocalError as error:
        raise _fail(error, _EXIT_FAILURE) from error


def _show(answer: Any) -> None:
    if answer.get("error"):
        raise _fail(LocalError(answer["message"]), _EXIT_FAILURE)
    typer.echo(json.dumps(answer, indent=2))


@app.command()
def upgrade(state_dir: StateDir = None) -> None:
    """Replace the running relay by the version that is installed now; no session notices.

    Example: wavry-relay upgrade --state-dir /var/lib/wavry-relay
    """
    try:
        outcome = _upgraded(_state_path(state_dir) / CONTROL_SOCKET_NAME)
    except LocalError as error:
        raise _fail(error, _EXIT_FAILURE) from error
    typer.echo(json.dumps(outcome, indent=2))


def _upgraded(path: Path) -> Any:
    for answer in _ask(path, "upgrade", timeout_s=_UPGRADE_TIMEOUT_S):
        if answer.get("upgraded"):
            return answer
        if "progress" not in answer:
            raise LocalError(answer.get("message", "the relay cannot be upgraded"))
        typer.echo(answer["progress"], err=True)
    return None


app.command("status")(_control_command("status", "Show the state of the running relay."))
app.command("drain")(
    _control_command("drain", "Take no new sessions; live ones go on and are renewed.")
)
app.command("reload")(
    _control_command("reload", "Read the settings again, as SIGHUP does; exit status 1 if wrong.")
)
app.command("undrain")(_control_command("undrain", "Take new sessions again after `drain`."))


def _no_worker(body: dict[str, Any]) -> str:
    """Tell why a supervisor that answers is not well: nobody forwards."""
    workers = body.get("workers", {})
    return "" if workers.get("running") else "no worker runs; the supervisor's log names the cause"


app.add_typer(
    config_commands(
        RoleSettings(
            "wavry-relay",
            RelayConfig,
            lambda environ, file: load_layers(
                RelayConfig, environ, file_field=FILE_FIELD, settings_file=file
            ),
            RelayConfig.trusted_root,
            RelayConfig.insecure,
        )
    ),
    name="config",
)
app.command("health")(
    health_command(
        "wavry-relay",
        "WAVRY_RELAY_OPS_LISTEN",
        lambda: str(load_one(RelayConfig, os.environ, "ops_listen", file_field=FILE_FIELD)),
        _no_worker,
    )
)


def main() -> None:
    """Run `wavry-relay`."""
    app(prog_name="wavry-relay")
