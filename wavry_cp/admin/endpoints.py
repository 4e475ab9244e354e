"""Where the services are and with which token to ask them.

In this order: options for single services, the ``dev.json`` of ``--dev DIR``, environment
variables, the ``dev.json`` of ``WAVRY_DEV_DIR`` or ``./.wavry-dev``.
"""

import functools
import getpass
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
import typer

from wavry_cp.app.token_files import TokenFile, TokenFileError
from wavry_peer.service.http_client import is_readable_on_the_way

from .output import EXIT_FORBIDDEN, EXIT_USAGE, CommandError

__all__ = [
    "DEFAULT_DEV_DIR",
    "DEV_FILE",
    "VARIABLES",
    "DevRelay",
    "DevSystemFile",
    "ServiceEndpoints",
    "endpoints_of",
    "find_endpoints",
]

DEFAULT_DEV_DIR: Final = Path(".wavry-dev")
DEV_FILE: Final = "dev.json"
STDIN: Final = Path("-")
VARIABLES: Final = {
    "WAVRY_ADMIN_TOKEN": "The admin token itself; a file is better where others see processes.",
    "WAVRY_ADMIN_TOKEN_FILE": "File (mode 0600) with the admin token; its first line is sent.",
    "WAVRY_ALLOW_HTTP": "1: send the token by plain http to other hosts, too.",
    "WAVRY_DEV_DIR": "Directory of a system of `wavryctl dev up`; by default `.wavry-dev`.",
    "WAVRY_GATEWAY_URL": "URL of the gateway.",
    "WAVRY_MASTER_URL": "URL of the master.",
}
"""What these commands read of the environment, and what it means."""
_YES: Final = frozenset({"1", "true", "yes", "on"})


class DevRelay(msgspec.Struct, frozen=True):
    """A relay of ``dev.json``; `udp` is its first UDP address, `pid` its supervisor."""

    relay_id: str
    udp: str
    ops_url: str
    pid: int


class DevSystemFile(msgspec.Struct, frozen=True):
    """``dev.json``, written by ``wavryctl dev up`` when every service is up."""

    gateway_url: str
    master_url: str
    service_token_file: str
    admin_token_file: str
    relays: tuple[DevRelay, ...]


@dataclass(frozen=True, slots=True)
class ServiceEndpoints:
    """Where to ask.  A part that is None was not named anywhere."""

    gateway_url: str | None
    master_url: str | None
    admin_token_file: Path | None
    admin_token_text: str | None
    relays: tuple[DevRelay, ...] = ()
    ask_token: bool = False

    def need_gateway(self) -> str:
        """Return the URL of the gateway.

        Raises:
            CommandError: not known, or no URL.
        """
        if self.gateway_url is None:
            raise _unknown("gateway", "--gateway-url", "WAVRY_GATEWAY_URL")
        return _url(self.gateway_url, "gateway")

    def need_master(self) -> str:
        """Return the URL of the master.

        Raises:
            CommandError: not known, or no URL.
        """
        if self.master_url is None:
            raise _unknown("master", "--master-url", "WAVRY_MASTER_URL")
        return _url(self.master_url, "master")

    def admin_token(self) -> str:
        """Return the admin token.

        Raises:
            CommandError: none is named, or its file cannot be used.
        """
        if self.ask_token:
            return _asked_token()
        if self.admin_token_text:
            return self.admin_token_text
        if self.admin_token_file == STDIN:
            return _token_from_stdin()
        if self.admin_token_file is None and sys.stdin.isatty():
            return _asked_token()
        if self.admin_token_file is None:
            raise CommandError(
                "no admin token: set WAVRY_ADMIN_TOKEN_FILE (or WAVRY_ADMIN_TOKEN), or give "
                "--admin-token-file FILE (`-` is stdin) or --ask-token",
                code="no_token",
                exit_code=EXIT_FORBIDDEN,
            )
        try:
            return TokenFile(self.admin_token_file, "admin").token
        except TokenFileError as error:
            raise CommandError(str(error), code="no_token", exit_code=EXIT_FORBIDDEN) from error


@functools.cache
def _token_from_stdin() -> str:
    token = sys.stdin.readline().strip()
    if not token:
        raise CommandError(
            "--admin-token-file -: nothing came on stdin", code="no_token", exit_code=EXIT_FORBIDDEN
        )
    return token


@functools.cache
def _asked_token() -> str:
    if not sys.stdin.isatty():
        raise CommandError(
            "--ask-token needs a terminal: use WAVRY_ADMIN_TOKEN_FILE or --admin-token-file",
            code="no_token",
            exit_code=EXIT_FORBIDDEN,
        )
    return getpass.getpass("admin token: ").strip()


def _url(text: str, service: str) -> str:
    parts = urlsplit(text)
    if parts.scheme in ("http", "https") and parts.hostname:
        return text
    raise CommandError(
        f"the address of the {service} must be like https://{service}.example.net, not {text[:80]}",
        code="wrong_address",
        exit_code=EXIT_USAGE,
    )


def _unknown(service: str, option: str, variable: str) -> CommandError:
    return CommandError(
        f"no address of the {service}: start a system with `wavryctl dev up`, or give {option} "
        f"or {variable}",
        code="no_address",
        exit_code=EXIT_USAGE,
    )


def _read_dev_file(directory: Path | None, environ: Mapping[str, str]) -> DevSystemFile | None:
    named = directory or (Path(environ["WAVRY_DEV_DIR"]) if "WAVRY_DEV_DIR" in environ else None)
    path = (named or DEFAULT_DEV_DIR) / DEV_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=DevSystemFile)
    except FileNotFoundError:
        if named is None:
            return None
        raise CommandError(
            f"{path} does not exist: no system of `wavryctl dev up --data {named}` is running",
            code="no_dev_system",
            exit_code=EXIT_USAGE,
        ) from None
    except (OSError, msgspec.MsgspecError) as error:
        raise CommandError(f"{path} cannot be read: {error}", exit_code=EXIT_USAGE) from error


def find_endpoints(
    environ: Mapping[str, str],
    *,
    dev_dir: Path | None = None,
    gateway_url: str | None = None,
    master_url: str | None = None,
    admin_token_file: Path | None = None,
    ask_token: bool = False,
    allow_http: bool = False,
) -> ServiceEndpoints:
    """Gather where the services are; see the module for the order.

    Raises:
        CommandError: a ``dev.json`` was named and cannot be read; or a service is asked by
            ``http://`` on another host, and `allow_http` or WAVRY_ALLOW_HTTP does not let it.
    """
    dev = _read_dev_file(dev_dir, environ)
    # A directory that was named outright wins over variables that may be another system's.
    variables = {} if dev_dir is not None else environ
    file_text = variables.get("WAVRY_ADMIN_TOKEN_FILE") or (dev.admin_token_file if dev else None)
    endpoints = ServiceEndpoints(
        gateway_url=gateway_url
        or variables.get("WAVRY_GATEWAY_URL")
        or (dev.gateway_url if dev else None),
        master_url=master_url
        or variables.get("WAVRY_MASTER_URL")
        or (dev.master_url if dev else None),
        admin_token_file=admin_token_file or (Path(file_text) if file_text else None),
        admin_token_text=None if admin_token_file else variables.get("WAVRY_ADMIN_TOKEN"),
        relays=dev.relays if dev else (),
        ask_token=ask_token,
    )
    if not allow_http and environ.get("WAVRY_ALLOW_HTTP", "").lower() not in _YES:
        for url in filter(None, (endpoints.gateway_url, endpoints.master_url)):
            if is_readable_on_the_way(url):
                raise _plain_http(url)
    return endpoints


def _plain_http(url: str) -> CommandError:
    return CommandError(
        f"{url} is http:// on another machine, so the admin token could be read on the way: use "
        "https://, or give --allow-http (or set WAVRY_ALLOW_HTTP=1) inside a network that you "
        "trust",
        code="plain_http",
        exit_code=EXIT_USAGE,
    )


def endpoints_of(context: typer.Context) -> ServiceEndpoints:
    """Return the endpoints that a command was given, by its options and the environment."""
    return find_endpoints(os.environ, **context.obj)
