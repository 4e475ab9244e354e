"""``wavryctl keys``: make, list, rotate, roll back and revoke keys."""

import secrets
import time
from pathlib import Path
from typing import Annotated

import typer

from wavry_cp.admin.client import ask_json
from wavry_cp.admin.endpoints import endpoints_of
from wavry_cp.admin.key_rotation import (
    KeyProcedures,
    RotationResult,
    revoke,
    roll_back,
    rotate,
    rotate_root,
)
from wavry_cp.admin.output import (
    CommandError,
    JsonOption,
    fail,
    moment,
    print_json,
    print_rows,
    run,
)
from wavry_cp.master.keys.files import KeyFileError, init_keys
from wavry_peer.protocol.http.keys import KeysStatus
from wavry_peer.protocol.keyset import KeySet

__all__ = ["keys_app"]

keys_app = typer.Typer(help="Root and signing keys of the master.", no_args_is_help=True)
root_app = typer.Typer(help="The root key, which signs the key set.", no_args_is_help=True)
keys_app.add_typer(root_app, name="root")

Json = Annotated[bool, JsonOption]
RootKey = Annotated[
    Path | None,
    typer.Option(
        envvar="WAVRY_ROOT_KEY_FILE",
        help="The root key, where it does not lie on the master; it never leaves this machine.",
    ),
]
Quorum = Annotated[
    float,
    typer.Option(min=0, max=100, help="Per cent of the live relays that must hold the key."),
]
Timeout = Annotated[float, typer.Option(min=0, max=86_400, help="Seconds to wait for the relays.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the audit log.")]


@keys_app.command("init")
def keys_init(
    keys_dir: Annotated[
        Path, typer.Option(envvar="WAVRY_MASTER_KEYS_DIR", help="New or empty directory.")
    ],
    *,
    json: Json = False,
) -> None:
    """Make the root key and the first signing key, as files of mode 0600; never overwrites.

    Examples:
      wavryctl keys init --keys-dir /etc/wavry/keys
    """
    try:
        made = init_keys(keys_dir, now_s=int(time.time()), random_bytes=secrets.token_bytes)
    except KeyFileError as error:
        fail(CommandError(str(error), code="keys_not_made"), as_json=json)
    if json:
        print_json(
            {
                "directory": str(made.directory),
                "root_public_key": made.root_public_key,
                "kid": made.key_id,
                "serial": made.serial,
            }
        )
        return
    typer.echo(f"made root key and signing key {made.key_id} in {made.directory}")
    typer.echo(f"relays pin the root public key: WAVRY_RELAY_ROOT_KEY={made.root_public_key}")
    typer.echo("keep a copy of root.key in a safe place: without it no key can be changed")


@keys_app.command("list")
def keys_list(context: typer.Context, *, json: Json = False) -> None:
    """List the keys that the master publishes, with their status.

    Examples:
      wavryctl keys list --json
    """

    async def work() -> KeySet:
        endpoints = endpoints_of(context)
        return await ask_json(
            "master",
            endpoints.need_master(),
            "/v1/admin/keys",
            KeySet,
            token=endpoints.admin_token(),
        )

    keyset = run(work, as_json=json)
    if json:
        print_json(keyset)
        return
    print_rows(
        f"Keys (serial {keyset.serial})",
        ("kid", "status", "public key", "not before", "not after"),
        [
            (key.kid, key.status, key.public_key, moment(key.not_before), moment(key.not_after))
            for key in keyset.keys
        ],
    )
    typer.echo(f"root public key: {keyset.root_public_key}")


def _show_result(result: RotationResult, *, as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    typer.echo(f"key set serial {result.serial}; {result.active_kid} signs")
    if result.retiring:
        typer.echo(
            f"still verified: {', '.join(result.retiring)}; `wavryctl keys rotate` removes them "
            "when their last lease is over"
        )


@keys_app.command("status")
def keys_status(context: typer.Context, *, json: Json = False) -> None:
    """Show each key, who holds it and until when its leases run.

    Examples:
      wavryctl keys status

      wavryctl keys status --json
    """
    status = run(lambda: KeyProcedures(endpoints_of(context)).status(), as_json=json)
    if json:
        print_json(status)
        return
    print_rows(
        f"Keys (serial {status.serial})",
        ("kid", "status", "since", "held by", "lacking", "last lease ends", "private key"),
        [
            (key.kid, key.status + (" (forced)" if key.forced else ""), moment(key.not_before),
             f"{key.held_by}/{len(status.relays)}", ", ".join(key.lacking_relays) or "-",
             moment(key.last_lease_expires_at), "here" if key.signable else "-")
            for key in status.keys
        ],
    )  # fmt: skip
    _print_roots(status)


def _print_roots(status: KeysStatus) -> None:
    place = "on the master" if status.root_key_here else "carried away (give --root-key)"
    typer.echo(f"root public key: {status.root_public_key}; root key: {place}")
    for link in status.root_chain:
        typer.echo(f"  after {link.previous} since {moment(link.issued_at)}")


@keys_app.command("rotate")
def keys_rotate(
    context: typer.Context,
    quorum: Quorum = 100.0,
    timeout: Timeout = 300.0,
    root_key: RootKey = None,
    reason: Reason = "",
    *,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Activate after the time-out although relays lack the key: they will reject the "
            "leases that it signs.",
        ),
    ] = False,
    wait: Annotated[
        bool,
        typer.Option(help="Wait for the last lease of the old key, up to 16 min, and remove it."),
    ] = True,
    new: Annotated[
        bool, typer.Option("--new", help="Begin another rotation while an old key retires.")
    ] = False,
    json: Json = False,
) -> None:
    """Replace the signing key: create, wait for the relays, activate, remove the old one.

    Interrupt it whenever you like: the next call goes on where this one ended. Where a relay does
    not get the key, nothing changes for anybody; `wavryctl keys rollback` withdraws it.

    Examples:
      wavryctl keys rotate

      wavryctl keys rotate --no-wait --timeout 60

      wavryctl keys rotate --root-key /media/safe/root.key
    """
    result = run(
        lambda: rotate(
            KeyProcedures(endpoints_of(context), root_key), quorum_pct=quorum, timeout_s=timeout,
            force=force, wait=wait, new=new, reason=reason,
        ),
        as_json=json,
    )  # fmt: skip
    _show_result(result, as_json=json)


@keys_app.command("rollback")
def keys_rollback(
    context: typer.Context,
    quorum: Quorum = 100.0,
    root_key: RootKey = None,
    reason: Reason = "",
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Although live relays lack the old key.")
    ] = False,
    json: Json = False,
) -> None:
    """Take the last rotation back: withdraw a pending key, or let the retiring one sign again.

    Examples:
      wavryctl keys rollback --reason "relays in eu-1 do not get the new key"
    """
    result = run(
        lambda: roll_back(
            KeyProcedures(endpoints_of(context), root_key),
            quorum_pct=quorum,
            force=force,
            reason=reason,
        ),
        as_json=json,
    )
    _show_result(result, as_json=json)


@keys_app.command("revoke")
def keys_revoke(
    context: typer.Context,
    kid: Annotated[str, typer.Argument(help="Key id from `wavryctl keys status`.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the audit log.")],
    timeout: Timeout = 30.0,
    root_key: RootKey = None,
    *,
    emergency: Annotated[
        bool,
        typer.Option(
            "--emergency",
            help="Confirm that every lease of the key dies at once, with its session.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Revoke a stolen key: another one signs from now on, and every lease of this one is dead.

    Examples:
      wavryctl keys revoke 0123456789abcdef --emergency --reason "laptop stolen"
    """
    if not emergency:
        fail(
            CommandError(
                "this ends every session whose lease the key signed; say --emergency to confirm, "
                "or use `wavryctl keys rotate` to replace a key without loss",
                code="not_confirmed",
                exit_code=2,
            ),
            as_json=json,
        )
    result = run(
        lambda: revoke(
            KeyProcedures(endpoints_of(context), root_key), kid, reason=reason, timeout_s=timeout
        ),
        as_json=json,
    )
    _show_result(result, as_json=json)


@root_app.command("rotate")
def keys_root_rotate(
    context: typer.Context,
    timeout: Timeout = 120.0,
    root_key: RootKey = None,
    new_root_key: Annotated[
        Path | None,
        typer.Option(help="With --root-key: file of the next root key; made where missing."),
    ] = None,
    reason: Reason = "",
    *,
    new: Annotated[
        bool, typer.Option("--new", help="Although the last change of root is minutes old.")
    ] = False,
    json: Json = False,
) -> None:
    """Replace the root key by a new one, signed by the old: relays follow without a new setting.

    Examples:
      wavryctl keys root rotate

      wavryctl keys root rotate --root-key /media/safe/root.key --new-root-key /media/new/root.key
    """
    result = run(
        lambda: rotate_root(
            KeyProcedures(endpoints_of(context), root_key), new_root_key, timeout_s=timeout,
            reason=reason, new=new,
        ),
        as_json=json,
    )  # fmt: skip
    if json:
        print_json(result)
        return
    typer.echo(f"key set serial {result.serial}; the root public key is {result.root_public_key}")
    typer.echo("relays follow the chain; set WAVRY_RELAY_ROOT_KEY to it when convenient")
    typer.echo("keep a copy of the new root key in a safe place: without it no key can be changed")
