"""Orders that gateway and master both carry out: each durably for itself, asked at the same time.

Where one of them fails the other's order stands, and the command says which one to repeat it
for: an order is the same however often it is given.
"""

import asyncio
from typing import Final, TypeVar

import msgspec

from .client import ask_json
from .endpoints import ServiceEndpoints
from .output import CommandError, print_json, print_note

__all__ = ["OrderOutcome", "order_both", "report"]

Kind = TypeVar("Kind", bound=msgspec.Struct)
SERVICES: Final = ("master", "gateway")


class OrderOutcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of an order at one service; `answer` is what it said."""

    service: str
    ok: bool
    answer: msgspec.Struct | None = None
    error: str = ""
    message: str = ""
    exit_code: int = 0


async def order_both(
    endpoints: ServiceEndpoints, path: str, kind: type[Kind], body: msgspec.Struct
) -> list[OrderOutcome]:
    """Send an order to master and gateway; failures of either are in its outcome.

    Raises:
        CommandError: an address or the token is not known; nothing was sent.
    """
    urls = {"master": endpoints.need_master(), "gateway": endpoints.need_gateway()}
    token = endpoints.admin_token()

    async def one(service: str) -> OrderOutcome:
        try:
            answer = await ask_json(
                service, urls[service], path, kind, method="POST", token=token, body=body
            )
        except CommandError as error:
            return OrderOutcome(
                service, ok=False, error=error.code, message=str(error), exit_code=error.exit_code
            )
        return OrderOutcome(service, ok=True, answer=answer)

    return list(await asyncio.gather(*(one(service) for service in SERVICES)))


def report(outcomes: list[OrderOutcome], done: str, *, as_json: bool) -> int:
    """Print what came of an order; gives the exit code."""
    failed = [outcome for outcome in outcomes if not outcome.ok]
    if as_json:
        print_json({"ok": not failed, "services": outcomes})
    else:
        for outcome in outcomes:
            if outcome.ok:
                print(f"{outcome.service}: {done}")
            else:
                print_note(f"{outcome.service}: NOT done: {outcome.message}")
        if failed:
            names = " and ".join(outcome.service for outcome in failed)
            print_note(f"repeat the command once the {names} can be asked")
    return max((outcome.exit_code for outcome in failed), default=0)
