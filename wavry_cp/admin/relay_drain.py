"""``wavryctl relays drain``: give the order, and show how the sessions leave.

What is shown comes from the relay's heartbeats (every second while it drains), as the master tells.
"""

import asyncio
import time
from typing import Final, Protocol, Self

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from wavry_cp.admin.client import ask_json
from wavry_cp.admin.endpoints import ServiceEndpoints
from wavry_cp.admin.output import EXIT_FAILED
from wavry_cp.admin.relay_names import relay_named, relay_path
from wavry_peer.protocol.http.admin import Order
from wavry_peer.protocol.http.api import RelayInfo
from wavry_peer.protocol.relay_terms import DrainOrder, RelayState, ReportedState

__all__ = ["DrainResult", "drain_relay", "order_relay", "progress_for"]

POLL_S: Final = 0.5
PLAIN_EVERY_S: Final = 5.0


class DrainResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a drain.

    ``outcome`` is ``ordered`` (nobody waited), ``drained``, ``timeout``, ``offline`` (the relay is
    gone, and with it every session that did not move) or ``undrained`` (somebody ended the drain).
    """

    relay: RelayInfo
    outcome: str
    sessions_at_start: int
    sessions_left: int
    seconds: float

    @property
    def exit_code(self) -> int:
        """0 where the order was carried out."""
        return 0 if self.outcome in ("ordered", "drained") else EXIT_FAILED


class DrainProgress(Protocol):
    """Shows how many sessions are left."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def show(self, relay: RelayInfo, seconds: float) -> None:
        """Take the progress, about twice a second."""


class NoProgress:
    """For ``--json``: only the result is printed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return

    def show(self, relay: RelayInfo, seconds: float) -> None:
        """Show nothing."""


class PlainProgress(NoProgress):
    """A line on stderr when the number changed, or now and then; for pipes and logs."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._shown: dict[str, tuple[int, str, float]] = {}

    def show(self, relay: RelayInfo, seconds: float) -> None:
        """Print the line."""
        left, word = relay.active_sessions, _word(relay)
        shown = self._shown.get(relay.relay_id)
        if shown is None or shown[:2] != (left, word) or seconds - shown[2] >= PLAIN_EVERY_S:
            self._shown[relay.relay_id] = (left, word, seconds)
            self._console.print(f"{relay.relay_id}: {left} sessions left, {word}")


class BarProgress(NoProgress):
    """A bar for each relay on a terminal."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[left]} sessions left, {task.fields[word]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bars: dict[str, tuple[TaskID, int]] = {}

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def show(self, relay: RelayInfo, seconds: float) -> None:  # noqa: ARG002  # the bar has a clock
        """Move the bar."""
        left, word = relay.active_sessions, _word(relay)
        if relay.relay_id not in self._bars:
            task = self._bar.add_task(relay.relay_id, total=1, left=left, word=word)
            self._bars[relay.relay_id] = (task, 1)
        task, most = self._bars[relay.relay_id]
        most = max(most, left)
        self._bars[relay.relay_id] = (task, most)
        self._bar.update(task, total=most, completed=most - left, left=left, word=word)


def _word(relay: RelayInfo) -> str:
    if relay.state == RelayState.DRAINING and relay.reported != ReportedState.DRAINING:
        return "the relay has not confirmed yet"
    return relay.state


def progress_for(*, as_json: bool) -> DrainProgress:
    """Choose bars on a terminal, plain lines elsewhere, nothing with ``--json``."""
    if as_json:
        return NoProgress()
    return BarProgress() if Console(stderr=True).is_terminal else PlainProgress()


async def order_relay(
    endpoints: ServiceEndpoints, relay: str, order: DrainOrder, *, reason: str
) -> RelayInfo:
    """Give the master an order about a relay, by name or id; `reason` is for the audit.

    Raises:
        CommandError: the master is unreachable, or refuses.
    """
    return await ask_json(
        "master",
        endpoints.need_master(),
        f"/v1/admin/relays/{relay_path(relay)}/{order}",
        RelayInfo,
        method="POST",
        body=Order(reason=reason),
        token=endpoints.admin_token(),
    )


async def drain_relay(
    endpoints: ServiceEndpoints,
    named: str,
    *,
    reason: str,
    wait: bool,
    timeout_s: float,
    progress: DrainProgress,
) -> DrainResult:
    """Order the drain and, where asked to, wait until no session is left.

    Args:
        endpoints: where the master is.
        named: name or id of the relay.
        reason: for the audit log, may be empty.
        wait: until the relay itself says that it drains and has no session.
        timeout_s: longest wait; the drain goes on after it.
        progress: where to show it; its block is open.

    Raises:
        CommandError: the master is unreachable, or refuses.
    """
    began_s = time.monotonic()
    relay = await order_relay(endpoints, named, DrainOrder.DRAIN, reason=reason)
    at_start = relay.active_sessions
    outcome = "ordered"
    if wait:
        while True:
            seconds = time.monotonic() - began_s
            progress.show(relay, seconds)
            at_start = max(at_start, relay.active_sessions)
            ended = _ended(relay) or ("timeout" if seconds >= timeout_s else None)
            if ended is not None:
                outcome = ended
                break
            await asyncio.sleep(min(POLL_S, max(0.0, timeout_s - seconds)))
            relay = await relay_named(endpoints, relay.relay_id)
    return DrainResult(
        relay=relay,
        outcome=outcome,
        sessions_at_start=at_start,
        sessions_left=relay.active_sessions,
        seconds=round(time.monotonic() - began_s, 3),
    )


def _ended(relay: RelayInfo) -> str | None:
    if relay.state == RelayState.OFFLINE:
        return "offline"
    if relay.state != RelayState.DRAINING:
        return "undrained"
    if relay.reported == ReportedState.DRAINING and relay.active_sessions == 0:
        return "drained"
    return None
