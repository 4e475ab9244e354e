"""Drain and recover: a relay is drained under a live session, and takes sessions again after it.

Whatever happens in between, the relay is given back: on a failure, a time-out, Ctrl-C and SIGTERM.
A relay that somebody else drained is left alone.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import wavry_peer
from wavry_cp.admin.client import ask_json
from wavry_cp.admin.endpoints import ServiceEndpoints
from wavry_cp.admin.output import EXIT_FORBIDDEN, EXIT_UNREACHABLE, CommandError
from wavry_cp.admin.relay_drain import order_relay
from wavry_cp.admin.relay_names import relay_named
from wavry_peer.errors import GatewayError
from wavry_peer.protocol.http.api import RelayInfo, RelayList
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.relay_terms import DrainOrder, RelayState

from .echo import Echo
from .relay_step import require_whole
from .report import Passed, StepFailedError, StepSkippedError
from .stage import Pair, SmokeContext, relay_of

__all__ = ["check_drain"]

REASON: Final = "smoke test"
INTERVAL_S: Final = 0.02
POLL_S: Final = 0.2
ORDER_TIMEOUT_S: Final = 20.0
"""The order comes over the event stream at once, or with a heartbeat, and so does the report."""
MOVE_TIMEOUT_S: Final = 30.0
"""A draining relay tells its peers every 5 s."""
STAYS_S: Final = 1.0
GIVE_BACK_TIMEOUT_S: Final = 30.0


async def check_drain(stage: SmokeContext) -> Passed:
    """Take the step.

    Raises:
        StepFailedError: sessions or relay do not do what a drain means.
        StepSkippedError: the relay was drained before.
        CommandError, PeerError: a call failed.
    """
    endpoints = stage.endpoints
    rows = await _relays(endpoints)
    async with stage.pair() as pair:
        if stage.drain_relay is None:
            target = relay_of(pair.session)
        else:
            target = (await relay_named(endpoints, stage.drain_relay)).relay_id
        _require_drainable(target, rows)
        if pair.relays() != (target, target):
            await stage.move(pair.session, pair.other, target, set(rows))
        # One that is drained or away cannot take the session over.
        others = {key for key, row in rows.items() if row.state == RelayState.ACTIVE} - {target}
        async with Echo((pair.session, pair.other), interval_s=INTERVAL_S, count=None) as echo:
            began_s = time.monotonic()
            async with _drained(stage, target):
                await _until_state(stage, target, "draining")
                if others:
                    seen = await _moves_away(stage, pair, target, others)
                else:
                    seen = await _stays_and_is_alone(stage, pair, echo)
            seconds = time.monotonic() - began_s
            await _until_state(stage, target, "ready")
            await _takes_sessions(stage, pair, target, set(rows))
            figures = await echo.finished()
        kept = pair.session.statistics().handshakes == 1
    require_whole(figures, target)
    if not kept:
        raise StepFailedError("the session lost its keys: it shook hands again")
    return Passed(
        f"{target} drained for {seconds:.1f} s: {seen}; {figures.lost} of {figures.sent} datagrams "
        "lost meanwhile; undrained, it takes sessions again",
        {"drained_s": round(seconds, 2), "sent": figures.sent, "lost": figures.lost},
    )


def _require_drainable(target: str, rows: dict[str, RelayInfo]) -> None:
    row = rows.get(target)
    if row is None:
        raise StepFailedError(
            f"the master knows no relay {target}", "`wavryctl relays list` shows the ids"
        )
    if row.state == RelayState.DRAINING:
        raise StepSkippedError(
            f"{target} is drained already, and not by this run",
            f"`wavryctl audit` says by whom; `wavryctl relays undrain {target}` ends it",
        )
    if row.state != RelayState.ACTIVE:
        raise StepFailedError(f"{target} is {row.state}", "`wavryctl doctor` says why")


# -- While it is drained ---------------------------------------------------------------------


async def _moves_away(stage: SmokeContext, pair: Pair, target: str, others: set[str]) -> str:
    stage.doing = f"waiting for the session to leave {target}"
    began_s = time.monotonic()

    async def has_moved() -> bool:
        return target not in pair.relays()

    await _until(
        has_moved, MOVE_TIMEOUT_S, lambda: f"the session did not leave {target}: {pair.relays()}"
    )
    moved_s = time.monotonic() - began_s
    stage.doing = "opening a session elsewhere"
    async with _one_more(pair) as (session, _):
        if relay_of(session) not in others:
            raise StepFailedError(f"a new session was given to {relay_of(session)} in its drain")
    return f"the session moved to {relay_of(pair.session)} in {moved_s:.1f} s, new ones go there"


async def _stays_and_is_alone(stage: SmokeContext, pair: Pair, echo: Echo) -> str:
    stage.doing = "asking for a session while the only relay is drained"
    try:
        async with _one_more(pair):
            raise StepFailedError("a new session was given to a drained relay")
    except wavry_peer.SessionFailedError as error:
        told = error.__cause__
        if not isinstance(told, GatewayError) or told.code != ErrorCode.NO_RELAY_AVAILABLE:
            raise
    before = echo.answered
    await asyncio.sleep(STAYS_S)
    if echo.answered == before:
        raise StepFailedError("the live session stood still while its relay was drained")
    return "the live session stayed, new ones got no_relay_available"


# -- Afterwards ------------------------------------------------------------------------------


async def _takes_sessions(stage: SmokeContext, pair: Pair, target: str, known: set[str]) -> None:
    stage.doing = f"opening a session at {target} after its drain"
    async with _one_more(pair) as (session, other):
        if relay_of(session) != target:
            await stage.move(session, other, target, known)


@contextlib.asynccontextmanager
async def _one_more(pair: Pair) -> AsyncIterator[tuple[wavry_peer.Session, wavry_peer.Session]]:
    session, other = await pair.another()
    try:
        yield session, other
    finally:
        await session.aclose()
        await other.aclose()


# -- Orders ----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _drained(stage: SmokeContext, target: str) -> AsyncIterator[None]:
    """Drain the relay for the length of the block, and give it back at its end."""
    stage.doing = f"ordering the drain of {target}"
    try:
        await order_relay(stage.endpoints, target, DrainOrder.DRAIN, reason=REASON)
    except CommandError as error:
        if error.exit_code == EXIT_UNREACHABLE:  # The order may have got there all the same.
            await _give_back(stage, target)
        raise
    except BaseException:
        await _give_back(stage, target)
        raise
    try:
        yield
    finally:
        await _give_back(stage, target)


async def _give_back(stage: SmokeContext, target: str) -> None:
    stage.doing = f"ending the drain of {target}"
    deadline_s = time.monotonic() + GIVE_BACK_TIMEOUT_S
    while True:
        try:
            await order_relay(stage.endpoints, target, DrainOrder.UNDRAIN, reason=REASON)
        except CommandError as error:
            if error.exit_code != EXIT_UNREACHABLE or time.monotonic() > deadline_s:
                raise StepFailedError(
                    f"{target} is STILL DRAINED: {error}",
                    f"`wavryctl relays undrain {target}`",
                    exit_code=error.exit_code,
                ) from error
            await asyncio.sleep(1.0)
        else:
            return


async def _relays(endpoints: ServiceEndpoints) -> dict[str, RelayInfo]:
    answer = await ask_json(
        "master", endpoints.need_master(), "/v1/relays", RelayList, token=_token(endpoints)
    )
    return {relay.relay_id: relay for relay in answer.relays}


def _token(endpoints: ServiceEndpoints) -> str:
    try:
        return endpoints.admin_token()
    except CommandError as error:
        raise StepFailedError(
            f"a drain needs an admin token of role operator: {error}",
            "give one, or leave the step out with --skip drain",
            exit_code=EXIT_FORBIDDEN,
        ) from error


async def _until_state(stage: SmokeContext, target: str, reported: str) -> None:
    """Wait until the relay itself says so, which it does with its next heartbeat."""
    stage.doing = f"waiting for {target} to report that it is {reported}"
    row: RelayInfo | None = None

    async def says_so() -> bool:
        nonlocal row
        row = (await _relays(stage.endpoints)).get(target)
        return row is not None and row.reported == reported

    await _until(
        says_so,
        ORDER_TIMEOUT_S,
        lambda: (
            f"{target} does not report {reported}: "
            + (f"{row.state}, reported {row.reported}" if row else "unknown to the master")
        ),
    )


async def _until(
    condition: Callable[[], Awaitable[bool]], timeout_s: float, evidence: Callable[[], str]
) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not await condition():
        if time.monotonic() > deadline_s:
            raise StepFailedError(f"{evidence()} after {timeout_s:g} s")
        await asyncio.sleep(POLL_S)
