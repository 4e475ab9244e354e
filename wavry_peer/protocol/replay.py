"""Sliding replay window over 64-bit sequences, in the manner of RFC 6479.

Strategy: an exact ring of bits.  Bit `sequence % width` says whether `sequence` was seen, for
the `width` sequences that end at the highest one received.  Moving forward clears the bits
of what was skipped; nothing is ever shifted.  `head` is the highest sequence + 1, and 0 means
that nothing was received yet; the sequence 2^64-1 is refused, so that `head` is a u64 too.

The arithmetic is two functions over 64-bit words that somebody else may own, such as a
record in shared memory.  `ReplayWindow` is the same window with words of its own.

Checking changes nothing, committing does: commit only a packet that passed every other check.
"""

from enum import Enum
from typing import Final, Protocol

from .constants import REPLAY_WINDOW_PACKETS
from .errors import LocalError

__all__ = [
    "RESERVED_SEQUENCE",
    "WINDOW_WORDS",
    "ReplayWindow",
    "Verdict",
    "WindowWords",
    "window_check",
    "window_commit",
]

WORD_BITS: Final = 64
WINDOW_WORDS: Final = REPLAY_WINDOW_PACKETS // WORD_BITS
RESERVED_SEQUENCE: Final = (1 << 64) - 1
"""Never accepted: `head` after it would not fit a u64."""

_ALL_ONES: Final = (1 << WORD_BITS) - 1


class Verdict(Enum):
    """What a window says of a sequence."""

    FRESH = "fresh"
    DUPLICATE = "duplicate"
    TOO_OLD = "too_old"
    JUMP_TOO_FAR = "jump_too_far"


class WindowWords(Protocol):
    """A mutable row of u64 words: a list, an array, or a `memoryview` cast to "Q"."""

    def __getitem__(self, index: int, /) -> int: ...

    def __setitem__(self, index: int, value: int, /) -> None: ...


def window_check(
    words: WindowWords,
    head: int,
    sequence: int,
    max_jump: int | None = None,
    word_count: int = WINDOW_WORDS,
) -> Verdict:
    """Judge a sequence and change nothing.

    Args:
        words: `word_count` words of 64 bits.
        head: highest committed sequence + 1; 0 before the first.
        sequence: a u64.
        max_jump: largest allowed distance ahead of the highest committed sequence, or None.
            The first sequence of an empty window is not a jump: a session that moves to
            another relay arrives there in the middle of its numbers.
        word_count: width of the window / 64.

    Returns:
        `FRESH` if `window_commit` may follow.  2^64-1 is always `JUMP_TOO_FAR`.
    """
    if sequence >= head:
        if sequence >= RESERVED_SEQUENCE:
            return Verdict.JUMP_TOO_FAR
        if max_jump is not None and head and sequence - head >= max_jump:
            return Verdict.JUMP_TOO_FAR
        return Verdict.FRESH
    width = word_count * WORD_BITS
    if head - sequence > width:
        return Verdict.TOO_OLD
    position = sequence % width
    if words[position // WORD_BITS] >> position % WORD_BITS & 1:
        return Verdict.DUPLICATE
    return Verdict.FRESH


def window_commit(
    words: WindowWords, head: int, sequence: int, word_count: int = WINDOW_WORDS
) -> int:
    """Mark a sequence as received.

    Args:
        words: changed in place.
        head: as in `window_check`.
        sequence: a u64 that `window_check` has just called `FRESH`.
        word_count: as in `window_check`.

    Returns:
        The new head.
    """
    width = word_count * WORD_BITS
    if sequence >= head:
        _clear(words, head, sequence, word_count)
        head = sequence + 1
    position = sequence % width
    words[position // WORD_BITS] |= 1 << position % WORD_BITS
    return head


def _clear(words: WindowWords, start: int, end: int, word_count: int) -> None:
    """Clear the bits of the sequences from `start` up to, not including, `end`."""
    if end - start >= word_count * WORD_BITS:
        for index in range(word_count):
            words[index] = 0
        return
    while start < end:
        index = start // WORD_BITS % word_count
        low = start % WORD_BITS
        count = min(WORD_BITS - low, end - start)
        words[index] &= _ALL_ONES ^ ((1 << count) - 1 << low)
        start += count


class ReplayWindow:
    """A replay window that owns its words.

    Args:
        width: sequences remembered; a multiple of 64, at least 1024 (protocol.md section 3).
        max_jump: see `window_check`; None where a packet is authenticated before `commit`.

    Raises:
        LocalError: `width` or `max_jump` cannot be.
    """

    __slots__ = ("_head", "_max_jump", "_words")

    def __init__(self, width: int = REPLAY_WINDOW_PACKETS, max_jump: int | None = None) -> None:
        if width < REPLAY_WINDOW_PACKETS or width % WORD_BITS:
            raise LocalError(
                f"width must be a multiple of {WORD_BITS}, at least {REPLAY_WINDOW_PACKETS}"
            )
        if max_jump is not None and max_jump < 1:
            raise LocalError("max_jump must be at least 1")
        self._words = [0] * (width // WORD_BITS)
        self._head = 0
        self._max_jump = max_jump

    @property
    def highest(self) -> int | None:
        """Highest committed sequence, None before the first."""
        return self._head - 1 if self._head else None

    def check(self, sequence: int) -> Verdict:
        """Judge a sequence and change nothing.

        Raises:
            LocalError: `sequence` is not a u64.
        """
        if not 0 <= sequence <= RESERVED_SEQUENCE:
            raise LocalError("a sequence is an unsigned 64-bit number")
        return window_check(self._words, self._head, sequence, self._max_jump, len(self._words))

    def commit(self, sequence: int) -> None:
        """Mark a sequence as received.

        Raises:
            LocalError: `check` does not call it `FRESH`.
        """
        verdict = self.check(sequence)
        if verdict is not Verdict.FRESH:
            raise LocalError(f"only a fresh sequence can be committed, this one is {verdict.value}")
        self._head = window_commit(self._words, self._head, sequence, len(self._words))

    def reset(self) -> None:
        """Forget everything, as after an accepted PRESENT with proof."""
        for index in range(len(self._words)):
            self._words[index] = 0
        self._head = 0
