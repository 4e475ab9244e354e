"""Many packets at once, with their signatures checked one right after the other.

The way of a packet is a generator that stops where a signature has to be checked, yields the check
and goes on with its outcome.  A round takes every packet to its next check and then makes all
of these: code that has just run is in the processor's caches, and a signature check (50 µs of
arithmetic over large tables) pushes out what the packets' own code needs.
"""

from collections.abc import Callable, Generator, Sequence

from wavry_peer.protocol.ed25519 import SignatureCheck
from wavry_relay.engine.base import Answer

__all__ = ["Steps", "run_all", "run_one"]

Steps = Generator[SignatureCheck, bool | None, Answer]
"""Ends with the answer."""


def run_one(steps: Steps) -> Answer:
    """Take one packet to its end."""
    verdict = None
    while True:
        try:
            verdict = steps.send(verdict).holds()
        except StopIteration as end:
            answer: Answer = end.value
            return answer


def run_all(packets: Sequence[Steps], on_defect: Callable[[Exception], None]) -> list[Answer]:
    """Take all packets to their ends, in rounds.

    Args:
        packets: their ways, in the order in which they came.
        on_defect: told of an exception that one of them raised; the others go on.

    Returns:
        The answer of each.
    """
    answers: list[Answer] = [()] * len(packets)
    waiting = list(enumerate(packets))
    verdicts: list[bool] | list[None] = [None] * len(packets)
    while waiting:
        still_waiting, checks = [], []
        for (at, steps), verdict in zip(waiting, verdicts, strict=True):
            try:
                checks.append(steps.send(verdict))
            except StopIteration as end:
                answers[at] = end.value
            except Exception as error:  # noqa: BLE001 - one packet must not end all sessions
                on_defect(error)
            else:
                still_waiting.append((at, steps))
        waiting, verdicts = still_waiting, [check.holds() for check in checks]
    return answers
