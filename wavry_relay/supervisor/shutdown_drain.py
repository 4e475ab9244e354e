"""SIGTERM is a drain with a deadline: the relay waits so long for its sessions to move."""

import asyncio
import contextlib
import signal
from collections.abc import Callable
from typing import Final

import structlog

from wavry_peer.service.clock import Clock
from wavry_relay.ops.figures import RelayFigures

from .host import DrainReport

__all__ = ["drain_before_the_end"]

_POLL_S: Final = 0.1

_log = structlog.get_logger(__name__)


async def drain_before_the_end(
    figures: RelayFigures,
    report: DrainReport,
    clock: Clock,
    stop_signals: "asyncio.Queue[signal.Signals | None]",
    *,
    timeout_s: Callable[[], float],
) -> None:
    """Wait for live sessions to end, as long as the settings say; a second signal ends it.

    Args:
        figures: of the relay, which takes no new sessions any more.
        report: tells the service manager how many are left.
        clock: time.
        stop_signals: further ones.
        timeout_s: the setting, which a reload may change meanwhile.
    """
    began_ns = clock.now().mono_ns
    while sessions := figures.session_count:
        now_ns = clock.now().mono_ns
        if now_ns - began_ns >= timeout_s() * 1e9:
            _log.warning(
                "drain_incomplete",
                sessions=sessions,
                cause="they found no other relay, or their peers do not answer",
                next_step="none: they end now; WAVRY_RELAY_DRAIN_TIMEOUT_S gives them longer",
            )
            return
        report.tell(sessions, now_ns)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop_signals.get(), _POLL_S)
            _log.warning(
                "drain_cut_short",
                sessions=sessions,
                cause="a second signal",
                next_step="none: the sessions that are left end now",
            )
            return
