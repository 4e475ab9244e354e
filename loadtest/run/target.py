"""Where the system under test is, and the token that asks it for leases.

In this order: options, the ``dev.json`` of ``--wavry-dev DIR``, environment variables, the
``dev.json`` of ``WAVRY_DEV_DIR`` or ``./.wavry-dev``.  Tokens come from files, never from a
command line.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from wavry_cp.admin.endpoints import DEFAULT_DEV_DIR, DEV_FILE, DevSystemFile
from wavry_cp.app.token_files import TokenFile, TokenFileError
from wavry_peer.gateway.client import normalize_gateway_url
from wavry_peer.protocol.errors import LocalError

__all__ = ["SystemUnderTest", "TargetError", "TargetOptions", "find_target"]

GATEWAY_VARIABLE: Final = "WAVRY_GATEWAY_URL"
MASTER_VARIABLE: Final = "WAVRY_MASTER_URL"
SERVICE_TOKEN_VARIABLE: Final = "WAVRY_SERVICE_TOKEN_FILE"
DEV_VARIABLE: Final = "WAVRY_DEV_DIR"


class TargetError(Exception):
    """The system under test is not named well enough; the message says what to give."""


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """What the command line said; None and False where it said nothing."""

    dev_dir: Path | None = None
    gateway_url: str | None = None
    master_url: str | None = None
    service_token_file: Path | None = None
    allow_http: bool = False


@dataclass(frozen=True, slots=True)
class SystemUnderTest:
    """The system under test.

    Attributes:
        kind: ``dev`` where a ``dev.json`` named it, else ``remote``.
        gateway_url: without a slash at the end, or None.
        master_url: without a slash at the end, or None.
        service_token: for leases and simulated relays, or None.
    """

    kind: str
    gateway_url: str | None
    master_url: str | None
    service_token: str | None = field(repr=False)

    def need_gateway(self) -> str:
        """Return the URL of the gateway.

        Raises:
            TargetError: not known.
        """
        if self.gateway_url is None:
            raise _unknown("gateway", "--wavry-gateway-url", GATEWAY_VARIABLE)
        return self.gateway_url

    def need_master(self) -> tuple[str, str]:
        """Return the URL of the master, and the service token.

        Raises:
            TargetError: one of them is not known.
        """
        if self.master_url is None:
            raise _unknown("master", "--wavry-master-url", MASTER_VARIABLE)
        if self.service_token is None:
            raise TargetError(
                "no service token, and only who has one gets leases: give "
                f"--wavry-service-token-file FILE (mode 0600) or {SERVICE_TOKEN_VARIABLE}"
            )
        return self.master_url, self.service_token


def _unknown(service: str, option: str, variable: str) -> TargetError:
    return TargetError(
        f"no address of the {service}: start a system with `wavryctl dev up`, or give {option} "
        f"or {variable}"
    )


def _read_dev_file(named: Path | None, environ: Mapping[str, str]) -> DevSystemFile | None:
    directory = named or (Path(environ[DEV_VARIABLE]) if environ.get(DEV_VARIABLE) else None)
    path = (directory or DEFAULT_DEV_DIR) / DEV_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=DevSystemFile)
    except FileNotFoundError:
        if directory is None:
            return None
        raise TargetError(
            f"{path} does not exist: no system of `wavryctl dev up --data {directory}` is running"
        ) from None
    except (OSError, msgspec.MsgspecError) as error:
        raise TargetError(f"{path} cannot be read: {error}") from error


def _checked_url(text: str | None, *, allow_http: bool) -> str | None:
    if not text:
        return None
    try:
        return normalize_gateway_url(text, allow_http=allow_http)
    except LocalError as error:
        advice = str(error).replace("set WAVRY_PEER_ALLOW_HTTP=1", "give --wavry-allow-http")
        raise TargetError(
            advice.replace("the gateway URL", "the URL of gateway or master")
        ) from error


def find_target(environ: Mapping[str, str], options: TargetOptions) -> SystemUnderTest:
    """Gather where the system is.

    Raises:
        TargetError: something named does not exist, does not fit, or would show secrets on the way.
    """
    variables = {} if options.dev_dir is not None else environ
    gateway = options.gateway_url or variables.get(GATEWAY_VARIABLE)
    master = options.master_url or variables.get(MASTER_VARIABLE)
    token_file = options.service_token_file or variables.get(SERVICE_TOKEN_VARIABLE)
    # Who names one service of a system means that system, not the one that runs in this directory.
    is_named = gateway is not None or master is not None
    dev = None
    if options.dev_dir is not None or not is_named:
        dev = _read_dev_file(options.dev_dir, environ)
    if dev is not None:
        gateway, master = gateway or dev.gateway_url, master or dev.master_url
        token_file = token_file or dev.service_token_file
    try:
        token = TokenFile(Path(token_file), "service").token if token_file else None
    except TokenFileError as error:
        raise TargetError(str(error)) from error
    return SystemUnderTest(
        kind="dev" if dev is not None and not is_named else "remote",
        gateway_url=_checked_url(gateway, allow_http=options.allow_http),
        master_url=_checked_url(master, allow_http=options.allow_http),
        service_token=token,
    )
