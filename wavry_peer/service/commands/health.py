"""``health`` of every service: asks the process that runs here, over its own port.

Made for container health checks and monitors, which ask every few seconds: one connection, the
standard library alone, nothing read but the address.  `health_command` makes the command of a role.
"""

import contextlib
import http.client
import ipaddress
import json
import ssl
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import typer

from wavry_peer.protocol.errors import LocalError
from wavry_peer.service.listen_address import format_endpoint, parse_listen_address

__all__ = [
    "EXIT_UNHEALTHY",
    "EXIT_UNREACHABLE",
    "EXIT_USAGE",
    "HealthAnswer",
    "health_command",
    "probe",
]

EXIT_UNHEALTHY: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3

_BODY_LIMIT_BYTES: Final = 65_536
"""/health of a relay with 64 workers is a tenth of it."""

Judge = Callable[[dict[str, Any]], str]
"""Takes the body of /health; gives the reason why the service is not healthy, or an empty text."""


@dataclass(frozen=True, slots=True)
class HealthAnswer:
    """What one question brought.

    Attributes:
        healthy: the service answered that all is well.
        url: that was asked.
        status: of HTTP; None where nothing answered.
        reason: why it is not healthy, for people.
    """

    healthy: bool
    url: str
    status: int | None
    reason: str = ""

    @property
    def exit_status(self) -> int:
        """0 healthy, 1 not healthy, 3 nothing answers."""
        if self.healthy:
            return 0
        return EXIT_UNREACHABLE if self.status is None else EXIT_UNHEALTHY


def probe(
    url: str,
    *,
    timeout_s: float,
    judge: Judge | None = None,
    tls: ssl.SSLContext | None = None,
) -> HealthAnswer:
    """Ask a service once; redirects are not followed, proxies not used.

    Args:
        url: of /health or /ready.
        timeout_s: of each step: connecting, sending, reading.
        judge: looks into the body of a good answer.
        tls: how https is checked; as by default where it is None.

    Raises:
        LocalError: not a URL of HTTP.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise LocalError("--url must be an http:// or https:// URL, e.g. http://127.0.0.1:8090")
    connection = (
        http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout_s, context=tls)
        if parts.scheme == "https"
        else http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
    )
    try:
        connection.request("GET", parts.path, headers={"Connection": "close"})
        response = connection.getresponse()
        status, raw = response.status, response.read(_BODY_LIMIT_BYTES)
    except TimeoutError:
        return HealthAnswer(
            healthy=False, url=url, status=None, reason=f"no answer in {timeout_s:g} s"
        )
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "strerror", None) or type(error).__name__
        return HealthAnswer(healthy=False, url=url, status=None, reason=f"no answer: {cause}")
    finally:
        connection.close()
    return _judged(url, status, raw, judge)


def _judged(url: str, status: int, raw: bytes, judge: Judge | None) -> HealthAnswer:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or not ({"status", "ready", "error"} & body.keys()):
        reason = "something else than a Wavry service answers there"
    elif status == 200:
        reason = judge(body) if judge is not None else ""
    else:
        # /ready of a relay has a list; an error has a message.
        reasons = body.get("reasons") or [body.get("reason") or body.get("message") or "no reason"]
        reason = ", ".join(str(item) for item in reasons)
    return HealthAnswer(healthy=not reason, url=url, status=status, reason=reason)


def _own_url(listen: str, variable: str, *, tls: bool) -> str:
    """Return the URL of a service that listens at HOST:PORT on this machine."""
    try:
        host, port = parse_listen_address(listen)
    except ValueError as error:
        raise LocalError(f"{variable} {error}") from error
    if port == 0:
        raise LocalError(f"{variable} has port 0, any free one: say which with --url")
    with contextlib.suppress(ValueError):  # a name
        address = ipaddress.ip_address(host)
        if address.is_unspecified:  # Every address of this machine; the nearest one will do.
            host = "127.0.0.1" if address.version == 4 else "::1"
    return f"{'https' if tls else 'http'}://{format_endpoint(host, port)}"


def _any_certificate() -> ssl.SSLContext:
    """Return how the service of this machine is asked: its certificate is for its public name."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def health_command(
    command: str,
    variable: str,
    read_listen: Callable[[], str],
    judge: Judge | None = None,
    *,
    has_tls: Callable[[], bool] = lambda: False,
) -> Callable[..., None]:
    """Make the ``health`` command of a role.

    Args:
        command: of the role, e.g. ``"wavry-master"``.
        variable: setting with the address of /health and /ready.
        read_listen: reads that setting alone; the others need not be there.
        judge: see `Judge`; of /health only.
        has_tls: reads whether the service speaks TLS itself.
    """

    def health(
        *,
        ready: Annotated[
            bool,
            typer.Option("--ready", help="Ask /ready (should it get work?) instead of /health."),
        ] = False,
        url: Annotated[
            str | None,
            typer.Option(metavar="URL", help=f"Of the service, instead of {variable}."),
        ] = None,
        timeout: Annotated[
            float, typer.Option(min=0.1, max=60, help="Seconds to wait for an answer.")
        ] = 3.0,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print JSON instead of a line of text.")
        ] = False,
    ) -> None:
        try:
            base = (url or _own_url(read_listen(), variable, tls=has_tls())).rstrip("/")
            path = "/ready" if ready else "/health"
            found = probe(
                base + path,
                timeout_s=timeout,
                judge=None if ready else judge,
                tls=None if url else _any_certificate(),
            )
        except LocalError as error:
            typer.echo(f"{command}: {error}", err=True)
            raise typer.Exit(EXIT_USAGE) from error
        if as_json:
            typer.echo(json.dumps(asdict(found), indent=2))
        elif found.healthy:
            typer.echo(f"{'ready' if ready else 'healthy'}: {found.url} answers")
        else:
            typer.echo(f"{command}: not {path[1:]}: {found.url}: {_advice(found)}", err=True)
        sys.stdout.flush()
        raise typer.Exit(found.exit_status)

    health.__doc__ = f"""Ask the {command.removeprefix("wavry-")} that runs here whether it is well.

    Exit status: 0 it is, 1 it is not, 2 wrong usage, 3 nothing answers.

    Example: {command} health --ready --timeout 2
    """
    return health


def _advice(found: HealthAnswer) -> str:
    if found.status is None:
        return f"{found.reason}; is it running here, with these settings?"
    return found.reason
