"""``wavryctl tokens``: named admin tokens of the master."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import quote

import msgspec
import typer

from wavry_cp.admin.client import ask_json
from wavry_cp.admin.durations import duration_s
from wavry_cp.admin.endpoints import ServiceEndpoints, endpoints_of
from wavry_cp.admin.output import (
    JsonOption,
    moment,
    print_json,
    print_rows,
    run,
)
from wavry_cp.admin.secret_output import secret_file
from wavry_peer.protocol.http.admin import (
    NewToken,
    NewTokenRequest,
    RevokeTokenRequest,
    RotateTokenRequest,
    TokenInfo,
    TokenList,
)

__all__ = ["tokens_app"]

tokens_app = typer.Typer(help="Named admin tokens, each with a role.", no_args_is_help=True)
TOKENS_PATH: Final = "/v1/admin/tokens"
Answer = TypeVar("Answer", bound=msgspec.Struct)

Json = Annotated[bool, JsonOption]
NameArgument = Annotated[str, typer.Argument(help="Of the token's holder, e.g. alice or ci.")]
Life = Annotated[
    int | None,
    typer.Option("--for", parser=duration_s, metavar="TIME", help="How long it is valid: 90d."),
]
Output = Annotated[
    Path | None,
    typer.Option(help="Write the token into this file (mode 0600) instead of showing it."),
]
Reason = Annotated[str, typer.Option(help="Why; kept in the audit log.")]


class RoleOption(StrEnum):
    """Each may do what the ones before it may."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


@tokens_app.command("create")
def tokens_create(
    context: typer.Context,
    name: NameArgument,
    role: Annotated[RoleOption, typer.Option(help="What it may do.")],
    life: Life = None,
    output: Output = None,
    reason: Reason = "",
    *,
    json: Json = False,
) -> None:
    """Make a token; it is shown this once, and stored as a hash.

    Examples:
      wavryctl tokens create alice --role operator --for 90d --output alice.token

      wavryctl tokens create ci --role viewer --json
    """
    body = NewTokenRequest(name=name, role=role.value, life_s=life, reason=reason)

    async def work() -> NewToken:
        with secret_file(output, replace=False) as write:
            made = await _change(endpoints_of(context), TOKENS_PATH, NewToken, body)
            write(made.token)
            return made

    _show_new(run(work, as_json=json), output, as_json=json)


@tokens_app.command("rotate")
def tokens_rotate(
    context: typer.Context,
    name: NameArgument,
    overlap: Annotated[
        int,
        typer.Option(parser=duration_s, metavar="TIME", help="How long the old one is valid."),
    ] = 86_400,
    life: Life = None,
    output: Output = None,
    reason: Reason = "",
    *,
    json: Json = False,
) -> None:
    """Make a new token of the same role; the old one is valid until the overlap ends.

    An existing file of --output is replaced.

    Examples:
      wavryctl tokens rotate alice --overlap 24h --output alice.token
    """
    body = RotateTokenRequest(overlap_s=overlap, life_s=life, reason=reason)

    async def work() -> NewToken:
        path = f"{TOKENS_PATH}/{quote(name, safe='')}/rotate"
        with secret_file(output, replace=True) as write:
            made = await _change(endpoints_of(context), path, NewToken, body)
            write(made.token)
            return made

    _show_new(run(work, as_json=json), output, as_json=json)


@tokens_app.command("revoke")
def tokens_revoke(
    context: typer.Context,
    name: NameArgument,
    reason: Reason,
    *,
    json: Json = False,
) -> None:
    """End every token of a name; gateways hear of it within 5 s.

    Examples:
      wavryctl tokens revoke alice --reason "left the team"
    """

    async def work() -> TokenList:
        path = f"{TOKENS_PATH}/{quote(name, safe='')}/revoke"
        return await _change(
            endpoints_of(context), path, TokenList, RevokeTokenRequest(reason=reason)
        )

    answer = run(work, as_json=json)
    if json:
        print_json(answer)
    else:
        print(f"no token of {name} is valid any more")


@tokens_app.command("list")
def tokens_list(context: typer.Context, *, json: Json = False) -> None:
    """List the named tokens with role and expiry, never their secrets.

    Examples:
      wavryctl tokens list
    """

    async def work() -> TokenList:
        endpoints = endpoints_of(context)
        return await ask_json(
            "master", endpoints.need_master(), TOKENS_PATH, TokenList, token=endpoints.admin_token()
        )

    answer = run(work, as_json=json)
    if json:
        print_json(answer)
    else:
        print_rows(
            "Tokens",
            ("name", "role", "id", "created", "expires", "valid"),
            [
                (token.name, token.role, token.token_id, moment(token.created_at),
                 moment(token.expires_at), "yes" if token.valid else "no")
                for token in answer.tokens
            ],
        )  # fmt: skip


async def _change(
    endpoints: ServiceEndpoints, path: str, kind: type[Answer], body: msgspec.Struct
) -> Answer:
    return await ask_json(
        "master", endpoints.need_master(), path, kind,
        method="POST", token=endpoints.admin_token(), body=body,
    )  # fmt: skip


def _show_new(made: NewToken, output: Path | None, *, as_json: bool) -> None:
    if as_json:
        shown: dict[str, Any] = {"info": made.info, "previous": made.previous}
        # Where it is in a file it need not be in a terminal's memory or a build log as well.
        shown |= {"token": made.token} if output is None else {"file": str(output)}
        print_json(shown)
        return
    print(f"{made.info.name}: {made.info.role}, valid until {_expiry(made.info)}")
    if made.previous is not None:
        print(f"the one before stays valid until {_expiry(made.previous)}")
    print(
        f"written to {output}" if output else f"keep it now, it is not shown again:\n{made.token}"
    )


def _expiry(token: TokenInfo) -> str:
    return moment(token.expires_at) if token.expires_at else "it is revoked"
