"""The procedures of ``wavryctl keys``: each reads where things stand and does what is left.

Nothing is remembered here.  A pending key means "wait for the relays and activate it", a retiring
one "wait for its last lease and remove it"; so a command that was cut off anywhere, even between
its call and the answer, is finished by the same command.

Where the root key is kept off the master, the plan for the next document comes here to be signed.
It is signed only if it is what the step means for the document that this root has signed before:
a master that was broken into cannot get anything else signed.
"""

import asyncio
import secrets
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from wavry_cp.app.refusal import RefusedError
from wavry_cp.master.keys.files import read_seed, write_seed
from wavry_cp.master.keys.rules import KeyStep, next_keys
from wavry_peer.protocol import base64url, ed25519
from wavry_peer.protocol.errors import KeySetError
from wavry_peer.protocol.http.keys import (
    KeyPlan,
    KeysStatus,
    KeyStatusRow,
    KeyStepRequest,
    KeyStepResponse,
    RootStepRequest,
)
from wavry_peer.protocol.keyset import (
    MAX_ROOT_LINKS,
    KeySet,
    PublishedKey,
    decode_keyset,
    encode_keyset,
    link_root,
    sign_keyset,
)

from .client import ask_json
from .endpoints import ServiceEndpoints
from .output import EXIT_USAGE, CommandError, print_note

__all__ = ["KeyProcedures", "RotationResult", "revoke", "roll_back", "rotate", "rotate_root"]

POLL_S: Final = 0.3
NOTE_EVERY_S: Final = 10.0
RECENT_ROOT_S: Final = 600
"""A root this young is most likely the one of a call whose answer got lost."""
_PLAN_AGE_S: Final = 600


class RotationResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a command leaves behind; `seconds` is how long it took."""

    serial: int
    active_kid: str
    root_public_key: str
    created: str | None = None
    retiring: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    seconds: float = 0.0


class KeyProcedures:
    """The master's key calls; signs plans with the root key where that is here.

    Args:
        endpoints: where the master is.
        root_key: file of the root key, or None where the master has it.
    """

    def __init__(self, endpoints: ServiceEndpoints, root_key: Path | None = None) -> None:
        self._url = endpoints.need_master()
        self._token = endpoints.admin_token()
        self.root: ed25519.SigningKey | None = read_seed(root_key) if root_key else None

    async def status(self) -> KeysStatus:
        """Return where things stand."""
        status: KeysStatus = await self._get("/v1/admin/keys/status", KeysStatus)
        return status

    async def step(self, step: KeyStep, **fields: Any) -> KeyStepResponse:
        """Take one step of a rotation, signed by the owner of the root key.

        Raises:
            CommandError: refused; or the root key is needed here; or the plan is not what it
                should be.
        """
        path = f"/v1/admin/keys/{step}"
        answer = await self._post(path, KeyStepRequest(**fields))
        if answer.result == "done":
            return answer
        root = self._needed_root()
        before = await self._trusted_document(root)
        _check_plan(before, answer.plan, step, fields.get("kid"))
        signed = sign_keyset(
            answer.plan.keys,
            serial=answer.plan.serial,
            issued_at=answer.plan.issued_at,
            root=root,
            root_chain=before.root_chain,
        )
        return await self._post(path, KeyStepRequest(**fields, signed=signed))

    async def change_root(self, expected_root: str, new_file: Path | None, reason: str) -> None:
        """Let the root sign its successor.

        Raises:
            CommandError: refused; or key files are needed here.
        """
        path = "/v1/admin/keys/root"
        answer = await self._post(path, RootStepRequest(expected_root=expected_root, reason=reason))
        if answer.result == "done":
            return
        root = self._needed_root()
        if new_file is None:
            raise CommandError(
                "say with --new-root-key where the next root key is to be kept",
                code="no_new_root_key",
                exit_code=EXIT_USAGE,
            )
        before = await self._trusted_document(root)
        plan = answer.plan
        if plan.keys != before.keys or plan.root_chain != before.root_chain:
            raise _bad_plan()
        _check_numbers(before, plan)
        following = _root_in(new_file)
        link = link_root(root, following.public_key, issued_at=plan.issued_at)
        signed = sign_keyset(
            plan.keys,
            serial=plan.serial,
            issued_at=plan.issued_at,
            root=following,
            root_chain=(*before.root_chain, link)[-MAX_ROOT_LINKS:],
        )
        await self._post(
            path, RootStepRequest(expected_root=expected_root, reason=reason, signed=signed)
        )

    def _needed_root(self) -> ed25519.SigningKey:
        if self.root is None:
            raise CommandError(
                "the root key does not lie on the master: give its file with --root-key",
                code="no_root_key",
                exit_code=EXIT_USAGE,
            )
        return self.root

    async def _trusted_document(self, root: ed25519.SigningKey) -> KeySet:
        document = await self._get("/v1/admin/keys", KeySet)
        try:
            trusted = decode_keyset(encode_keyset(document), root_public_key=root.public_key)
        except KeySetError as error:
            raise CommandError(
                f"--root-key is not the root of the master's key set: {error}", code="wrong_root"
            ) from error
        if trusted.root_public_key != base64url.encode(root.public_key):
            raise CommandError(
                "--root-key gave way to another root, which signs the key set now: give the file "
                "of that one",
                code="wrong_root",
            )
        return trusted

    async def _get(self, path: str, kind: type[Any]) -> Any:
        return await ask_json("master", self._url, path, kind, token=self._token)

    async def _post(self, path: str, body: msgspec.Struct) -> KeyStepResponse:
        return await ask_json(
            "master", self._url, path, KeyStepResponse, method="POST", token=self._token, body=body
        )


def _root_in(path: Path) -> ed25519.SigningKey:
    if path.exists():
        return read_seed(path)
    root = ed25519.SigningKey.from_seed(secrets.token_bytes(ed25519.SEED_BYTES))
    write_seed(path, root)
    return root


def _bad_plan() -> CommandError:
    return CommandError(
        "the master asks to sign something else than this step: do not sign; check who has access "
        "to the master",
        code="bad_plan",
    )


def _check_numbers(before: KeySet, plan: KeyPlan) -> None:
    if plan.serial != before.serial + 1 or abs(plan.issued_at - time.time()) > _PLAN_AGE_S:
        raise _bad_plan()


def _check_plan(before: KeySet, plan: KeyPlan, step: KeyStep, kid: str | None) -> None:
    """Require a plan that the rules make of the document before; only a new key is news."""
    _check_numbers(before, plan)
    known = {key.kid for key in before.keys}
    fresh = [key for key in plan.keys if key.kid not in known]
    signing = [key.kid for key in plan.keys if key.status == "active"]
    try:
        wanted = next_keys(
            before.keys,
            step,
            now_s=plan.issued_at,
            kid=kid,
            new_key=_as_new(fresh),
            successor=signing[0] if signing and signing[0] in known else None,
        )
    except RefusedError as error:
        raise _bad_plan() from error
    if wanted != plan.keys:
        raise _bad_plan()


def _as_new(fresh: list[PublishedKey]) -> PublishedKey | None:
    return fresh[0] if len(fresh) == 1 else None


# -- Procedures ------------------------------------------------------------------------------


async def rotate(
    client: KeyProcedures,
    *,
    quorum_pct: float = 100.0,
    timeout_s: float = 300.0,
    force: bool = False,
    wait: bool = True,
    new: bool = False,
    reason: str = "",
) -> RotationResult:
    """Replace the signing key, or finish a rotation that was begun.

    Args:
        client: calls to the master.
        quorum_pct: share of the live relays that must hold the new key.
        timeout_s: how long to wait for them.
        force: activate after `timeout_s` all the same.
        wait: until the old key has gone.
        new: begin another rotation although an old key retires.
        reason: for the audit log.

    Raises:
        CommandError: ``relays_lack_key`` (the message names the relays), or what the master says.
    """
    begun_s = time.monotonic()
    status = await client.status()
    created = None
    pending = _of_status(status, "pending")
    if not pending and (new or not _of_status(status, "retiring")):
        created = (await client.step(KeyStep.CREATE, reason=reason)).kid
        print_note(f"key {created} is published")
    elif pending:
        print_note(f"going on with key {pending[0].kid}, which is published")
    else:
        print_note("going on with the last rotation (--new begins another one)")
    if created or pending:
        kid = created or pending[0].kid
        forced = await _wait_for_relays(client, kid, quorum_pct, timeout_s, force=force)
        await client.step(
            KeyStep.ACTIVATE, kid=kid, quorum_pct=quorum_pct, force=forced, reason=reason
        )
        print_note(f"key {kid} signs" + (" (forced)" if forced else ""))
    removed = await _remove_old(client, wait=wait, reason=reason)
    return await _result(client, begun_s, created=created, removed=removed)


async def _wait_for_relays(
    client: KeyProcedures, kid: str, quorum_pct: float, timeout_s: float, *, force: bool
) -> bool:
    """Wait until enough live relays hold a key; True where the time-out was forced."""
    deadline_s = time.monotonic() + timeout_s
    shown = ""
    while True:
        status = await client.status()
        row = next((key for key in status.keys if key.kid == kid), None)
        if row is None:
            raise CommandError(f"key {kid} was withdrawn meanwhile", code="withdrawn")
        live = len(status.relays)
        if not live or 100 * row.held_by / live >= quorum_pct:
            return False
        lacking = ", ".join(row.lacking_relays)
        text = f"{row.held_by} of {live} relays hold key {kid}; waiting for {lacking}"
        if text != shown:
            print_note(text)
            shown = text
        if time.monotonic() > deadline_s:
            if force:
                return True
            raise CommandError(
                f"after {timeout_s:.0f} s {len(row.lacking_relays)} of {live} live relays do not "
                f"hold key {kid}: {lacking}. It stays published and signs nothing: look for "
                "keyset_refused or keyset_refresh_failed in their logs and run this again, or "
                "withdraw it with `wavryctl keys rollback`",
                code="relays_lack_key",
            )
        await asyncio.sleep(POLL_S)


async def _remove_old(client: KeyProcedures, *, wait: bool, reason: str) -> tuple[str, ...]:
    """Remove what no lease needs any more; with `wait`, every retiring key."""
    removed: list[str] = []
    noted_s = float("-inf")
    while True:
        status = await client.status()
        old = [*_of_status(status, "retiring"), *_of_status(status, "revoked")]
        due = [key for key in old if key.removable_at <= status.now]
        if due:
            await client.step(KeyStep.REMOVE, kid=due[0].kid, reason=reason)
            print_note(f"key {due[0].kid} is removed")
            removed.append(due[0].kid)
            continue
        retiring = [key for key in old if key.status == "retiring"]
        if not retiring or not wait:
            return tuple(removed)
        if time.monotonic() - noted_s >= NOTE_EVERY_S:
            noted_s = time.monotonic()
            last = max(key.removable_at for key in retiring)
            names = ", ".join(key.kid for key in retiring)
            print_note(f"leases of {names} run for another {last - status.now} s at most")
        await asyncio.sleep(POLL_S)


async def roll_back(
    client: KeyProcedures, *, quorum_pct: float = 100.0, force: bool = False, reason: str = ""
) -> RotationResult:
    """Withdraw a pending key, or let the retiring one sign again."""
    begun_s = time.monotonic()
    answer = await client.step(KeyStep.ROLLBACK, quorum_pct=quorum_pct, force=force, reason=reason)
    print_note(f"rolled back: key {answer.kid}")
    return await _result(client, begun_s)


async def revoke(
    client: KeyProcedures, kid: str, *, reason: str, timeout_s: float = 30.0
) -> RotationResult:
    """Revoke a key and wait until every live relay has the document that says so.

    Raises:
        CommandError: ``relays_behind``: relays that have not reported it in time.
    """
    begun_s = time.monotonic()
    status = await client.status()
    row = next((key for key in status.keys if key.kid == kid), None)
    if row is None or row.status != "revoked":
        await client.step(KeyStep.REVOKE, kid=kid, reason=reason)
        print_note(f"key {kid} is revoked")
    else:
        print_note(f"key {kid} was revoked already")
    await _wait_for_serial(client, timeout_s)
    return await _result(client, begun_s)


async def rotate_root(
    client: KeyProcedures,
    new_file: Path | None,
    *,
    timeout_s: float = 120.0,
    reason: str = "",
    new: bool = False,
) -> RotationResult:
    """Let the root sign its successor and wait until every live relay follows.

    Raises:
        CommandError: ``relays_behind``, or what the master says.
    """
    begun_s = time.monotonic()
    status = await client.status()
    if _root_was_changed(status, new_file) and not new:
        print_note("the root was changed minutes ago: waiting for the relays (--new changes again)")
    else:
        await client.change_root(status.root_public_key, new_file, reason)
        print_note("the new root signs the key set")
    await _wait_for_serial(client, timeout_s)
    return await _result(client, begun_s)


def _root_was_changed(status: KeysStatus, new_file: Path | None) -> bool:
    if new_file is not None:
        return new_file.exists() and (
            base64url.encode(read_seed(new_file).public_key) == status.root_public_key
        )
    chain = status.root_chain
    return bool(chain) and status.now - chain[-1].issued_at < RECENT_ROOT_S


async def _wait_for_serial(client: KeyProcedures, timeout_s: float) -> None:
    """Wait until every live relay reports the present document."""
    deadline_s = time.monotonic() + timeout_s
    shown = ""
    while True:
        status = await client.status()
        behind = [r.relay_id for r in status.relays if r.keyset_serial < status.serial]
        if not behind:
            return
        live = len(status.relays)
        text = f"{live - len(behind)} of {live} relays have the new key set; waiting for " + (
            ", ".join(behind)
        )
        if text != shown:
            print_note(text)
            shown = text
        if time.monotonic() > deadline_s:
            raise CommandError(
                f"it is done, but after {timeout_s:.0f} s these relays have not reported the new "
                f"key set: {', '.join(behind)}; look for keyset_refused or keyset_refresh_failed "
                "in their logs",
                code="relays_behind",
            )
        await asyncio.sleep(POLL_S)


def _of_status(status: KeysStatus, name: str) -> list[KeyStatusRow]:
    return [key for key in status.keys if key.status == name]


async def _result(
    client: KeyProcedures,
    begun_s: float,
    *,
    created: str | None = None,
    removed: tuple[str, ...] = (),
) -> RotationResult:
    status = await client.status()
    return RotationResult(
        serial=status.serial,
        active_kid=status.active_kid,
        root_public_key=status.root_public_key,
        created=created,
        retiring=tuple(key.kid for key in _of_status(status, "retiring")),
        removed=removed,
        seconds=round(time.monotonic() - begun_s, 3),
    )
