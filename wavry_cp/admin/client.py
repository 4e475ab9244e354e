"""Calls to the services: one request each, with failures that say the next step."""

from typing import Any, Final, TypeVar

import aiohttp
import msgspec

from .output import EXIT_FORBIDDEN, EXIT_UNREACHABLE, CommandError

__all__ = ["TIMEOUT_S", "ask", "ask_json"]

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
) -> tuple[int, bytes]:
    """Make one call.

    Args:
        service: name for messages, e.g. ``"master"``.
        base_url: e.g. ``http://127.0.0.1:8091``.
        path: begins with a slash.
        method: HTTP method.
        token: bearer token.
        body: sent as JSON.
        timeout_s: of the whole call.

    Returns:
        Status and body.

    Raises:
        CommandError: the service cannot be reached (exit code 3).
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    data = None if body is None else msgspec.json.encode(body)
    if data is not None:
        headers["Content-Type"] = "application/json"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session,
            session.request(
                method, base_url.rstrip("/") + path, data=data, headers=headers
            ) as response,
        ):
            return response.status, await response.content.read(MAX_ANSWER_BYTES)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        cause = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
        raise CommandError(
            f"the {service} at {base_url} cannot be reached ({cause}): is it running, and is the "
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
    status, raw = await ask(
        service, base_url, path, method=method, token=token, body=body, timeout_s=timeout_s
    )
    if status >= 400:
        raise _refused(service, status, raw)
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.MsgspecError as error:
        raise CommandError(
            f"the {service} at {base_url} answered something else than expected: is this address "
            "really the service, and of the same version?",
            code="bad_answer",
        ) from error


def _refused(service: str, status: int, raw: bytes) -> CommandError:
    try:
        body: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.MsgspecError:
        body = {}
    code = str(body.get("error", f"http_{status}"))
    text = str(body.get("message", "no message"))
    if status in (401, 403):
        return CommandError(
            f"the {service} refuses the token: {text}", code=code, exit_code=EXIT_FORBIDDEN
        )
    return CommandError(f"the {service} says {code}: {text}", code=code)
