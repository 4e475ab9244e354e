"""Calls to the services: one request each, with failures that say the next step."""

from typing import Final, TypeVar

import aiohttp
import msgspec

from wavry_peer.protocol.errors import MessageError
from wavry_peer.protocol.http.api import ErrorBody
from wavry_peer.service.http_client import CallError, JsonAnswer, JsonCaller
from wavry_peer.service.request_ids import quoted

from .output import EXIT_FORBIDDEN, EXIT_UNREACHABLE, CommandError

__all__ = ["TIMEOUT_S", "ask", "ask_json", "refused"]

TIMEOUT_S: Final = 5.0
MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
"""10 000 relays are about 4 MB; a larger answer is not one of ours."""

Kind = TypeVar("Kind")


async def ask(
    service: str,
    base_url: str,
    path: str,
    *,
    method: str = "GET",
    token: str | None = None,
    body: msgspec.Struct | None = None,
    timeout_s: float = TIMEOUT_S,
) -> JsonAnswer:
    """Make one call.

    Args:
        service: name for messages, e.g. ``"master"``.
        base_url: e.g. ``http://127.0.0.1:8091``.
        path: begins with a slash.
        method: HTTP method.
        token: bearer token.
        body: sent as JSON.
        timeout_s: of the whole call.

    Raises:
        CommandError: the service cannot be reached (exit code 3), or says too much.
    """
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with JsonCaller(timeout, max_bytes=MAX_ANSWER_BYTES) as caller:
            return await caller.call(method, base_url.rstrip("/") + path, body, token=token)
    except CallError as error:
        if error.error is None:
            raise CommandError(
                f"the {service} at {base_url}: {error}: ask for less at once, if you can",
                code="answer_too_large",
            ) from error
        raise CommandError(
            f"the {service} at {base_url} cannot be reached ({error}): is it running, and is the "
            "address right?",
            code="unreachable",
            exit_code=EXIT_UNREACHABLE,
        ) from error


async def ask_json(
    service: str,
    base_url: str,
    path: str,
    kind: type[Kind],
    *,
    method: str = "GET",
    token: str | None = None,
    body: msgspec.Struct | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Kind:
    """Make one call and read its JSON answer as `kind`.

    Raises:
        CommandError: unreachable, refused (its error code and message), or not understood.
    """
    answer = await ask(
        service, base_url, path, method=method, token=token, body=body, timeout_s=timeout_s
    )
    if answer.status >= 400:
        raise refused(service, answer)
    try:
        return answer.read(kind)
    except MessageError as error:
        raise CommandError(
            f"the {service} at {base_url} answered something else than expected: is this address "
            "really the service, and of the same version?",
            code="bad_answer",
        ) from error


def refused(service: str, answer: JsonAnswer) -> CommandError:
    """Return why a service refused a call, as the end of a command."""
    body = answer.error_body() or ErrorBody(f"http_{answer.status}", "no message")
    if answer.status in (401, 403):
        return CommandError(
            quoted(f"the {service} refuses the token: {body.message}", answer.request_id),
            code=body.error,
            exit_code=EXIT_FORBIDDEN,
        )
    said = quoted(f"the {service} says {body.error}: {body.message}", answer.request_id)
    return CommandError(said, code=body.error)
