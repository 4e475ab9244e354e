"""GCRA: a leaky bucket in one word, the theoretical arrival time (TAT) of the next unit.

A packet conforms if TAT is not more than `burst` ahead of now; it then moves TAT by its own
cost.  A word of 0 is a full allowance, so the first second is limited from its first packet.
There is no window whose edge lets double the rate through.
"""

from typing import Final

from wavry_peer.protocol.constants import MAX_DATAGRAM_BYTES

__all__ = [
    "conforms",
    "cost_ns",
    "soft_exceeded",
]

_U32: Final = 0xFFFFFFFF


def cost_ns(size_bytes: int, kbps: int) -> int:
    """Time that a datagram takes at a rate; `kbps` must not be 0."""
    return size_bytes * 8_000_000 // kbps


def conforms(tat_ns: int, now_ns: int, burst_ns: int, cost: int) -> int:
    """Judge one unit.

    Args:
        tat_ns: the word.
        now_ns: CLOCK_MONOTONIC.
        burst_ns: tolerance.
        cost: time that the unit takes at the limit, in ns.

    Returns:
        The word to store if the unit is let through, or 0 if it is over the limit.
    """
    if tat_ns > now_ns + burst_ns:
        return 0
    return max(tat_ns, now_ns) + cost


def soft_exceeded(
    tat_us: int, now_us: int, size_bytes: int, kbps: int, burst_us: int
) -> tuple[bool, int]:
    """The same for the soft limit, whose word has 32 bits of microseconds modulo 2^32.

    A word that is further ahead than a burst and one full datagram can be is a stale one from
    before a wrap (71 minutes) and counts as a full allowance.

    Returns:
        Whether the datagram is over the limit, and the word to store.
    """
    ahead_us = tat_us - now_us & _U32
    if burst_us < ahead_us <= burst_us + cost_ns(MAX_DATAGRAM_BYTES, kbps) // 1000:
        return True, tat_us
    start_us = tat_us if ahead_us <= burst_us else now_us
    return False, start_us + cost_ns(size_bytes, kbps) // 1000 & _U32
