"""Replay window: edges, and a comparison with the obvious model over a set."""

import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wavry_peer.protocol.errors import LocalError
from wavry_peer.protocol.replay import ReplayWindow, Verdict, window_check, window_commit

TOP = (1 << 64) - 1
FRESH, DUPLICATE = Verdict.FRESH, Verdict.DUPLICATE
TOO_OLD, JUMP_TOO_FAR = Verdict.TOO_OLD, Verdict.JUMP_TOO_FAR


def committed(*sequences: int, width: int = 1024, max_jump: int | None = None) -> ReplayWindow:
    window = ReplayWindow(width, max_jump)
    for sequence in sequences:
        window.commit(sequence)
    return window


@pytest.mark.parametrize("first", [0, 1, 1023, 1024, 1 << 20, 1 << 63, TOP - 1])
def test_the_first_packet_may_have_any_sequence(first: int) -> None:
    window = ReplayWindow(max_jump=1 << 20)
    assert window.highest is None
    assert window.check(first) is FRESH
    window.commit(first)
    assert window.check(first) is DUPLICATE
    assert window.highest == first


def test_zero_is_a_sequence_like_any_other() -> None:
    window = committed(5)
    assert window.check(0) is FRESH
    window.commit(0)
    assert window.check(0) is DUPLICATE


def test_the_width_is_exact() -> None:
    window = committed(5000)
    assert window.check(5000 - 1023) is FRESH
    assert window.check(5000 - 1024) is TOO_OLD
    window.commit(5000 - 1023)
    assert window.check(5000 - 1023) is DUPLICATE
    window.commit(5001)
    assert window.check(5000 - 1023) is TOO_OLD


def test_the_largest_sequence_is_reserved() -> None:
    window = committed(TOP - 1)
    assert window.check(TOP) is JUMP_TOO_FAR
    assert window.check(TOP - 1) is DUPLICATE
    assert window.check(TOP - 1024) is FRESH
    assert window.check(TOP - 1025) is TOO_OLD
    assert ReplayWindow().check(TOP) is JUMP_TOO_FAR
    with pytest.raises(LocalError):
        window.commit(TOP)


def test_a_jump_is_measured_from_the_highest() -> None:
    window = committed(10, max_jump=1 << 20)
    assert window.check(10 + (1 << 20)) is FRESH
    assert window.check(11 + (1 << 20)) is JUMP_TOO_FAR
    assert committed(10).check(TOP - 1) is FRESH


def test_a_spoofed_huge_sequence_does_not_blackhole() -> None:
    window = committed(1, max_jump=1 << 20)
    assert window.check(TOP - 1) is JUMP_TOO_FAR
    assert window.check(2) is FRESH


def test_checking_changes_nothing() -> None:
    window = committed(1)
    for _ in range(3):
        assert window.check(1 << 40) is FRESH
        assert window.check(0) is FRESH


def test_only_a_fresh_sequence_is_committed() -> None:
    window = committed(2000)
    for sequence in (2000, 1, TOP, -1, TOP + 1):
        with pytest.raises(LocalError):
            window.commit(sequence)
    with pytest.raises(LocalError):
        window.check(-1)


@pytest.mark.parametrize("step", [1, 63, 64, 65, 1023, 1024, 1025, 2048, 1 << 40])
def test_skipped_sequences_are_fresh_after_a_move(step: int) -> None:
    window = committed(*range(100, 1124), 1123 + step)
    for back in range(1, min(step, 1024)):
        assert window.check(1123 + step - back) is FRESH
    for sequence in range(1123 + step - 1023, 1124):
        assert window.check(sequence) is DUPLICATE


def test_reset_forgets() -> None:
    window = committed(7, 1 << 50)
    window.reset()
    assert window.highest is None
    assert window.check(7) is FRESH


@pytest.mark.parametrize(
    ("width", "max_jump"), [(1023, None), (512, None), (1100, None), (1024, 0)]
)
def test_impossible_arguments(width: int, max_jump: int | None) -> None:
    with pytest.raises(LocalError):
        ReplayWindow(width, max_jump)


class Model:
    """What the window means: all that was committed, the newest `width` of it remembered."""

    def __init__(self, width: int, max_jump: int | None) -> None:
        self.seen: set[int] = set()
        self.width, self.max_jump = width, max_jump

    def check(self, sequence: int) -> Verdict:
        highest = max(self.seen, default=None)
        if sequence == TOP:
            return JUMP_TOO_FAR
        if highest is None:
            return FRESH
        if self.max_jump is not None and sequence - highest > self.max_jump:
            return JUMP_TOO_FAR
        if sequence <= highest - self.width:
            return TOO_OLD
        return DUPLICATE if sequence in self.seen else FRESH


BASES = st.sampled_from([0, 1, 1 << 32, (1 << 63) - 700, TOP - 9000])
STEPS = st.lists(
    st.one_of(
        st.integers(-1100, 1100),
        st.integers(-3, 3),
        st.sampled_from([64, 128, 1024, 2048, -1024, -1023, 4000, 4001]),
    ),
    max_size=120,
)


@given(base=BASES, steps=STEPS, words=st.sampled_from([16, 32]), jump=st.sampled_from([None, 4000]))
def test_agrees_with_the_model(base: int, steps: list[int], words: int, jump: int | None) -> None:
    window, model = ReplayWindow(words * 64, jump), Model(words * 64, jump)
    sequence = base
    for step in steps:
        candidate = min(max(sequence + step, 0), TOP)
        verdict = window.check(candidate)
        assert verdict is model.check(candidate)
        if verdict is FRESH:
            window.commit(candidate)
            model.seen.add(candidate)
            sequence = candidate


@given(steps=STEPS)
def test_the_functions_work_on_shared_memory_words(steps: list[int]) -> None:
    backing = bytearray(16 * 8)
    words = memoryview(backing).cast("Q")
    others = array.array("Q", bytes(16 * 8))
    window, head, sequence = ReplayWindow(), 0, 5000
    for step in steps:
        sequence = max(sequence + step, 0)
        verdict = window_check(words, head, sequence)
        assert verdict is window_check(others, head, sequence) is window.check(sequence)
        if verdict is FRESH:
            window_commit(others, head, sequence)
            head = window_commit(words, head, sequence)
            window.commit(sequence)
    assert bytes(words) == others.tobytes()
    assert head == (window.highest or -1) + 1
