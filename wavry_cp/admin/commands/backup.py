"""``wavryctl backup`` and ``wavryctl restore``: a service's data in one encrypted file."""

import getpass
import os
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
import typer
from nacl.public import PrivateKey
from typer.core import TyperGroup

from wavry_cp.admin.output import (
    EXIT_FAILED,
    EXIT_USAGE,
    CommandError,
    JsonOption,
    fail,
    moment,
    print_json,
    print_rows,
)
from wavry_cp.app.directory_lock import DirectoryInUseError
from wavry_cp.backup.contents import SERVICES, Manifest, Places, ServiceName, database_file
from wavry_cp.backup.making import Lock, make_backup
from wavry_cp.backup.reading import opened_backup
from wavry_cp.backup.restoring import RestoreRefusedError, restore
from wavry_cp.backup.sealed_file import BackupFileError, Secret, new_identity, parse_recipient
from wavry_peer.protocol import base64url
from wavry_peer.protocol.errors import LocalError
from wavry_peer.service.secret_files import is_open_to_others

__all__ = ["backup_app", "restore_backup"]

MIN_PASSPHRASE_CHARS: Final = 10
MAX_SECRET_BYTES: Final = 4096
Result = TypeVar("Result")


class _CreateByDefault(TyperGroup):
    """``backup FILE`` is ``backup create FILE``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Take what is no command for the file of `create`."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["create", *args]
        return super().resolve_command(ctx, args)


backup_app = typer.Typer(
    help="Backups of gateway and master; `backup FILE` is `backup create FILE`.",
    cls=_CreateByDefault,
    no_args_is_help=True,
)


class ServiceOption(StrEnum):
    """Whose data."""

    GATEWAY = "gateway"
    MASTER = "master"


Json = Annotated[bool, JsonOption]
File = Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")]
Service = Annotated[
    ServiceOption | None,
    typer.Option(help="Whose data; else the one whose database or settings are there."),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Data directory; default WAVRY_{GATEWAY,MASTER}_DATA_DIR.")
]
KeysDir = Annotated[
    Path | None, typer.Option(help="Key directory of a master; default WAVRY_MASTER_KEYS_DIR.")
]
ServiceToken = Annotated[
    Path | None, typer.Option(help="Default WAVRY_{GATEWAY,MASTER}_SERVICE_TOKEN_FILE.")
]
AdminToken = Annotated[
    Path | None,
    typer.Option(help="The service's own; default WAVRY_{GATEWAY,MASTER}_ADMIN_TOKEN_FILE."),
]
SettingsFile = Annotated[
    Path | None,
    typer.Option(help="File with the service's settings; else those in the environment are taken."),
]
PassphraseFile = Annotated[
    Path | None, typer.Option(help="File (mode 0600) with the passphrase; else it is asked.")
]
IdentityFile = Annotated[
    Path | None, typer.Option(help="File (mode 0600) of `backup keygen`, for its backups.")
]


@dataclass(frozen=True, slots=True)
class _Named:
    """The places that options name."""

    service: ServiceName | None
    data_dir: Path | None
    keys_dir: Path | None
    service_token_file: Path | None
    admin_token_file: Path | None
    settings_file: Path | None

    def places(self, service: ServiceName) -> Places:
        """Return where the files of a service are, by options and else by its variables."""
        data_dir = self.data_dir or _variable(service, "DATA_DIR")
        if data_dir is None:
            raise CommandError(
                f"where are the data of the {service}? Give --data-dir, or set "
                f"WAVRY_{service.upper()}_DATA_DIR",
                code="no_directory",
                exit_code=EXIT_USAGE,
            )
        keys_dir = self.keys_dir or _variable(service, "KEYS_DIR")
        if service == "master" and keys_dir is None:
            raise CommandError(
                "where are the keys of the master? Give --keys-dir, or set WAVRY_MASTER_KEYS_DIR",
                code="no_directory",
                exit_code=EXIT_USAGE,
            )
        return Places(
            service,
            data_dir,
            keys_dir if service == "master" else None,
            self.service_token_file or _variable(service, "SERVICE_TOKEN_FILE"),
            self.admin_token_file or _variable(service, "ADMIN_TOKEN_FILE"),
            self.settings_file,
        )

    def guess_service(self) -> ServiceName:
        """Return the service that is meant where only one can be."""
        if self.service is not None:
            return self.service
        if self.data_dir is not None:
            found = [name for name in SERVICES if (self.data_dir / database_file(name)).exists()]
        else:
            found = [name for name in SERVICES if _variable(name, "DATA_DIR") is not None]
        if len(found) != 1:
            raise CommandError(
                "gateway or master? Give --service, and --data-dir with its database",
                code="which_service",
                exit_code=EXIT_USAGE,
            )
        return found[0]


def _variable(service: ServiceName, name: str) -> Path | None:
    text = os.environ.get(f"WAVRY_{service.upper()}_{name}", "").strip()
    return Path(text).expanduser() if text else None


@backup_app.command("create")
def backup_create(
    file: File,
    service: Service = None,
    data_dir: DataDir = None,
    keys_dir: KeysDir = None,
    service_token_file: ServiceToken = None,
    admin_token_file: AdminToken = None,
    settings_file: SettingsFile = None,
    passphrase_file: PassphraseFile = None,
    recipient: Annotated[
        str | None, typer.Option(help="Encrypt for this key of `backup keygen`, no passphrase.")
    ] = None,
    *,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing FILE.")] = False,
    json: Json = False,
) -> None:
    """Back up gateway or master while it runs: database, keys, tokens and settings, encrypted.

    What the service has answered before the command began is in it.

    Examples:
      wavryctl backup create master.wavrybak --data-dir /var/lib/wavry-master
      --keys-dir /var/lib/wavry-master/keys --passphrase-file /root/backup.pass

      WAVRY_GATEWAY_DATA_DIR=/var/lib/wavry-gateway wavryctl backup gateway.wavrybak --json
    """
    named = _Named(
        service.value if service else None, data_dir, keys_dir, service_token_file,
        admin_token_file, settings_file,
    )  # fmt: skip

    def work() -> Manifest:
        places = named.places(named.guess_service())
        if file.exists() and not replace:
            raise CommandError(
                f"{file} exists: choose another name, or --replace", code="file_exists",
                exit_code=EXIT_USAGE,
            )  # fmt: skip
        lock = (
            Lock(recipient=parse_recipient(recipient))
            if recipient is not None
            else Lock(passphrase=_passphrase(passphrase_file, confirm=True))
        )
        return make_backup(places, file, lock, _settings(places), now_s=lambda: int(time.time()))

    _tell(file, _run(work, as_json=json), "made", as_json=json)


@backup_app.command("show")
def backup_show(
    file: File,
    passphrase_file: PassphraseFile = None,
    identity_file: IdentityFile = None,
    *,
    json: Json = False,
) -> None:
    """Say what a backup holds; nothing is written.

    Examples:
      wavryctl backup show master.wavrybak --passphrase-file /root/backup.pass
    """

    def work() -> Manifest:
        with opened_backup(file, _asker(passphrase_file, identity_file)) as backup:
            return backup.manifest

    _tell(file, _run(work, as_json=json), "holds", as_json=json)


@backup_app.command("verify")
def backup_verify(
    file: File,
    passphrase_file: PassphraseFile = None,
    identity_file: IdentityFile = None,
    *,
    json: Json = False,
) -> None:
    """Read all of a backup and check it; nothing is written. Exits 1 where it cannot be used.

    Examples:
      wavryctl backup verify master.wavrybak --passphrase-file /root/backup.pass --json
    """

    def work() -> Manifest:
        with opened_backup(file, _asker(passphrase_file, identity_file)) as backup:
            backup.verify()
            return backup.manifest

    _tell(file, _run(work, as_json=json), "is sound", as_json=json)


@backup_app.command("keygen")
def backup_keygen(
    output: Annotated[Path, typer.Option(help="The private half goes here (mode 0600).")],
    *,
    json: Json = False,
) -> None:
    """Make a key pair for backups: hosts know the public half, you keep the other one elsewhere.

    Examples:
      wavryctl backup keygen --output backup.identity
    """

    def work() -> str:
        identity, recipient = new_identity()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(output, flags, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(base64url.encode(bytes(identity)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return recipient

    recipient = _run(work, as_json=json)
    if json:
        print_json({"recipient": recipient, "identity_file": str(output)})
    else:
        print(f"{output} opens the backups that are made with\n--recipient {recipient}")


def restore_backup(
    file: File,
    data_dir: DataDir = None,
    keys_dir: KeysDir = None,
    service_token_file: ServiceToken = None,
    admin_token_file: AdminToken = None,
    settings_file: Annotated[
        Path | None, typer.Option(help="Where the service's settings go; else they are left out.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    identity_file: IdentityFile = None,
    *,
    json: Json = False,
) -> None:
    """Put a backup back, while its service is stopped; it replaces no file.

    Everything is checked first; where anything is wrong or in the way, nothing is changed. Run by
    root it gives each file to the owner of its directory.

    Examples:
      wavryctl restore master.wavrybak --data-dir /var/lib/wavry-master
      --keys-dir /var/lib/wavry-master/keys --passphrase-file /root/backup.pass
    """
    named = _Named(None, data_dir, keys_dir, service_token_file, admin_token_file, settings_file)

    def places_of(manifest: Manifest) -> Places:
        return named.places(manifest.service)

    done = _run(
        lambda: restore(file, _asker(passphrase_file, identity_file), places_of), as_json=json
    )
    if json:
        print_json(
            {
                "service": done.manifest.service,
                "created_at": done.manifest.created_at,
                "written": [str(path) for path in done.written],
                "unchanged": [str(path) for path in done.unchanged],
                "left_out": [item.kind for item in done.left_out],
                "rows": done.manifest.rows,
            }
        )
        return
    print(f"the {done.manifest.service} of {moment(done.manifest.created_at)} is restored")
    for path in done.written:
        print(f"written:    {path}")
    for path in done.unchanged:
        print(f"was there:  {path}")
    for item in done.left_out:
        print(f"left out:   {item.kind} (nobody named a place for it)")


def _settings(places: Places) -> bytes | None:
    """Return the settings that are in the environment, as lines of a settings file."""
    own = (f"WAVRY_{places.service.upper()}_", "WAVRY_LOG_")
    lines = [
        f"{name}={value}\n"
        for name, value in sorted(os.environ.items())
        if name.startswith(own) and "\n" not in value
    ]
    return "".join(lines).encode() if places.settings_file is None and lines else None


def _run(work: Callable[[], Result], *, as_json: bool) -> Result:
    codes: dict[type[LocalError], str] = {
        BackupFileError: "backup_unusable",
        RestoreRefusedError: "would_replace",
        DirectoryInUseError: "in_use",
    }
    try:
        return work()
    except CommandError as error:
        fail(error, as_json=as_json)
    except LocalError as error:
        code = codes.get(type(error), "failed")
        fail(CommandError(str(error), code=code, exit_code=EXIT_FAILED), as_json=as_json)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        fail(CommandError(what, code="file_error", exit_code=EXIT_FAILED), as_json=as_json)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _tell(file: Path, manifest: Manifest, word: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"file": str(file), **msgspec.to_builtins(manifest)})
        return
    print(
        f"{file} {word}: the {manifest.service} of {moment(manifest.created_at)}, "
        f"version {manifest.version}, schema {manifest.schema}"
    )
    print_rows(
        "Files",
        ("what", "name", "bytes"),
        [(item.kind, item.name, str(item.size)) for item in manifest.items],
    )
    print_rows("Database", ("table", "rows"), [(name, str(n)) for name, n in manifest.rows.items()])


def _asker(passphrase_file: Path | None, identity_file: Path | None) -> Callable[[str], Secret]:
    known: list[Secret] = []

    def ask(method: str) -> Secret:
        if not known:
            if identity_file is not None:
                known.append(Secret(identity=_identity(identity_file)))
            elif method == "recipient":
                known.append(Secret())
            else:
                known.append(Secret(passphrase=_passphrase(passphrase_file, confirm=False)))
        return known[0]

    return ask


def _passphrase(path: Path | None, *, confirm: bool) -> str:
    if path is not None:
        text = _secret_text(path)
    elif sys.stdin.isatty():
        text = getpass.getpass("passphrase of the backup: ")
        if confirm and getpass.getpass("once more: ") != text:
            raise CommandError("the two differ: nothing was done", exit_code=EXIT_USAGE)
    else:
        raise CommandError(
            "no passphrase: give --passphrase-file FILE (or --recipient KEY for a backup)",
            code="no_passphrase",
            exit_code=EXIT_USAGE,
        )
    if confirm and len(text) < MIN_PASSPHRASE_CHARS:
        raise CommandError(
            f"a passphrase needs {MIN_PASSPHRASE_CHARS} characters or more", exit_code=EXIT_USAGE
        )
    return text


def _identity(path: Path) -> PrivateKey:
    try:
        return PrivateKey(base64url.decode(_secret_text(path), size=PrivateKey.SIZE))
    except ValueError:
        raise CommandError(
            f"{path} holds no key of `wavryctl backup keygen`", exit_code=EXIT_USAGE
        ) from None


def _secret_text(path: Path) -> str:
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        raw = file.read(MAX_SECRET_BYTES)
    if is_open_to_others(path, mode):
        raise CommandError(
            f"{path} is open to others (mode {mode:04o}): chmod 600 it", exit_code=EXIT_USAGE
        )
    return raw.decode("utf-8", "replace").strip("\r\n")
