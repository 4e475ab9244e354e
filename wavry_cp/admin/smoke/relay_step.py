"""The relay: two peers, end-to-end encrypted, datagrams of several sizes there and back."""

from typing import Final

from .echo import Echo, EchoFigures
from .report import Passed, StepFailedError
from .stage import SmokeContext

__all__ = ["MAX_LOST_SHARE", "check_relay", "require_whole"]

INTERVAL_S: Final = 0.005
MAX_LOST_SHARE: Final = 0.05
"""A path that loses more is no path for media; some loss is the network's right."""


async def check_relay(stage: SmokeContext) -> Passed:
    """Take the step.

    Raises:
        StepFailedError: datagrams are lost or altered.
        PeerError: no session.
    """
    async with stage.pair() as pair:
        relay_id, other = pair.relays()
        if relay_id != other:
            raise StepFailedError(f"the two ends use different relays: {relay_id}, {other}")
        stage.doing = f"exchanging datagrams over relay {relay_id}"
        ends = (pair.session, pair.other)
        async with Echo(ends, interval_s=INTERVAL_S, count=stage.datagrams) as echo:
            figures = await echo.finished()
        statistics = pair.session.statistics()
    require_whole(figures, relay_id)
    if statistics.handshakes != 1 or not statistics.path.startswith("relay"):
        raise StepFailedError(
            f"{statistics.handshakes} handshakes, path {statistics.path}: the session was not "
            "carried by one relay under one set of keys"
        )
    return Passed(
        f"{figures.answered} of {figures.sent} datagrams of {figures.smallest_bytes} to "
        f"{figures.largest_bytes} bytes came back whole over {relay_id}; round trip p50 "
        f"{figures.rtt_p50_ms:.1f} ms, p99 {figures.rtt_p99_ms:.1f} ms",
        {
            "sent": figures.sent,
            "lost": figures.lost,
            "rtt_p50_ms": figures.rtt_p50_ms,
            "rtt_p99_ms": figures.rtt_p99_ms,
        },
    )


def require_whole(figures: EchoFigures, relay_id: str) -> None:
    """Refuse altered datagrams and more loss than a network may have.

    Raises:
        StepFailedError: with the numbers.
    """
    if figures.corrupt:
        raise StepFailedError(
            f"{figures.corrupt} datagrams came back altered over relay {relay_id}",
            "report this: the channel is authenticated, so it is a defect",
        )
    if figures.lost > MAX_LOST_SHARE * figures.sent:
        raise StepFailedError(
            f"{figures.lost} of {figures.sent} datagrams were lost over relay {relay_id}",
            "look at wavry_relay_packets_dropped_total of the relay, and at the network between",
        )
