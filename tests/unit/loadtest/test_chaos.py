"""The parts of the chaos run: what comes when, who is to blame, what is printed, what it spoils."""

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from loadtest.chaos.attacks import ATTACKS, attack_cards, lacking_attacks
from loadtest.chaos.faults import FAULTS
from loadtest.chaos.journal import Datagrams, Death, Incident, Journal, LostSession
from loadtest.chaos.log_sinks import PipeSink
from loadtest.chaos.report import (
    Minute,
    Summary,
    incident_line,
    minute_line,
    recoveries,
    summary_lines,
)
from loadtest.chaos.schedule import Card, turns
from loadtest.chaos.stepped_clock import SteppedClock
from loadtest.chaos.verdict import PATIENCE_S, judge

CARDS = [Card(kind, ("relay-0", "relay-1"), 1.0, 4.0) for kind in ("freeze", "kill", "log", "step")]


def first(seed: str, count: int) -> list[tuple[str, str, float, float, float, int]]:
    drawn = itertools.islice(turns(seed, CARDS, longest_pause_s=2.0), count)
    return [
        (turn.kind, turn.target, turn.pause_s, turn.lasts_s, turn.dice.random(), turn.deck)
        for turn in drawn
    ]


# -- Schedule ----------------------------------------------------------------------------------


def test_a_seed_gives_the_same_run_again_and_another_seed_another() -> None:
    assert first("7/faults", 40) == first("7/faults", 40)
    assert first("7/faults", 40) != first("8/faults", 40)


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_every_kind_comes_once_before_one_comes_again(seed: str) -> None:
    drawn = first(seed, 12)
    for deck in (1, 2, 3):
        kinds = [kind for kind, *_, number in drawn if number == deck]
        assert sorted(kinds) == sorted(card.kind for card in CARDS)


def test_times_and_targets_keep_to_the_card() -> None:
    drawn = first("9", 200)
    assert all(0 <= pause_s <= 2.0 for _, _, pause_s, *_ in drawn)
    assert all(1.0 <= lasts_s <= 4.0 for _, _, _, lasts_s, *_ in drawn)
    assert set(Counter(target for _, target, *_ in drawn)) == {"relay-0", "relay-1"}


def test_the_length_of_what_happened_changes_nothing_of_what_comes() -> None:
    drawn = list(itertools.islice(turns("5", CARDS, longest_pause_s=1.0), 20))
    for turn in drawn[:10]:
        turn.dice.random()  # A fault that draws more than another does not disturb the order.
    assert [one[0] for one in first("5", 20)] == [turn.kind for turn in drawn]


def test_no_cards_no_turns() -> None:
    assert list(turns("1", [], longest_pause_s=1.0)) == []


# -- Verdict -----------------------------------------------------------------------------------


def lost(at_s: float, *relays: tuple[float, str]) -> LostSession:
    return LostSession("pair-0/1", at_s, "the relay refused the lease", relays)


def fault(kind: str, target: str, began_s: float, lifted_s: float | None = None) -> Incident:
    return Incident(kind, target, False, began_s, lifted_s, lifted_s)


def test_a_run_in_which_nothing_was_lost_is_good() -> None:
    journal = Journal()
    journal.incidents.append(fault("freeze", "relay-0", 3, 8))
    assert not judge(journal, ended_s=60).faults


def test_a_session_that_is_lost_though_its_relay_lives_is_a_fault() -> None:
    journal = Journal()
    journal.lost.append(lost(100, (5, "relay-0")))
    journal.deaths.append(Death("relay-1", 90, asked=True))  # Another one's death excuses nothing.
    verdict = judge(journal, ended_s=120)
    assert not verdict.losses[0].excused
    assert any("pair-0/1" in line for line in verdict.faults)


def test_a_session_may_be_lost_with_its_own_relay() -> None:
    journal = Journal()
    journal.lost.append(lost(100, (5, "relay-0")))
    journal.deaths.append(Death("relay-0", 60, asked=True))
    verdict = judge(journal, ended_s=120)
    assert verdict.losses[0].excused
    assert not verdict.faults


@pytest.mark.parametrize("died_s", [100 - PATIENCE_S - 1, 101])
def test_a_death_long_before_or_after_excuses_nothing(died_s: float) -> None:
    journal = Journal()
    journal.lost.append(lost(100, (1, "relay-0")))
    journal.deaths.append(Death("relay-0", died_s, asked=True))
    assert judge(journal, ended_s=120).faults


def test_a_session_that_had_left_the_dead_relay_long_ago_is_no_victim_of_it() -> None:
    journal = Journal()
    journal.lost.append(lost(300, (5, "relay-0"), (100, "relay-1")))
    journal.deaths.append(Death("relay-0", 290, asked=True))
    assert judge(journal, ended_s=400).faults


def test_a_session_that_was_leaving_the_dead_relay_is_a_victim_of_it() -> None:
    journal = Journal()
    journal.lost.append(lost(300, (5, "relay-0"), (295, "relay-1")))
    journal.deaths.append(Death("relay-0", 290, asked=True))
    assert not judge(journal, ended_s=400).faults


def test_a_service_that_ends_by_itself_is_a_fault_even_where_no_session_is_lost() -> None:
    journal = Journal()
    journal.lost.append(lost(100, (5, "relay-0")))
    journal.deaths.append(Death("relay-0", 60, asked=False))
    verdict = judge(journal, ended_s=120)
    assert verdict.losses[0].excused
    assert verdict.faults == ("relay-0 ended by itself at 60 s",)


def test_a_fault_that_nobody_recovered_from_or_lifted_is_one() -> None:
    journal = Journal()
    journal.incidents = [
        Incident("log_full", "relay-0", is_attack=False, began_s=5, lifted_s=9),
        Incident("freeze", "master", is_attack=False, began_s=10),
        Incident("junk", "relay-0", is_attack=True, began_s=5, lifted_s=9),
    ]
    faults = judge(journal, ended_s=120).faults
    assert len(faults) == 2
    assert "log_full" in faults[0]
    assert "freeze" in faults[1]


def test_a_broken_rule_is_a_fault() -> None:
    journal = Journal()
    journal.found("reflector: 9000 bytes")
    assert judge(journal, ended_s=9).faults == ("reflector: 9000 bytes",)


def test_what_preceded_a_loss_is_named_newest_first_and_nothing_else() -> None:
    journal = Journal()
    journal.incidents = [
        fault("long ago", "relay-0", 1, 2),
        fault("freeze", "relay-0", 150, 160),
        Incident("junk", "relay-0", is_attack=True, began_s=170, note="500 datagrams"),
        fault("afterwards", "relay-0", 201, 202),
    ]
    journal.lost.append(lost(200, (5, "relay-0")))
    named = judge(journal, ended_s=300).losses[0].preceded_by
    assert len(named) == 2
    assert "junk" in named[0]
    assert "500 datagrams" in named[0]
    assert "freeze" in named[1]


# -- Journal and report ------------------------------------------------------------------------


def test_datagrams_count_in_the_second_in_which_they_were_sent() -> None:
    counted = Datagrams()
    for sent_s in (1.0, 1.5, 2.0, 2.5, 3.0):
        counted.sent(sent_s)
    counted.received(1.5)
    counted.received(3.0)
    assert counted.between(1, 3) == (4, 3)
    assert counted.between(3, 9) == (1, 0)
    assert counted.between(0, 0) == (0, 0)


def test_recovery_counts_from_the_moment_in_which_a_fault_was_lifted() -> None:
    journal = Journal()
    journal.incidents = [
        Incident("freeze", "relay-0", is_attack=False, began_s=1, lifted_s=9, recovered_s=9.25),
        Incident("freeze", "relay-1", is_attack=False, began_s=20, lifted_s=25, recovered_s=25.75),
        Incident("freeze", "relay-1", is_attack=False, began_s=30, lifted_s=35),
    ]
    journal.datagrams.sent(2)
    (row,) = recoveries(journal)
    assert (row.count, row.median_ms, row.longest_ms) == (3, 500, 750)
    assert (row.sent, row.missing) == (1, 1)
    assert "250 ms" in incident_line(journal.incidents[0])
    assert "NOT RECOVERED" in incident_line(journal.incidents[2])


def test_the_lines_say_what_a_reader_needs() -> None:
    journal = Journal()
    journal.incidents.append(fault("freeze", "relay-0", 3, 8))
    journal.lost.append(lost(100, (5, "relay-0")))
    journal.skipped = {"log_full": "no root"}
    minute = Minute(60, 9, 1, 4000, 12, 5.5, 20, 3)
    rows = recoveries(journal)
    line = minute_line(minute, rows)
    for part in ("9 alive", "1 lost", "4000 sent", "12 lost", "freeze=0"):
        assert part in line
    verdict = judge(journal, ended_s=120)
    summary = Summary(7, 120, 10, 4000, 12, [minute], rows, journal.skipped, [], verdict, ok=False)
    text = "\n".join(summary_lines(summary))
    for part in ("seed 7", "SKIPPED log_full: no root", "its relay lived", "NOT good"):
        assert part in text
    assert msgspec.json.decode(msgspec.json.encode(summary), type=Summary) == summary


# -- What it spoils ----------------------------------------------------------------------------


def test_every_attack_has_a_card_or_a_reason() -> None:
    made = {card.kind for card in attack_cards(["relay-0"], pace=1)}
    assert made | lacking_attacks().keys() == ATTACKS.keys()
    assert not FAULTS.keys() & ATTACKS.keys()


def test_a_process_sees_the_clock_step(tmp_path: Path) -> None:
    clock = SteppedClock(tmp_path / "clock")
    script = "import time\nwhile input(): print(time.time(), time.monotonic(), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, **clock.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for step_s in (0, 3600, -3600, 0):
            clock.step(step_s)
            process.stdin.write("go\n")
            process.stdin.flush()
            wall_s, monotonic_s = map(float, process.stdout.readline().split())
            assert abs(wall_s - time.time() - step_s) < 60
            assert abs(monotonic_s - time.monotonic()) < 60
        process.stdin.write("\n")
    clock.close()


async def test_a_pipe_stalls_closes_and_is_read_again(tmp_path: Path) -> None:
    sink = PipeSink(tmp_path / "pipe", tmp_path / "copy")
    writer = sink.open_writer()
    os.set_blocking(writer, False)

    copy = tmp_path / "copy"

    async def until_copied(what: bytes) -> None:
        async with asyncio.timeout(20):
            while not copy.exists() or what not in copy.read_bytes():  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.01)

    os.write(writer, b"first")
    await until_copied(b"first")
    sink.stall()
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writer, bytes(1024))
    sink.resume()
    await until_copied(bytes(1024))
    sink.close_reader()
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"nobody")
    sink.open_reader()
    os.write(writer, b"again")
    await until_copied(b"again")
    os.close(writer)
    writer = sink.open_writer()  # As a service that is started again does.
    os.write(writer, b"another")
    await until_copied(b"another")
    os.close(writer)
    sink.close()
