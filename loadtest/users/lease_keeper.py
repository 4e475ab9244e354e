"""Renews the lease of one peer for as long as its session lasts."""

import random
from collections.abc import Callable
from typing import Final

import gevent

from loadtest.run.load_run import LoadFailure, LoadRun, now_ns
from wavry_peer.paths.own_lease import OwnLease
from wavry_peer.paths.renewal import RenewalSchedule

from .relay_channel import RelayChannel

__all__ = ["keep_renewed"]

RENEW: Final = "UDP lease renew"
_SECOND_NS: Final = 1_000_000_000


def keep_renewed(
    run: LoadRun, channel: RelayChannel, next_lease: Callable[[OwnLease], OwnLease]
) -> None:
    """Renew again and again; ends only by being killed.

    What fails is counted, and tried again as a real peer does.

    Args:
        run: where to measure; its option ``renew_every_s`` wins over the peers' own schedule.
        channel: of the peer.
        next_lease: asks gateway or master for the lease after this one.
    """
    schedule = RenewalSchedule(channel.lease, random.random)
    every_s = run.options.renew_every_s
    while True:
        left_s = max(0, schedule.due_ns - now_ns()) / _SECOND_NS
        gevent.sleep(left_s if every_s is None else every_s)
        try:
            lease = next_lease(channel.lease)
            with run.measuring(RENEW):
                channel.renew(lease)
        except LoadFailure as failure:
            schedule.failed(now_ns(), failure.retry_after_s)
        else:
            schedule.restart(lease)
