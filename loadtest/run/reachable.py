"""Asks the services before any load is made: a wrong address or token is said at once."""

import ssl
import urllib.error
import urllib.request
from typing import Final

import msgspec

from wavry_peer.protocol.errors import MessageError
from wavry_peer.protocol.http import api
from wavry_peer.protocol.relay_terms import RelayState

__all__ = ["PreflightError", "check_gateway", "check_master"]

EXIT_UNREACHABLE: Final = 3
EXIT_FORBIDDEN: Final = 4
TIMEOUT_S: Final = 10.0
MAX_EXCLUDED: Final = 32
"""As many as a lease request may name."""


class PreflightError(Exception):
    """The system cannot be loaded; the message says what to do.

    Attributes:
        exit_status: of the process.
    """

    def __init__(self, message: str, exit_status: int = EXIT_UNREACHABLE) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token to wherever it points."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def _get(service: str, url: str, path: str, token: str | None = None) -> bytes:
    opener = urllib.request.build_opener(
        _NoRedirect, urllib.request.HTTPSHandler(context=ssl.create_default_context())
    )
    request = urllib.request.Request(url + path)  # noqa: S310  # only http and https get here
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with opener.open(request, timeout=TIMEOUT_S) as response:
            raw: bytes = response.read(8 << 20)
            return raw
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise PreflightError(
                f"the {service} {url} does not take the service token: check the file of it",
                EXIT_FORBIDDEN,
            ) from error
        raise PreflightError(f"the {service} {url} answers {path} with {error.code}") from error
    except OSError as error:
        cause = getattr(error, "reason", error)
        raise PreflightError(
            f"the {service} {url} cannot be reached ({cause}); check the address and that it runs"
        ) from error


def check_gateway(url: str) -> None:
    """See that a gateway is ready.

    Raises:
        PreflightError: it is not.
    """
    _get("gateway", url, "/ready")


def check_master(url: str, service_token: str, *, only: str | None) -> tuple[str, ...]:
    """See that a master takes our token and has a relay.

    Args:
        url: of the master.
        service_token: to ask with.
        only: id of the one relay to use, or None.

    Returns:
        Ids of the relays that must not be used.

    Raises:
        PreflightError: not reachable, not allowed, or no such relay.
    """
    raw = _get("master", url, "/v1/relays", service_token)
    try:
        relays = api.decode_body(api.RelayList, raw, max_bytes=8 << 20).relays
    except (MessageError, msgspec.MsgspecError) as error:
        raise PreflightError(f"what answers at {url} is not a master") from error
    active = {relay.relay_id for relay in relays if relay.state == RelayState.ACTIVE}
    if only is None:
        return ()
    if only not in active:
        raise PreflightError(f"no relay {only} is ACTIVE; `wavryctl relays list` shows them")
    others = tuple(sorted(active - {only}))
    if len(others) > MAX_EXCLUDED:
        raise PreflightError(f"--wavry-relay works with at most {MAX_EXCLUDED + 1} active relays")
    return others
