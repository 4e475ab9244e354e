"""Options that several commands of ``wavry-peer`` take."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["As", "Gateway", "Home", "Json", "PasswordFile"]

Gateway = Annotated[
    str | None,
    typer.Option(
        "--gateway", envvar="WAVRY_GATEWAY_URL", metavar="URL", help="Gateway, https://HOST[:PORT]."
    ),
]
As = Annotated[
    str | None,
    typer.Option(
        "--as", metavar="USER", help="Log in as this user for this command (see --password-file)."
    ),
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        help="File (mode 0600) with the password; else WAVRY_PASSWORD is used, else it is asked."
    ),
]
Home = Annotated[
    Path | None,
    typer.Option(
        envvar="WAVRY_PEER_HOME", help="Directory of keys and logins; default ~/.config/wavry."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")]
